"""Kernels of nodes that hibernate: their images come to the server, and go to a node again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from gvisor_kernel import Sandbox
from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import LaunchError, SnapshotError
from gvisor_kernel.kernel import job_end, moves
from gvisor_kernel.runtimes.nodes.client import Client
from gvisor_kernel.runtimes.nodes.copies import fetch_image
from gvisor_kernel.runtimes.runsc.command_line import find_runsc
from gvisor_kernel.runtimes.runsc.needs import (
    MAX_READ,
    check_needs,
    digest_file,
    find_needs,
    read_needs,
)
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.kept_packages import list_installed

from ..jupyter.helpers import wait_until
from ..jupyter.test_taken_over import run
from ..patience import scale_seconds
from ..server.clients import Client as Rest
from ..server.test_hibernation import run as run_cell
from ..server.test_hibernation import serving
from ..server.test_hibernation import start as start_notebook
from ..sweeps import needs_all
from ..world import PROJECT, WAYS
from .cluster import Cluster
from .conftest import Nodes, ways
from .sshd import Sshd

usually_ssh = ways(ssh=True, slurm=False)
BEGIN = """
import os, subprocess, threading, queue
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
asked, answers = queue.Queue(), queue.Queue()
threading.Thread(target=lambda: [answers.put(asked.get() + 1) for _ in iter(int, 1)],
                 daemon=True).start()
open("/workspace/made", "w").write("kept"); open("/tmp/made", "w").write("too")
import numpy; table = numpy.arange(1 << 20); pid = os.getpid()
"""
GO_ON = """
child.stdin.write(b"line\\n"); child.stdin.flush(); asked.put(41)
(child.stdout.readline(), answers.get(timeout=20), open("/workspace/made").read(),
 open("/tmp/made").read(), int(table.sum()), float(numpy.linalg.det(numpy.eye(3))),
 os.getpid() == pid)
"""
GOES_ON = repr((b"line\n", 42, "kept", "too", sum(range(1 << 20)), 1.0, True))


@usually_ssh
def test_kernel_goes_on_from_the_servers_image(way: str, folder: Path, nodes: Nodes) -> None:
    """Nothing of it is on the node while it hibernates. Where the node has another library, it does
    not go on, says so, and stays saved."""
    with Sandbox(uploads=folder, outputs=folder.parent / "out", **WAYS[way]) as sandbox:
        assert sandbox.run(BEGIN).ok
        sandbox.hibernate()
        ((directory, record),) = records.find_sandboxes()
        assert nodes.left() == [str(directory)]
        assert record.saved
        place = directory / "saved" / "image" / "needs.json"
        text = place.read_bytes()
        needs = read_needs(text)
        library = next(path for path in needs.files if "numpy" in path)
        place.write_bytes(text.replace(needs.files[library].encode(), b"0" * 64))
        error = sandbox.run("1").error
        assert error is not None
        assert f"has not what the kernel uses, or another version: {library}" in error.value
        assert sandbox.is_hibernated
        assert nodes.left() == [str(directory)]
        place.write_bytes(text)
        execution = sandbox.run(GO_ON)
        assert (execution.text, execution.error) == (GOES_ON, None)
        assert len(nodes.helpers()) == 1
        assert nodes.copies() == []
    nodes.wait_until_clean()


def test_what_a_machine_lacks_is_named(tmp_path: Path) -> None:
    library, folder = tmp_path / "it.so", tmp_path / "site-packages"
    library.write_bytes(b"\x7fELF")
    (folder / "it-1.0.dist-info").mkdir(parents=True)
    status = library.stat()
    stamps = {str(library): (status.st_size, status.st_mtime_ns, status.st_ino)}
    packages = {str(folder): list_installed(str(folder))}
    program = find_runsc().program
    needs = find_needs(program, stamps, packages)
    assert check_needs(needs) == program
    assert check_needs(replace(needs, program="/gone\n1", cpu=needs.cpu[:1])) == program
    endless = tmp_path / "endless.so"
    with endless.open("wb") as file:
        file.truncate(MAX_READ + 1)
    for lacking, words in (
        (replace(needs, files={str(endless): "0"}), "libraries of more than"),
        (replace(needs, cpu=(*needs.cpu, "avx1024")), "lacks what the kernel may use: avx1024"),
        (replace(needs, runsc="0" * 64), f"has not the runsc .*{needs.version}"),
        (replace(needs, files={"/dev/zero": "0"}), "another version: /dev/zero"),
    ):
        with pytest.raises(SnapshotError, match=words):
            check_needs(lacking)
    (folder / "it-1.0.dist-info").rename(folder / "it-2.0.dist-info")
    library.write_bytes(b"\x7fELFelse")
    with pytest.raises(SnapshotError, match=r"it\.so, it-1\.0\.dist-info"):
        check_needs(needs)
    assert digest_file(str(library)) != needs.files[str(library)]


def test_image_of_a_node_is_regular_files_and_whole(tmp_path: Path) -> None:
    code = """
