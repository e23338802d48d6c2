"""pip, uv and npm themselves install through the route; processes share one cache."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from multiprocessing import get_context
from pathlib import Path

import pytest

from gvisor_kernel.egress.package_cache import PackageCache
from gvisor_kernel.egress.package_index import (
    Configuration,
    Index,
    Indexes,
    Registries,
    read_npm,
    read_pip,
)
from gvisor_kernel.egress.package_upstream import IndexClient
from gvisor_kernel.egress.packages import Packages

from ..sweeps import needs_all
from .indexes import THREADS, listening, make_wheel, route, serving
from .test_packages import ask_file

HOST = dict(os.environ)


def packages_of(root: Path, index: Index) -> Packages:
    indexes = Indexes((index,))
    configuration = Configuration(indexes, indexes, Registries(index))
    return Packages(PackageCache.open(root), lambda: configuration, IndexClient(THREADS))


def packages_of_host(root: Path, environment: dict[str, str]) -> Packages:
    return Packages(
        PackageCache.open(root), lambda: Configuration.read(environment), IndexClient(THREADS)
    )


def run_tool(*argv: str, **variables: str) -> str:
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR")}
    result = subprocess.run(
        argv,
        env={**keep, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", **variables},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def pip_install(url: str, target: Path, *words: str) -> str:
    return run_tool(
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile"),
        *("--disable-pip-version-check", "--target", str(target), *words),
        PIP_INDEX_URL=f"{url}/packages/pypi/simple/",
        PIP_RETRIES="1",
    )


def test_pip_installs_from_an_index_in_html_and_then_offline(tmp_path: Path) -> None:
    with serving() as index:
        name = index.add_project("demo", make_wheel("demo"))
        page = index.served["/simple/demo/"]
        page.content_type = "text/html"
        page.body = f'<a href="../../files/{name}">{name}</a>'.encode()
        with listening(lambda: packages_of(tmp_path / "c", index.index())) as url:
            pip_install(url, tmp_path / "one", "demo")
            index.stop()
            pip_install(url, tmp_path / "two", "demo")
    assert (tmp_path / "one" / "demo.py").read_bytes() == (tmp_path / "two/demo.py").read_bytes()


def host_environment(url: str) -> dict[str, str]:
    """Return the environment of this user, or skip if its index does not answer."""
    environment = {**HOST}
    try:
        urllib.request.urlopen(url, timeout=10).close()  # noqa: S310 - of the configuration
    except (urllib.error.URLError, OSError) as error:
        pytest.skip(f"the index of this machine does not answer: {type(error).__name__}")
    return environment


def index_of_host() -> Index:
    found = read_pip(HOST)
    if not found.indexes:
        pytest.skip("pip of this machine is configured without an index")
    return found.indexes[0]


@needs_all
@pytest.mark.once
def test_pip_installs_from_the_index_of_this_machine(tmp_path: Path) -> None:
    environment = host_environment(f"{index_of_host().url}six/")
    with listening(lambda: packages_of_host(tmp_path / "c", environment)) as url:
        pip_install(url, tmp_path / "one", "six")
    assert (tmp_path / "one" / "six.py").exists()
    offline = {
        **environment,
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    os.environ.update({"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"})
    try:
        with listening(lambda: packages_of_host(tmp_path / "c", offline)) as url:
            pip_install(url, tmp_path / "two", "six")
    finally:
        del os.environ["HTTPS_PROXY"], os.environ["HTTP_PROXY"]
    assert (tmp_path / "two" / "six.py").exists()


@pytest.mark.once
def test_uv_installs_from_the_index_of_this_machine(tmp_path: Path) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is not installed")
    environment = host_environment(f"{index_of_host().url}six/")
    with listening(lambda: packages_of_host(tmp_path / "c", environment)) as url:
        run_tool(
            *(uv, "pip", "install", "--python", sys.executable, "--target", str(tmp_path / "t")),
            "six",
            UV_DEFAULT_INDEX=f"{url}/packages/uv/simple/",
            UV_CACHE_DIR=str(tmp_path / "uv"),
        )
    assert (tmp_path / "t" / "six.py").exists()


@pytest.mark.once
def test_npm_installs_from_the_registry_of_this_machine(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    environment = host_environment(f"{read_npm(HOST).default.url}left-pad")
    with listening(lambda: packages_of_host(tmp_path / "c", environment)) as url:
        run_tool(
            *("npm", "install", "--prefix", str(tmp_path / "n"), "left-pad", "@types/semver"),
            npm_config_registry=f"{url}/packages/npm/",
            npm_config_cache=str(tmp_path / "cache"),
            npm_config_audit="false",
        )
    assert (tmp_path / "n" / "node_modules" / "left-pad" / "package.json").exists()
    assert (tmp_path / "n" / "node_modules" / "@types" / "semver" / "package.json").exists()


def _install_often(root: str, url: str, limit: int) -> bool:
    async def run() -> bool:
        async with route(Path(root), Index(url), limit=limit) as packages:
            for _ in range(3):
                for name in ("demo", "other"):
                    answer = await ask_file(packages, f"/packages/pypi/simple/{name}/")
                    if answer.status != 200 or len(answer.data) != 300_000:
                        return False
            return True

    return asyncio.run(run())


@pytest.mark.parametrize(
    "limit",
    [
        pytest.param(10**9, marks=needs_all, id="large"),
        pytest.param(100_000, id="smaller than a file"),
    ],
)
def test_processes_share_a_cache_without_harm(tmp_path: Path, limit: int) -> None:
    with serving() as index, get_context("spawn").Pool(2) as pool:
        for name in ("demo", "other"):
            index.add_project(name, os.urandom(300_000))
        work = [(str(tmp_path / "c"), f"{index.url}/simple/", limit)] * 2
        assert pool.starmap(_install_often, work) == [True] * 2
    assert not list((tmp_path / "c" / "new").iterdir())
