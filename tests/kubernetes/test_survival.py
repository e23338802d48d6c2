"""A kernel in a pod: what it finds, what it leaves, and what it survives."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.runtimes.kubernetes import pump
from gvisor_kernel.runtimes.state.records import read_record

from ..docker.helpers import OUTPUTS, ask, sandbox_of
from ..jupyter.helpers import execute, finish, running_kernel, wait_for_text, wait_until
from ..lasting.refusals import assert_nothing_is_saved
from ..sweeps import needs_all
from .conftest import SETTINGS, Kernel
from .fake_cluster import NODE, FakeCluster


@pytest.fixture(scope="module")
def survivor(
    cluster: FakeCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Kernel, Path]]:
    """One kernel for the tests of what a kernel survives, and its notebook's folder."""
    folder = tmp_path_factory.mktemp("survivor")
    (folder / "data.csv").write_text("1,2")
    (folder / "outputs").mkdir()
    (folder / "outputs" / "kept").write_text("as it was")
    os.utime(folder / "outputs" / "kept", (1_600_000_000, 1_600_000_000))
    cluster.late = cluster.busy = 1
    with running_kernel(settings=SETTINGS, start={"cwd": str(folder)}) as kernel:
        assert (cluster.late, cluster.busy) == (0, 0)
        yield kernel, folder
    wait_until(lambda: not cluster.pods, "the pod to be removed")
    assert (folder / "outputs" / "last").read_text() == "written last"


def test_a_kernel_in_a_pod_finds_what_a_kernel_finds(survivor: tuple[Kernel, Path]) -> None:
    """Also: the API server was busy, and the first attach failed after its handshake."""
    (manager, client), _ = survivor
    record = read_record(sandbox_of(manager).directory)
    assert record is not None
    assert (record.node, record.ready) == (NODE, True)
    assert sandbox_of(manager).node == NODE
    code = """
import json, os
found = {
    "csv": open("data.csv").read(),
    "uid": os.getuid(),
    "caps": [l for l in open("/proc/self/status") if l.startswith("CapEff")][0].split()[1],
    "info": json.load(open("/container_info.json"))["runtime"],
    "kept": open("outputs/kept").read(),
    "image": os.environ.get("IMAGE_SAYS"),
    "cluster": [name for name in os.environ if name.startswith("KUBERNETES")],
    "resolv": open("/etc/resolv.conf").read(),
}
paths = ("/opt/gvisor-kernel/x", "/mnt/user-data/uploads/x", "/etc/passwd", "/x")
for path in (*paths, "/dev/termination-log"):
    try:
        open(path, "a")
        found[path] = "writable"
    except OSError as error:
        found[path] = error.strerror
open("data.csv", "w").write("changed")
"""
    assert execute(client, code).status == "ok"
    found = ask(client, "found")
    assert found["csv"] == "1,2"
    assert found["uid"] == 1000
    assert int(found["caps"], 16) == 0
    assert found["info"] == "kubernetes"
    assert found["kept"] == "as it was"
    assert found["image"] == "hello"
    assert found["cluster"] == []
    assert found["resolv"] == ""
    for path in (
        *("/opt/gvisor-kernel/x", "/mnt/user-data/uploads/x", "/etc/passwd"),
        "/dev/termination-log",  # a file on the node's disk, without a limit
    ):
        assert found[path] == "Read-only file system", path
    assert found["/x"] in ("Read-only file system", "Permission denied")
    assert_nothing_is_saved(manager, client)