import sys
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.runtimes.copies.contents import Contents
from gvisor_kernel.runtimes.nodes.orders import Piece, write_fact
heard = [sys.stdin.readline()]
with open_path(sys.argv[1]) as opened:
    archive = Contents(folders=[(".", opened, "image")]).archive(1 << 30)
    for number, data in enumerate([*filter(None, archive), b""]):
        piece = Piece(number, data, sys.argv[3] * (not data))
        sys.stderr.buffer.write(write_fact(piece) * (number != int(sys.argv[2])))
sys.stderr.flush()
print(*heard, sys.stdin.readline(), file=open(sys.argv[1] + ".heard", "w"))
"""
    sent, image = tmp_path / "sent", tmp_path / "image"
    sent.mkdir()
    image.mkdir()

    def fetch(lost: int = -1, error: str = "") -> None:
        argv = [sys.executable, "-c", code, str(sent), str(lost), error]
        client = Client(argv, dict(os.environ), tmp_path / "log")
        try:
            fetch_image(client, b"word\n", image, scale_seconds(10))
            assert client.has_ended(scale_seconds(10))
        finally:
            client.abandon(())

    (sent / "pages.img").write_bytes(os.urandom(600_000))
    fetch()
    assert (image / "pages.img").read_bytes() == (sent / "pages.img").read_bytes()
    assert (tmp_path / "sent.heard").read_text().split() == ["word", "word"]
    (image / "pages.img").unlink(missing_ok=True)
    for arguments, words in (
        ({"lost": 2}, "A part was lost"),
        ({"error": "The\x1b[2J disk is full."}, r"saved: The\[2J disk is full\."),
    ):
        with pytest.raises(SnapshotError, match=words):
            fetch(**arguments)  # type: ignore[arg-type]
        (image / "pages.img").unlink(missing_ok=True)
    (sent / "link").symlink_to("/etc/passwd")
    with pytest.raises(SnapshotError, match="The node has sent something else"):
        fetch()


def test_image_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    """A node that sends nothing, or little pieces without end."""
    code = """
import itertools, sys, time
from gvisor_kernel.runtimes.nodes.orders import Piece, write_fact
sys.stdin.readline()
for number in itertools.count():
    sys.stderr.buffer.write(write_fact(Piece(number, bytes(1))) * (sys.argv[1] == "drips"))
    sys.stderr.flush()
    time.sleep(0.01)
"""
    for kind in ("silent", "drips"):
        image = tmp_path / kind
        image.mkdir()
        client = Client([sys.executable, "-c", code, kind], dict(os.environ), tmp_path / "log")
        try:
            with pytest.raises(SnapshotError, match="has not sent all of it in time"):
                fetch_image(client, b"word\n", image, 1.0)
        finally:
            client.abandon(())


@pytest.fixture
def here(folder: Path, sshd: Sshd) -> Iterator[Sandbox]:
    """A kernel of this machine, which may be moved by the server's ``ssh``."""
    settings = {"snapshot": "off", "ssh": {**sshd.settings["ssh"], "hosts": ["n1", "dead"]}}
    with Sandbox(uploads=folder, outputs=folder.parent / "out", **settings) as sandbox:
        assert sandbox.run(BEGIN).ok
        yield sandbox


