"""What a kernel sees of a sandbox in a real engine, and what is known of it outside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.runtimes import get_snapshot_runtime
from gvisor_kernel.runtimes.base import CheckpointedSandbox, MeasuredSandbox, PausableSandbox
from gvisor_kernel.runtimes.docker.runtime import DockerRuntime

from ..gvisor import gvisor_release
from ..jupyter.helpers import execute, running_kernel
from ..world import WAYS, World
from .dockerd import IMAGE, Dockerd, needs_dockerd
from .helpers import OUTPUTS, ask, sandbox_of

pytestmark = [*needs_dockerd, pytest.mark.usefixtures("dockerd")]

Kernel = tuple[KernelManager, BlockingKernelClient]


@pytest.fixture(scope="module")
def shared(dockerd: Dockerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel, for tests that change nothing."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "data.csv").write_text("a,b\n")
    (folder / "data.csv").chmod(0o600)
    (folder / "outputs").mkdir()
    (folder / "outputs" / "earlier").write_text("x")
    (folder / "more").mkdir()
    (folder / "more" / "file").write_text("y")
    mounts = [{"source": str(folder / "more"), "target": "/mnt/more"}]
    settings = {**WAYS["docker"], "mounts": mounts, "memory_limit": "1G"}
    os.chown(folder / "data.csv", 4711, 4711)
    with running_kernel(settings=settings, start={"cwd": str(folder)}) as kernel:
        yield kernel


def test_layout_and_copied_files(shared: Kernel) -> None:
    _, client = shared
    assert ask(client, "[os.getcwd(), os.getuid()]") == ["/workspace", 1000]
    assert ask(client, "sorted(os.listdir())") == ["data.csv", "more", "outputs"]
    assert ask(client, "open('/mnt/user-data/uploads/data.csv').read()") == "a,b\n"
    assert ask(client, f"os.listdir('{OUTPUTS}')") == ["earlier"]
    assert ask(client, "open('/mnt/more/file').read()") == "y"
    assert ask(client, "os.listdir('/mnt/skills/public')")
    info = ask(client, "json.load(open('/container_info.json'))")
    assert (info["runtime"], info["image"]) == ("docker", IMAGE)
    assert {(place["target"], place["access"]) for place in info["layout"]} >= {
        (OUTPUTS, "rw"),
        ("/mnt/user-data/uploads", "ro"),
    }


TRY_TO_WRITE = """
import json, os
found = []
for path in [
    "/mnt/user-data/uploads/new", "/mnt/user-data/uploads/data.csv", "/mnt/skills/public/new",
    "/mnt/transcripts/new", "/container_info.json",
    "/opt/gvisor-kernel/gvisor_kernel/guest/main.py",
    "/etc/passwd", "/etc/resolv.conf", "/usr/bin/new", "/new", "/mnt/more/file",
]:
    try:
        open(path, "w")
        found.append(path)
    except OSError:
        pass
print(json.dumps(found))
"""


def test_only_outputs_and_scratch_are_writable(shared: Kernel) -> None:
    answer = execute(shared[1], TRY_TO_WRITE)
    assert json.loads(answer.text) == []


def test_sandbox_has_no_network(shared: Kernel) -> None:
    _, client = shared
    assert ask(client, "open('/etc/resolv.conf').read()") == ""
    assert ask(client, "[line.split(':')[0].strip() for line in open('/proc/net/dev')][2:]") == [
        "lo"
    ]
    tried = execute(client, "import socket; socket.create_connection(('192.0.2.1', 80), 5)")
    assert tried.error == "OSError"


def test_kernel_runs_on_gvisor_without_capabilities(shared: Kernel) -> None:
    _, client = shared
    status = dict(
        line.split(":\t", 1)
        for line in ask(client, "open('/proc/self/status').read()").splitlines()
        if ":\t" in line
    )
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert gvisor_release() in ask(client, "os.uname().release")


def test_environment_comes_from_image_and_package(shared: Kernel) -> None:
    environment = ask(shared[1], "dict(os.environ)")
    assert environment["GREETING"] == "from the image"
    assert environment["IS_SANDBOX"] == "yes"
    assert environment["HOME"] == "/home/user"
    assert "HOSTNAME" not in environment
    assert not [name for name in environment if name.startswith(("DOCKER", "XDG"))]


def test_engine_has_the_limits(shared: Kernel, dockerd: Dockerd) -> None:
    sandbox = sandbox_of(shared[0])
    with dockerd.client() as engine:
        host = engine.inspect(sandbox.container.id)["HostConfig"]
    assert 2**30 < host["Memory"] < 2**30 + 2**28
    assert host["PidsLimit"] > 512
    assert 10 * 2**20 < sandbox.memory_used() < 2**30


def test_sandbox_is_listed(shared: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox = sandbox_of(shared[0])
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    (found,) = (s for s in json.loads(capsys.readouterr().out) if s["identity"] == sandbox.identity)
    assert found["state"] == "running"


def test_it_can_neither_be_saved_nor_stopped(shared: Kernel) -> None:
    abilities = (CheckpointedSandbox, PausableSandbox, MeasuredSandbox)
    assert not isinstance(sandbox_of(shared[0]), abilities)
    with pytest.raises(SnapshotError, match="cannot be saved as a snapshot"):
        get_snapshot_runtime("docker")


def test_sweep_leaves_sandboxes_of_other_state_directories(
    shared: Kernel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They belong to another user, or to another machine."""
    other = world.base / "other-state"
    other.mkdir(mode=0o700)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(other))
        assert DockerRuntime().sweep() == []
    assert ask(shared[1], "1 + 1") == 2
