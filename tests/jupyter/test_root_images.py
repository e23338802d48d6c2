"""Kernels in an image of the store, which is made of this machine's Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client import KernelManager
from traitlets.config import Config

from gvisor_kernel.cli.main import main
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.images import RootImage, Store
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.store import measure_tree

from ..images.python_root import PACKAGES, make_image
from ..sweeps import needs_all
from ..world import PROJECT, WAYS, World, kernelspec_of
from .helpers import SANDBOXED, assert_way, execute, running_kernel

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="another kernel than ours has no images")


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gvisor_kernel", *arguments],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        cwd=PROJECT,  # run this checkout, even if another version is installed
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An OCI layout with two images. ``plain`` has Python; ``kernel``, which is imported as
    ``mini``, also has ipykernel."""
    directory = make_image(tmp_path_factory.mktemp("images"))
    said = command("image", "import", str(directory), "--name", "mini", "--reference", "kernel")
    assert "gvisor-kernel install --image mini\n" in said
    with pytest.MonkeyPatch.context() as patch:
        # One wait for a busy disk is enough.
        patch.setattr("gvisor_kernel.archive.tree.sync_file_system", lambda directory: None)
        yield directory
    assert main(["image", "remove", *(image.digest for image in Store.open().images())]) == 0


@pytest.fixture
def mini(images: Path) -> RootImage:
    return Store.open().find("mini")


def settings(way: str, **more: object) -> dict[str, object]:
    return {**WAYS[way], "image": "mini", **more}


LOOK = """
import json, os, pwd, sys
def read(path):
    with open(path) as file:
        return file.read()
print(json.dumps({
    "python": [sys.executable, sys.prefix],
    "greeting": os.environ.get("GREETING"),
    "path": os.environ["PATH"].split(":"),
    "home": os.path.expanduser("~"),
    "user": [os.getuid(), pwd.getpwuid(os.getuid()).pw_name],
    "ipykernel": __import__("ipykernel").__file__,
    "root": sorted(os.listdir("/")),
    "mounts": read("/proc/mounts"),
    "info": read("/container_info.json"),
    "resolver": read("/etc/resolv.conf"),
    "os-release": os.path.exists("/etc/os-release"),
    "workspace": sorted(os.listdir()),
    "uploaded": read("data.csv"),
    "devices": os.path.exists("/dev/null"),
}))
"""

WRITE = """
for path in ("/mnt/user-data/outputs/kept", "here", "/var/tmp/here"):
    with open(path, "w") as file:
        file.write("x")
for change in (
    *(lambda path=path: open(path, "w") for path in ("/usr/bin/python3.new", "/new", "/etc/new")),
    lambda: os.unlink("/usr/bin/python3"),
    lambda: os.rename("/usr", "/usr2"),
    lambda: os.chmod("/", 0o777),
):
    try:
        change()
        print("changed")
    except OSError as error:
        print(error.strerror)
"""


@pytest.mark.parametrize("way", ["direct", pytest.param("relay", marks=needs_all)])
def test_image_is_root_and_its_python_runs_kernel(mini: RootImage, folder: Path, way: str) -> None:
    (folder / "data.csv").write_text("a,b\n")
    with running_kernel(settings=settings(way)) as (manager, client):
        assert_way(manager, client, way)
        seen = json.loads(execute(client, LOOK).text)
        assert execute(client, WRITE).text == 6 * "Read-only file system\n"
        assert execute(client, "import os; os.system('echo from sh')").text == "from sh\n"
    assert seen["python"] == ["/usr/bin/python3", "/usr"]
    assert seen["greeting"] == "from the image"
    assert seen["path"][:2] == ["/usr/bin", "/bin"]
    assert (seen["home"], seen["user"]) == ("/home/user", [1000, "user"])
    assert seen["ipykernel"].startswith(f"/{PACKAGES}/")
    assert {"usr", "lib", "opt", "workspace", "mnt", "container_info.json"} <= set(seen["root"])
    assert not {"root/.pyenv", "srv", "boot", "var/lib"} & set(seen["root"])
    assert str(mini.directory) not in seen["mounts"]
    assert json.loads(seen["info"])["image"] == "mini"
    assert (seen["resolver"], seen["os-release"], seen["devices"]) == ("", False, True)
    assert "data.csv" in seen["workspace"]
    assert seen["uploaded"] == "a,b\n"
    assert (folder / "outputs/kept").stat().st_uid == folder.stat().st_uid
    assert not (folder / "here").exists()
    assert measure_tree(mini.tree, mini.environment).digest == mini.digest