@ways(ssh=True)
def test_kernel_moves_to_a_node_and_back(
    way: str,
    here: Sandbox,
    nodes: Nodes,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before, it is refused by a host that is not configured, and by one that does not answer:
    before it was saved, and after."""
    ((directory, record),) = records.find_sandboxes()

    def move(to: str) -> str:
        assert main(["move", record.container_id, "--to", to]) == (to not in ("n1", "local"))
        return capsys.readouterr().err

    assert "dead" in move("dead")
    assert "elsewhere.org is no host of the setting ssh" in move("elsewhere.org")
    with pytest.raises(LaunchError, match="The setting slurm does not say"):
        here.move("slurm")
    assert records.find_sandboxes() == [(directory, record)]
    with monkeypatch.context() as patch:
        patch.setattr(moves, "_check", lambda *_: None)
        assert "The kernel could not go on from there, and goes on as it was" in move("dead")
    assert here.run(GO_ON).text == GOES_ON
    for to, helpers in (("n1", 1), ("local", 0)):
        move(to)
        execution = here.run(GO_ON)
        assert (execution.text, execution.error) == (GOES_ON, None)
        assert len(nodes.helpers()) == helpers
        ((place, now),) = records.find_sandboxes()
        assert (place, now.identity) == (directory, record.identity)
        assert now.node == ("n1" if helpers else None)
        assert nodes.copies() == []


@ways(slurm=False)
@pytest.mark.parametrize("door", ["command", "program"])
def test_kernel_moves_to_a_job_and_back(
    way: str, door: str, folder: Path, cluster: Cluster, nodes: Nodes
) -> None:
    settings = {"snapshot": "off", "slurm": WAYS[way][way]}
    with Sandbox(uploads=folder, outputs=folder.parent / "out", **settings) as sandbox:
        assert sandbox.run(BEGIN).ok
        ((_, record),) = records.find_sandboxes()
        for to, jobs in (("slurm", 1), ("local", 0)):
            if door == "program":
                sandbox.move(to)
            else:
                assert main(["move", record.container_id, "--to", to]) == 0
            wait_until(lambda jobs=jobs: len(cluster.jobs()) == jobs, "the job")
            execution = sandbox.run(GO_ON)
            assert (execution.text, execution.error) == (GOES_ON, None)
            assert len(nodes.helpers()) == jobs


@ways(ssh=False, slurm=False)
def test_moved_kernel_outlives_its_server(way: str, folder: Path, nodes: Nodes) -> None:
    """The next server takes it back where it was, if its configuration allows that place."""
    (folder / "n").mkdir()
    options = ("--GVisorProvisioner.snapshot=off", f"--GVisorProvisioner.{way}={WAYS[way][way]!r}")
    with serving(folder, *options) as server:
        session = start_notebook(server)
        kernel = session["kernel"]["id"]
        with server.page(kernel) as page:
            run_cell(page, "x = 5; print()")
        to = "slurm" if way == "slurm" else WAYS[way][way]["hosts"][0]
        answer = Rest(server).ask("POST", f"kernels/{kernel}/move", json={"to": to})
        assert (answer.status_code, len(nodes.helpers())) == (204, 1)
    with serving(folder, options[0]) as server, server.page(kernel) as page:
        assert f"{way} (runtime)" in run_cell(page, "print(x)")
    with serving(folder, *options) as server:
        with server.page(kernel) as page:
            assert run_cell(page, "print(x)") == "5\n"
        assert len(nodes.helpers()) == 1
        server.ask("DELETE", f"sessions/{session['id']}")
    nodes.wait_until_clean()


@ways(slurm=False)
def test_kernel_goes_on_in_the_next_job(
    way: str, folder: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the time of its job is over it hibernates, if it has nothing to do."""
    monkeypatch.setattr(job_end, "LAST_SECONDS", 3600.0)
    monkeypatch.setattr(job_end, "SHARE", 1.0)  # at once
    slurm = {**WAYS[way][way], "time": "30"}
    settings = {**WAYS[way], way: slurm}
    with Sandbox(uploads=folder, outputs=folder.parent / "out", **settings) as sandbox:
        assert sandbox.run(BEGIN).ok
        wait_until(lambda: sandbox.is_hibernated, "its sleep", 120)
        wait_until(lambda: cluster.jobs() == [], "an end of the job")
        assert sandbox.run(GO_ON).text == GOES_ON


def preempt(cluster: Cluster, job: str, grace: int) -> None:
    cluster.ask("scontrol", "update", "PartitionName=k", f"GraceTime={grace}")
    node = cluster.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
    cluster.submit("--partition=urgent", "--mem=9900", f"--nodelist={node}", "sleep 600")


CAUSES: dict[str, Callable[[Cluster, str], object]] = {
    "cancelled": lambda cluster, job: cluster.ask("scancel", job),
    "preempted": lambda cluster, job: preempt(cluster, job, 60),
    "preempted at once": lambda cluster, job: preempt(cluster, job, 0),
    "signal": lambda cluster, job: cluster.ask("scancel", "--signal=USR1", job),
    "time": lambda cluster, job: cluster.ask("scontrol", "update", f"JobId={job}", "EndTime=now"),
}


@pytest.mark.parametrize(
    "cause", [it if it == "cancelled" else pytest.param(it, marks=needs_all) for it in CAUSES]
)
@ways(slurm=True)
def test_kernel_of_a_job_that_is_ended_goes_on_in_the_next_one(
    way: str, cause: str, folder: Path, cluster: Cluster, nodes: Nodes
) -> None:
    """Slurm's notice comes while it works. Slurm starts no job again that srun has started."""
    begun, out = "open('/mnt/user-data/outputs/begun', 'w').close()", folder.parent / "out"
    with (
        Sandbox(uploads=folder, outputs=out, **WAYS[way]) as sandbox,
        ThreadPoolExecutor(1) as pool,
    ):
        assert sandbox.run(BEGIN).ok
        (job,) = cluster.jobs()
        assert "Only batch jobs" in cluster.ask("sh", "-c", f"scontrol requeue {job} 2>&1")
        running = pool.submit(sandbox.run, f"{begun}; import time; time.sleep(3)")
        wait_until((out / "begun").exists, "a cell that runs")
        CAUSES[cause](cluster, job)
        assert running.result(60).ok
        wait_until(lambda: sandbox.is_hibernated, "its sleep", 60)
        wait_until(lambda: job not in cluster.jobs(), "an end of the job", 60)
        for other in cluster.jobs():
            cluster.ask("scancel", other)
        assert nodes.sentries() == []
        execution = sandbox.run(GO_ON)
        assert (execution.text, execution.error) == (GOES_ON, None)
        assert cluster.jobs() != [job]


@ways(ssh=False)
def test_kernel_outlives_its_server(
    way: str, folder: Path, monkeypatch: pytest.MonkeyPatch, nodes: Nodes
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    kernel_id = str(uuid4())
    assert run("leave", kernel_id, folder, **WAYS[way])[0] == ["1 None", "None"]
    assert run("take over", kernel_id, folder, **WAYS[way])[0] == ["2 None"]
    nodes.wait_until_clean()
