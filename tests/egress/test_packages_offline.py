"""Kernels install from the cache of other kernels without an index; a full disk is named."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import tarfile
from base64 import b64encode
from collections.abc import Iterator

import pytest
from jupyter_client import BlockingKernelClient
from platformdirs import user_cache_path

from gvisor_kernel.egress.process import EgressWorker

from ..faults.test_full_disk import KIB, root_only, small_disk
from ..sweeps import needs_all
from .indexes import FakeIndex, Served, host_environment, index_of_host, make_wheel, serving
from .test_kernels import kernel_with, run
from .upstream import Fake


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeIndex]:
    """The index of this user's pip. A new worker reads that; kernels notice nothing."""
    with serving() as index:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
        monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple/")
        EgressWorker.instance().stop()
        yield index
    EgressWorker.instance().stop()


@pytest.fixture(scope="module")
def client(upstream: Fake) -> Iterator[BlockingKernelClient]:
    routes = {"plain": upstream.route("/v1")}
    with kernel_with(routes, ["packages", "plain"], "restored") as (_, client):
        yield client


def new_name() -> str:
    """Return a project's name that is in no cache."""
    return f"gk-{secrets.token_hex(8)}"


@root_only
@pytest.mark.once
def test_a_full_disk_of_the_cache_is_named_and_holds_up_no_other_request(
    client: BlockingKernelClient, index: FakeIndex
) -> None:
    name = new_name()
    module = name.replace("-", "_")
    wheel = make_wheel(module, files={f"{module}.py": f"DATA = {os.urandom(200 * KIB)!r}"})
    index.add_project(module, wheel)
    index.served[f"/simple/{name}/"] = index.served.pop(f"/simple/{module}/")
    page = f"print(get('http://127.0.0.1:3128/packages/pypi/simple/{name}/'))"
    place = user_cache_path("gvisor-kernel") / "packages"
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with small_disk(place, 1024 * KIB) as disk:
        assert "404" in run(client, page.replace(name, "none"))  # the cache has been opened
        disk.fill()
        text = run(client, page)
        assert "(507, b'the page cannot be stored: No space left on device" in text
        assert "/v1/x" in run(client, "print(get(PLAIN + '/x'))")
        disk.fill(64 * KIB)
        text = run(client, f"!pip install {name}")
        assert "507" in text
        assert "the cache cannot be written: No space left on device" in text
        assert "/v1/x" in run(client, "print(get(PLAIN + '/x'))")
        disk.empty()
        assert "(507" not in run(client, page)
        EgressWorker.instance().stop()  # it has open files on the disk


def test_a_second_kernel_installs_with_pip_while_the_index_is_stopped(
    client: BlockingKernelClient, index: FakeIndex
) -> None:
    name = new_name().replace("-", "")
    index.add_project(name)
    assert f"Successfully installed {name}-1.0" in run(client, f"%pip install {name}")
    index.stop()
    with kernel_with({}, ["packages"], "restored") as (_, other):
        assert f"Successfully installed {name}-1.0" in run(other, f"%pip install {name}")
        assert run(other, f"import {name}; print({name}.VERSION)") == "1.0\n"


@needs_all
@pytest.mark.once
def test_a_second_kernel_installs_with_uv_and_npm_while_the_index_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uv itself comes from the index of this machine."""
    host_environment(f"{index_of_host().url}uv/")
    name = new_name().replace("-", "")
    install = f"""
import os
os.environ["NO_COLOR"] = "1"
os.makedirs("/tmp/n")
os.chdir("/tmp/n")
!uv pip install {name}
!npm install {name}
!node -e 'console.log(require("{name}"))'
"""
    with serving() as index:
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"{index.url}/simple/")
        monkeypatch.setenv("npm_config_registry", f"{index.url}/")
        EgressWorker.instance().stop()
        index.add_project(name)
        add_npm_package(index, name)
        for number in range(2):
            with kernel_with({}, ["packages"], "restored") as (_, client):
                if run(client, "import shutil; print(shutil.which('npm'))") == "None\n":
                    pytest.skip("npm is not in the sandbox")
                assert "Successfully installed uv" in run(client, "%pip install uv")
                text = run(client, install)
                assert f"+ {name}==1.0" in text
                assert "added 1 package" in text
                assert "from npm" in text
                if not number:
                    index.stop()
    EgressWorker.instance().stop()


def add_npm_package(index: FakeIndex, name: str) -> None:
    """Serve an npm package with one module."""
    data = io.BytesIO()
    manifest = {"name": name, "version": "1.0.0"}
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        files = {"package.json": json.dumps(manifest), "index.js": "module.exports = 'from npm'"}
        for path, text in files.items():
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    digest = b64encode(hashlib.sha512(data.getvalue()).digest()).decode()
    dist = {"tarball": f"{index.url}/{name}.tgz", "integrity": f"sha512-{digest}"}
    versions = {"1.0.0": {**manifest, "dist": dist}}
    document = {"name": name, "versions": versions, "dist-tags": {"latest": "1.0.0"}}
    index.served[f"/{name}"] = Served(json.dumps(document).encode(), "application/json")
    index.served[f"/{name}.tgz"] = Served(data.getvalue())