@needs_all
def test_outputs_are_copied_by_sync(
    survivor: tuple[Kernel, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (manager, client), folder = survivor
    execute(client, f"open('{OUTPUTS}/a', 'w').write('now')")
    execute(client, "import os; os.symlink('/etc/passwd', 'outputs/link'); os.mkfifo('outputs/p')")
    capsys.readouterr()
    assert main(["sync", sandbox_of(manager).directory.name]) == 0
    assert "Copied 2 changed files" in capsys.readouterr().out
    assert (folder / "outputs" / "a").read_text() == "now"
    assert (folder / "outputs" / "link").readlink() == Path("/etc/passwd")
    assert not (folder / "outputs" / "p").exists()
    assert ask(client, "1") == 1


def test_a_cut_stream_is_made_again_and_nothing_is_lost(
    survivor: tuple[Kernel, Path], cluster: FakeCluster
) -> None:
    """Cut in the middle of an output, several times."""
    (manager, client), _ = survivor
    sandbox = sandbox_of(manager)
    before = sandbox.pump.cuts
    request = client.execute(
        "import sys, time\n"
        "for i in range(30_000):\n"
        "    sys.stdout.write(f'{i:09d} ' * 10 + '\\n')\n"
        "print('the end')"
    )
    for _ in range(3):
        pod, cuts = cluster.only_pod(), sandbox.pump.cuts
        printed = pod.printed
        wait_until(lambda pod=pod, printed=printed: pod.printed > printed, "an output")
        cluster.cut()
        wait_until(lambda cuts=cuts: sandbox.pump.cuts > cuts, "another connection")
        execute_nothing(cluster)
    answer = finish(client, request)
    lines = answer.text.splitlines()
    assert lines[-1] == "the end"
    assert lines[:-1] == [f"{i:09d} " * 10 for i in range(30_000)]
    assert sandbox.pump.cuts >= before + 3


SPOIL = """
import threading, time
enough = threading.Event()
def spoil():
    with open("/proc/1/fd/1", "wb", 0) as stdout:
        while not enough.is_set():
            stdout.write(b"no packet" * 10)
            time.sleep(0.01)
threading.Thread(target=spoil).start()
"""


def test_a_kernel_that_spoils_its_connections_waits_for_the_next(
    survivor: tuple[Kernel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first process has the same uid, and so a stdout that a kernel can write to."""
    (manager, client), _ = survivor
    pauses: list[float] = []
    with monkeypatch.context() as patch:
        patch.setattr(sandbox_of(manager).pump, "_pause", pauses.append)
        client.execute(SPOIL)
        wait_until(lambda: pump.MAX_PAUSE_SECONDS in pauses, "the longest pause")
        execute(client, "enough.set()")
    assert ask(client, "1") == 1


def execute_nothing(cluster: FakeCluster) -> None:
    """Let the loop of the cluster turn once."""
    cluster.call(asyncio.sleep(0))


@needs_all
def test_a_kernel_survives_a_restart_of_the_api_server(
    survivor: tuple[Kernel, Path], cluster: FakeCluster
) -> None:
    """What it prints meanwhile is lost to the stream, and sent again."""
    (manager, client), _ = survivor
    sandbox = sandbox_of(manager)
    execute(client, "state = 'kept'")
    cuts, pod = sandbox.pump.cuts, cluster.only_pod()
    lost = pod.lost
    request = client.execute(
        "import time\nprint('begun', flush=True)\n"
        "for i in range(50):\n    time.sleep(0.02)\n    print(i, flush=True)\nprint(state)"
    )
    wait_for_text(client, "begun")
    cluster.stop()
    try:
        wait_until(lambda: pod.lost > lost, "an output that nobody was attached for")
    finally:
        cluster.start()
    wait_until(lambda: sandbox.pump.cuts > cuts, "another connection")
    answer = finish(client, request)
    assert answer.text.splitlines()[-51:] == [*map(str, range(50)), "kept"]


@needs_all
def test_a_stream_that_falls_silent_is_made_again(
    survivor: tuple[Kernel, Path], cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a node is lost without a word."""
    (manager, client), _ = survivor
    monkeypatch.setattr(pump, "SILENT_SECONDS", 4.0)
    cuts, attaches = sandbox_of(manager).pump.cuts, cluster.attaches
    cluster.mute = True
    try:
        request = client.execute("print('said meanwhile')")
        wait_until(lambda: cluster.attaches > attaches, "another attach")
    finally:
        cluster.mute = False
    assert finish(client, request).text == "said meanwhile\n"
    assert sandbox_of(manager).pump.cuts > cuts


@needs_all
def test_a_kernel_survives_twenty_seconds_without_a_cluster(
    survivor: tuple[Kernel, Path], cluster: FakeCluster
) -> None:
    (_, client), _ = survivor
    pod = cluster.only_pod()
    request = client.execute(
        "import time\nprint('begun', flush=True)\n"
        "for i in range(22):\n    time.sleep(1)\n    print('second', i, flush=True)"
    )
    wait_for_text(client, "begun")
    cluster.stop()
    pod.pieces = 0
    try:
        wait_until(lambda: pod.pieces >= 20, "twenty outputs that nobody was attached for")
    finally:
        cluster.start()
    answer = finish(client, request)
    assert answer.text.splitlines()[-22:] == [f"second {i}" for i in range(22)]


@needs_all
def test_a_large_output_is_not_held_in_memory(survivor: tuple[Kernel, Path]) -> None:
    """This process is client, bridge and cluster."""
    (_, client), _ = survivor
    before = read_peak()
    request = client.execute("for i in range(100):\n    print('x' * 999_999)\nprint('end')")
    seen = 0
    while True:
        message = client.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "stream":
            seen += len(message["content"]["text"])
        elif message["content"].get("execution_state") == "idle":
            break
    assert seen == 100_000_000 + 4
    assert client.get_shell_msg(timeout=60)["content"]["status"] == "ok"
    assert read_peak() - before < 60 << 20


def read_peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_the_memory_of_a_pod_is_known(survivor: tuple[Kernel, Path]) -> None:
    (manager, client), _ = survivor
    sandbox = sandbox_of(manager)
    execute(client, "held = bytearray(400 << 20)")
    wait_until(lambda: sandbox.memory_used() > 400 << 20, "the memory to be reported")
    execute(client, "del held")
    wait_until(lambda: sandbox.memory_used() < 400 << 20, "the memory to be given back")


def test_a_pod_has_no_network_and_no_token(
    survivor: tuple[Kernel, Path], cluster: FakeCluster
) -> None:
    (_, client), _ = survivor
    code = """
import os, socket
result = [os.path.exists("/var/run/secrets/kubernetes.io")]
for address in (("10.0.0.1", 443), ("1.1.1.1", 53)):
    try:
        socket.create_connection(address, 5)
        result.append("reached")
    except OSError as error:
        result.append(error.strerror)
"""
    assert execute(client, code).status == "ok"
    token, *reached = ask(client, "result")
    assert not token
    assert set(reached) <= {"Network is unreachable", "No route to host"}
    assert cluster.only_pod().content["spec"]["automountServiceAccountToken"] is False


def test_the_last_outputs_are_fetched(survivor: tuple[Kernel, Path]) -> None:
    """The fixture looks at them, after the end."""
    (_, client), _ = survivor
    assert execute(client, f"open('{OUTPUTS}/last', 'w').write('written last')").status == "ok"