@pytest.mark.once
def test_image_in_use_is_shared_and_kept(mini: RootImage) -> None:
    with (
        running_kernel(settings=settings("direct")) as (_, first),
        running_kernel(settings=settings("direct")) as (_, second),
    ):
        execute(first, "open('/usr/mine', 'w').close()")
        assert execute(second, "import os; print(os.path.exists('/usr/mine'))").text == "False\n"
        remove = [sys.executable, "-m", "gvisor_kernel", "image", "remove", "mini"]
        done = subprocess.run(remove, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "The image mini is in use by running kernels." in done.stderr
    assert mini.tree.is_dir()


def test_kernels_in_image_are_restored_from_snapshots(world: World, mini: RootImage) -> None:
    spec = json.loads((world.kernelspecs / kernelspec_of("restored") / "kernel.json").read_text())
    spec["metadata"]["kernel_provisioner"]["config"]["image"] = "mini"
    world.add_kernelspec("gk-mini", spec)
    assert "Made " in command("snapshot", "build", "--kernel", "gk-mini")
    with running_kernel("gk-mini", settings={}) as (manager, client):
        assert_way(manager, client, "restored")
        assert execute(client, "import os; print(os.environ['GREETING'])").text == (
            "from the image\n"
        )


@needs_all
def test_bash_kernel_runs_in_image(mini: RootImage) -> None:
    """The kernelspec gvisor-bash uses the image's Python."""
    pytest.importorskip("bash_kernel")
    install = ["install", "--user", "--language", "bash", "--name", "gk-bash", "--image", "mini"]
    assert main([*install, "--set", "snapshot=off"]) == 0
    with running_kernel("gk-bash", settings={"snapshot": "off"}) as (_, client):
        assert execute(client, "echo $GREETING from $(type -p python3)").text == (
            "from the image from /usr/bin/python3\n"
        )
    assert main(["uninstall", "--user", "--name", "gk-bash"]) == 0


def start(settings: dict[str, object]) -> None:
    """Start a kernel that must not start."""
    manager = KernelManager(
        kernel_name="gvisor-python", config=Config({"GVisorProvisioner": settings})
    )
    try:
        manager.start_kernel()
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"image": "missing"}, "There is no image 'missing'"),
        ({"command": ["Rscript", "{connection_file}"]}, "has no program Rscript"),
        ({"command": ["/opt/none", "{connection_file}"]}, "has no program /opt/none"),
        (
            {"command": ["python3", "-m", "no_such_kernel", "-f", "{connection_file}"]},
            "has no module no_such_kernel",
        ),
    ],
)
@pytest.mark.once
def test_missing_program_in_image_is_named_before_start(
    mini: RootImage, more: dict[str, object], words: str
) -> None:
    with pytest.raises(GvisorKernelError, match=words):
        start({"image": "mini", "snapshot": "off", **more})


def test_image_without_python_is_refused(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    assert main(["image", "import", str(root), "--name", "empty"]) == 0
    assert "The image empty has no python3 in /usr/local" in capsys.readouterr().out
    with pytest.raises(GvisorKernelError, match="The image empty has no python3 in /usr/local"):
        start({"image": "empty"})


@pytest.mark.once
def test_image_without_ipykernel_is_refused(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["image", "import", str(images), "--name", "plain", "--reference", "plain"]) == 0
    assert "has no module ipykernel" in capsys.readouterr().out
    for way in ("direct", "relay", "restored"):
        with pytest.raises(GvisorKernelError, match="has no module ipykernel, which the kernel"):
            start({**WAYS[way], "image": "plain"})


def test_snapshots_of_one_image_do_not_fit_another(mini: RootImage, tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3").write_bytes(b"")
    (tmp_path / "usr/bin/python3").chmod(0o755)
    found = []
    for content in ("one", "two"):
        (tmp_path / "usr/file").write_text(content)
        assert main(["image", "import", str(tmp_path), "--name", "changing"]) == 0
        request = LaunchRequest("k", "", tmp_path, "/usr/bin/python3", {})
        found.append(get_runtime("runsc").describe(SandboxSpec(image="changing"), request))
    assert [name for name in found[0] if found[0][name] != found[1][name]] == ["world"]


def test_host_folder_is_mounted_where_image_has_none(mini: RootImage, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/file").write_text("from the host")
    mounts = [{"source": str(tmp_path / "more"), "target": "/data/deep"}]
    with running_kernel(settings=settings("direct", mounts=mounts)) as (_, client):
        assert execute(client, "print(open('/data/deep/file').read())").text == "from the host\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's files belong to somebody else")
def test_image_files_belong_to_one_sandbox_user(mini: RootImage) -> None:
    owners = {(s.st_uid, s.st_gid) for s in (p.lstat() for p in mini.tree.rglob("*"))}
    assert len(owners) == 1
    assert owners != {(0, 0)}
