"""``install --with`` in real sandboxes: what kernels have, what the host gets, and what fails."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.cli.main import main
from gvisor_kernel.config.packages import Packages
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.environments.environment import Environment, Store
from gvisor_kernel.jupyter.kernelspecs import read_kernelspec
from gvisor_kernel.jupyter.plan_factory import make_plan
from gvisor_kernel.kernel.client import private_connection_info
from gvisor_kernel.kernel.restore import find_key
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.snapshots.snapshot_store import Store as SnapshotStore

from ..egress.indexes import FakeIndex, Served, make_wheel, sha256
from ..jupyter.helpers import SECONDS, execute, running_kernel
from ..sweeps import needs_all
from ..world import World
from .helpers import serving_pip

NAME = "gk-with"
MODULE = "VERSION = {!r}\ndef hello():\n    print('hello', VERSION)\n"
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
BACKEND = """
import base64, glob, os
WHEEL = {wheel!r}
def attack():
    done = []
    places = ["/etc/gk-escape", "/usr/gk-escape", {host!r} + "/gk-escape"]
    places += ["/opt/gvisor-kernel/gk-escape", os.path.dirname(os.__file__) + "/gk-escape"]
    for path in places:
        try:
            open(path, "w").close()
            done.append(path)
        except OSError:
            pass
    return done + glob.glob({host!r} + "/*")
def build_wheel(directory, settings=None, metadata=None):
    import io, zipfile
    data = io.BytesIO(base64.b64decode(WHEEL))
    with zipfile.ZipFile(data, "a") as archive:
        archive.writestr("hostile_found.py", "FOUND = " + repr(attack()))
    with open(os.path.join(directory, "hostile-1.0-py3-none-any.whl"), "wb") as file:
        file.write(data.getvalue())
    return "hostile-1.0-py3-none-any.whl"
"""
"""A package without a wheel, whose build looks for ways out of where it runs."""


def make_source(host: Path) -> bytes:
    wheel = base64.b64encode(make_wheel("hostile")).decode()
    files = {
        "pyproject.toml": PROJECT,
        "backend.py": BACKEND.format(wheel=wheel, host=str(host)),
        "PKG-INFO": "Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n",
    }
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"hostile-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return data.getvalue()


@pytest.fixture(scope="module")
def host_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that no sandbox may see."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "secret").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def index(host_folder: Path) -> Iterator[FakeIndex]:
    """An index that pip of this user is configured with."""
    with serving_pip() as index:
        index.add_project("demo", make_wheel("demo", files={"demo.py": MODULE.format("1.0")}))
        source = make_source(host_folder)
        index.served["/files/hostile-1.0.tar.gz"] = Served(source)
        described = {
            "filename": "hostile-1.0.tar.gz",
            "url": f"{index.url}/files/hostile-1.0.tar.gz",
            "hashes": {"sha256": sha256(source)},
        }
        index.add_page("hostile", [described])
        yield index


def install(*words: str, name: str = NAME) -> int:
    return main(["install", "--user", "--name", name, *words])


def environment_of(world: World, name: str = NAME) -> Environment:
    packages: Any = read_kernelspec(world.kernelspecs / name).settings["packages"]
    return Store.open().find(packages["environment"], ())


@pytest.fixture(scope="module")
def installed(index: FakeIndex, world: World) -> Iterator[Environment]:
    """The kernelspec NAME with demo and hostile."""
    assert install("--with", "demo hostile==1.0", "--set", "snapshot=off") == 0
    yield environment_of(world)
    assert main(["uninstall", "--user", "--name", NAME]) == 0
    assert Store.open().environments() == []


@contextmanager
def kernel(folder: Path, **settings: Any) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    with running_kernel(NAME, settings=settings, start={"cwd": str(folder)}) as found:
        yield found


def run(client: BlockingKernelClient, code: str) -> str:
    answer = execute(client, code)
    assert answer.status == "ok", answer.reply["content"]
    return answer.text


def test_what_was_installed_is_named(installed: Environment, world: World) -> None:
    assert installed.packages == (("demo", "1.0"), ("hostile", "1.0"))
    assert installed.image == f"host:{os.path.realpath(sys.prefix)}"
    assert installed.python == "{}.{}".format(*sys.version_info)
    settings = read_kernelspec(world.kernelspecs / NAME).settings
    assert settings["packages"] == {
        "requirements": ["demo", "hostile==1.0"],
        "environment": installed.digest,
    }


def test_the_same_interpreter_by_another_name_has_the_packages(installed: Environment) -> None:
    """Such as a program that is started as ``python``, after an ``install`` by ``python3``."""
    own = Path(sys.executable)
    other = next(
        path
        for name in ("python", "python3")
        if (path := own.with_name(name)) != own and path.samefile(own)
    )
    packages = {"requirements": list(installed.requirements), "environment": installed.digest}
    code = f"""
from gvisor_kernel import Sandbox
with Sandbox(packages={packages!r}, snapshot="off") as sandbox:
    print(sandbox.run("import demo; print(demo.VERSION)").raise_for_error().stdout)
"""
    done = subprocess.run(
        [other, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "1.0", done.stderr


def test_building_a_package_reaches_only_its_sandbox(
    installed: Environment, host_folder: Path
) -> None:
    found = next(installed.tree.rglob("hostile_found.py")).read_text()
    assert found == "FOUND = []"
    assert [path.name for path in host_folder.iterdir()] == ["secret"]
    assert not Path("/etc/gk-escape").exists()


def test_kernel_has_the_packages_and_may_install_another_version(
    installed: Environment, tmp_path: Path
) -> None:
    newer = make_wheel("demo", "2.0", {"demo.py": MODULE.format("2.0")})
    (tmp_path / "demo-2.0-py3-none-any.whl").write_bytes(newer)
    with kernel(tmp_path) as (manager, client):
        assert run(client, "import demo; print(demo.VERSION)") == "1.0\n"
        assert "hello 1.0" in run(client, "!demo-hello")
        child = "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', "
        child += "'import demo, ipykernel; demo.hello()'], capture_output=True, text=True))"
        assert "hello 1.0" in run(client, child)
        refused = run(
            client,
            "try:\n    open(demo.__file__, 'a')\nexcept OSError as error:\n    print(error.errno)",
        )
        assert refused == "30\n"
        path = "/mnt/user-data/uploads"
        run(client, f"%pip install --no-index --find-links {path} demo==2.0")
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=SECONDS)
        assert run(client, "import demo; print(demo.VERSION)") == "2.0\n"
        assert "Successfully uninstalled demo-2.0" in run(client, "%pip uninstall -y demo")
        assert "1.0" in run(client, "!python -c 'import demo; print(demo.VERSION)'")
        # A running kernel keeps its packages, even when its kernelspec is gone.
        running = records.find_used(lambda it: it.environment)
        assert running == {installed.digest}
        assert Store.open().remove_unused(lambda environment, folders: False, running) == []


def test_snapshot_depends_on_the_packages(
    installed: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan(NAME, private_connection_info(), "")
    other = installed.digest[::-1]
    shutil.copytree(installed.directory, installed.directory.parent / other)
    try:
        manifest = installed.directory.parent / other / "environment.json"
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**content, "digest": other}))
        keys = set()
        for packages in (None, plan.spec.packages, Packages(("demo",), other)):
            spec = SandboxSpec(**{**vars(plan.spec), "packages": packages})
            keys.add(find_key(RunscRuntime(), type(plan)(**{**vars(plan), "spec": spec}))[0].name)
        assert len(keys) == 3
    finally:
        shutil.rmtree(installed.directory.parent / other)


def find_snapshots() -> set[str]:
    return {snapshot.meta.key for snapshot in SnapshotStore.open().snapshots()}


@needs_all  # tests/snapshots has preloads, and other tests here packages
def test_preloaded_package_is_in_the_snapshot(installed: Environment, tmp_path: Path) -> None:
    settings = ["--set", 'preload=["demo"]', "--set", "spare=false"]
    others = find_snapshots()
    assert install("--with", "hostile==1.0 demo", *settings, name="gk-preload") == 0  # again
    try:
        assert main(["snapshot", "build", "--kernel", "gk-preload"]) == 0
        start = {"cwd": str(tmp_path)}
        with running_kernel("gk-preload", settings={}, start=start) as (_, client):
            code = "import sys; print(sys.modules['demo'].VERSION, sys.modules['demo'].__file__)"
            assert "1.0 /opt/gvisor-kernel/python-packages/" in run(client, code)
            assert "hello 1.0" in run(client, "!demo-hello")
    finally:
        # Not those that other tests of this run start from.
        main(["snapshot", "remove", *(find_snapshots() - others)])
        main(["uninstall", "--user", "--name", "gk-preload"])
    assert Store.open().environments() == [installed]


def test_other_python_is_refused(
    installed: Environment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    abi = installed.tree / "abi"
    own = abi.read_text()
    abi.write_text(".cpython-39-aarch64-linux-gnu.so")
    try:
        assert main(["start", "--kernel", NAME]) == 1
        assert "were installed for another Python" in capsys.readouterr().err
    finally:
        abi.write_text(own)


def test_index_that_does_not_answer_is_named(
    installed: Environment, index: FakeIndex, capsys: pytest.CaptureFixture[str], world: World
) -> None:
    index.served["/simple/downpackage/"] = Served(status=503)
    assert install("--with", "downpackage", name="gk-fails") == 1
    printed = capsys.readouterr().err
    assert "The packages downpackage could not be got from an index: 127.0.0.1" in printed
    assert "No matching distribution found for downpackage" in printed
    assert not (world.kernelspecs / "gk-fails").exists()
    assert Store.open().environments() == [installed]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--language", "bash"], "does not import them"),
        (["--set", 'command=["bash", "{connection_file}"]'], "would not import them"),
        (["--set", "packages=null"], "given twice"),
    ],
)
def test_kernels_that_cannot_import_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], world: World
) -> None:
    assert install("--with", "demo", *words, name="gk-fails") == 1
    assert message in capsys.readouterr().err
    assert not (world.kernelspecs / "gk-fails").exists()
