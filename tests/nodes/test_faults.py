"""What dies on the way to a node: the cell says why, other kernels go on, and nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import AsyncKernelManager, BlockingKernelClient
from traitlets.config import Config

from gvisor_kernel.bridge import sleep
from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import LaunchError, SandboxError
from gvisor_kernel.host import processes
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.listed import find_state
from gvisor_kernel.runtimes.state.records import Record

from ..jupyter.helpers import execute, wait_for, wait_for_text, wait_until
from ..sweeps import needs_all
from ..world import PROJECT, WAYS
from .cluster import NODES, Cluster, needs_slurm
from .conftest import Nodes, Start, ways
from .sshd import Sshd, needs_sshd

RUNNING = "print('running', flush=True)\nimport time; time.sleep(600)"

START = (
    "import sys, json; sys.path.insert(0, sys.argv[1])\n"
    "from jupyter_client import KernelManager; from traitlets.config import Config\n"
    "manager = KernelManager(kernel_name='gvisor-python', connection_file=sys.argv[3],"
    " config=Config({'GVisorProvisioner': json.loads(sys.argv[2])}))\n"
    "manager.start_kernel()\n"
)
SERVE = (
    f"{START}client = manager.client(); client.start_channels()\n"
    "client.wait_for_ready(timeout=120); print('ready', flush=True); sys.stdin.read()\n"
)


def death_of(client: BlockingKernelClient, cause: Callable[[], object]) -> str:
    """Run a long cell, do ``cause``, and return what the cell says then."""
    client.execute(RUNNING)
    wait_for_text(client, "running")
    cause()
    error = wait_for(client, lambda m: m["msg_type"] == "error", "an error", 120)["content"]
    assert error["ename"] == "KernelDied"
    return str(error["evalue"])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def child_named(name: str, above: int) -> int:
    """Return the process called ``name`` that is above another one."""
    while above > 1:
        status = Path(f"/proc/{above}/status").read_text()
        if status.startswith(f"Name:\t{name}"):
            return above
        above = int(status.split("PPid:")[1].split()[0])
    raise AssertionError(f"There is no {name}.")


both = ways(ssh=True, slurm=True)


# -- both ------------------------------------------------------------------------------------------


@both
def test_helper_is_killed(start: Start, nodes: Nodes, way: str) -> None:
    """What it leaves is removed by the process that it has started, or by the server."""
    with start(way) as (_, client):
        reason = death_of(client, lambda: kill(*nodes.helpers()))
        assert reason.startswith("The kernel's sandbox is gone: ")


@both
@needs_all
def test_sentry_is_killed(start: Start, nodes: Nodes, way: str) -> None:
    with start(way) as (_, client):
        reason = death_of(client, lambda: kill(*nodes.sentries()))
        assert reason.startswith("The kernel's sandbox is gone: ")


@both
def test_client_is_killed(start: Start, nodes: Nodes, way: str) -> None:
    with start(way) as (_, client):
        pid = nodes.clients("ssh" if way == "ssh" else "srun")[0]  # srun has a child
        reason = death_of(client, lambda: kill(pid))
        assert "signal 9" in reason


@both
def test_server_is_killed(nodes: Nodes, way: str, folder: Path) -> None:
    """A minute later nothing is left on the node, nor on the server's own machine."""
    argv = [sys.executable, "-c", SERVE, str(PROJECT), json.dumps(WAYS[way])]
    argv.append(str(folder / "connection.json"))
    with subprocess.Popen(
        argv, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        assert nodes.sentries()
        server.kill()
    nodes.wait_until_clean()


@both
def test_full_disk_of_the_node(start: Start, way: str, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k,mode=700", "none", disk], check=True)
    try:
        with (
            pytest.raises(SandboxError, match=r"No space left on device|disk is full"),
            start(way, **{way: {"state": str(disk)}}),
        ):
            pass
    finally:
        subprocess.run(["umount", disk], check=True)


# -- SSH -------------------------------------------------------------------------------------------


class TestSsh:
    pytestmark = needs_sshd

    @pytest.mark.parametrize("seconds", [1, pytest.param(20, marks=needs_all)])
    def test_network_is_cut_for_a_while(
        self, start: Start, sshd: Sshd, nodes: Nodes, seconds: int
    ) -> None:
        """Nothing is lost of what is sent meanwhile."""
        with start("ssh") as (_, client):
            sessions = processes.read_descendants(sshd.pid)
            carriers = [pid for pid in sessions if _name(pid).startswith("sshd-session")]
            assert carriers
            for pid in carriers:
                os.kill(pid, signal.SIGSTOP)
            try:
                asked = client.execute("print('after the cut')")
                ended = subprocess.Popen(["sleep", str(seconds)])
                ended.wait()
            finally:
                for pid in carriers:
                    os.kill(pid, signal.SIGCONT)
            wait_for_text(client, "after the cut")
            assert asked

    def test_network_is_cut_for_good(
        self, start: Start, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server gives the kernel up after its patience; the node does so by itself."""
        monkeypatch.setattr(sleep, "WAIT_SECONDS", 0.5)
        with start("ssh") as (_, client):
            carriers = [
                pid
                for pid in processes.read_descendants(sshd.pid)
                if _name(pid).startswith("sshd-session")
            ]

            def cut() -> None:
                for pid in carriers:
                    os.kill(pid, signal.SIGSTOP)

            try:
                reason = death_of(client, cut)
            finally:
                for pid in carriers:
                    os.kill(pid, signal.SIGCONT)
            assert reason.startswith("The kernel's sandbox is gone: ")

    @needs_all
    def test_sshd_is_stopped(self, start: Start, sshd: Sshd) -> None:
        """Sessions that run go on; a new kernel gets the reason; later all is well again."""
        with start("ssh") as (_, client):
            sshd.stop()
            try:
                assert execute(client, "6 * 7").result == "42"
            finally:
                sshd.start()
            assert execute(client, "6 * 7").result == "42"


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


# -- Slurm -----------------------------------------------------------------------------------------


class TestSlurm:
    pytestmark = needs_slurm

    def test_waiting_job_ends_with_its_start(
        self, cluster: Cluster, nodes: Nodes, folder: Path
    ) -> None:
        """Of a start that is cancelled, and of a server that is ended. srun then reads nothing.

        A restart meanwhile takes the place of the first start. Whoever waits for a start that is
        replaced, shut down or killed gets an answer."""
        full = [cluster.submit("--mem=9500M", "sleep 600") for _ in range(2)]
        wait_until(lambda: cluster.states() == ["mixed", "mixed"], "two full nodes")

        async def start() -> tuple[AsyncKernelManager, asyncio.Future[Any], str]:
            config = Config({"GVisorProvisioner": WAYS["slurm"]})
            manager = AsyncKernelManager(kernel_name="gvisor-python", config=config)
            starting: asyncio.Future[Any] = asyncio.ensure_future(
                manager.start_kernel(cwd=str(folder))
            )
            return manager, starting, await find_job()

        async def find_job(but: str = "") -> str:
            def find() -> list[str]:
                return [] if not clients() else sorted({*cluster.jobs()} - {*full, but})

            (job,) = await asyncio.to_thread(wait_until, find, "a job that waits")
            return str(job)

        async def cancel() -> None:
            _, starting, _ = await start()
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting

        async def restart() -> None:
            manager, starting, first = await start()
            interrupting: asyncio.Future[Any] = asyncio.ensure_future(manager.interrupt_kernel())
            restarting: asyncio.Future[Any] = asyncio.ensure_future(manager.restart_kernel())
            job = await find_job(first)
            assert not restarting.done()
            with pytest.raises(RuntimeError, match="No kernel is running"):
                await asyncio.wait_for(interrupting, 60)
            await manager.shutdown_kernel(now=True)
            for call in (starting, restarting):
                with pytest.raises(Exception, match="invalid state") as raised:  # jupyter_client's
                    await asyncio.wait_for(call, 60)
                assert "shut down or started again" in str(raised.value.__context__)
            assert job not in cluster.jobs()
            assert manager.ready.exception() is None

        async def kill_by_command() -> None:
            _, starting, _ = await start()
            (record,) = clients()
            assert find_state(record) == "starting"
            assert await asyncio.to_thread(main, ["kill", record.container_id]) == 0
            with pytest.raises(LaunchError, match="it was ended by `gvisor-kernel kill`"):
                await starting

        for end in (cancel, restart, kill_by_command):
            asyncio.run(end())
            nodes.wait_until_clean()
            assert sorted(cluster.jobs()) == sorted(full)
        argv = [sys.executable, "-c", START, str(PROJECT), json.dumps(WAYS["slurm"])]
        argv.append(str(folder / "connection.json"))
        for signum in (signal.SIGKILL, signal.SIGTERM):
            with subprocess.Popen(argv, cwd=folder) as server:
                wait_until(clients, "a client of the job")
                wait_until(lambda: len(cluster.jobs()) == 3, "a job that waits")
                server.send_signal(signum)
            nodes.wait_until_clean()
            assert sorted(cluster.jobs()) == sorted(full)
        for job in full:
            cluster.ask("scancel", job)

    def test_job_is_cancelled(self, start: Start, cluster: Cluster) -> None:
        """One that cannot hibernate."""
        with start("slurm", slurm={"files": "copy"}) as (manager, client):
            (job,) = cluster.jobs()
            reason = death_of(client, lambda: cluster.ask("scancel", job))
            assert reason == "The kernel's sandbox is gone: the job was cancelled."
            manager.restart_kernel()
            client.wait_for_ready(timeout=120)
            assert execute(client, "6 * 7").result == "42"

    @needs_all
    def test_node_is_drained(self, start: Start, cluster: Cluster) -> None:
        """A kernel there goes on; a new one gets the other node."""
        with start("slurm") as (manager, client):
            node = _node_of(manager)
            cluster.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
            try:
                assert execute(client, "6 * 7").result == "42"
                with start("slurm") as (other, second):
                    assert execute(second, "6 * 7").result == "42"
                    assert _node_of(other) != node
            finally:
                cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
        cluster.wait_until_idle()

    @needs_all
    def test_controller_is_killed_and_comes_back(self, start: Start, cluster: Cluster) -> None:
        with start("slurm") as (_, client):
            cluster.kill("slurmctld")
            assert execute(client, "6 * 7").result == "42"
            with (
                pytest.raises(SandboxError, match="controller does not answer"),
                start("slurm", slurm={"wait": 20}),
            ):
                pass
            cluster.start_controller()
            wait_until(lambda: len(cluster.states()) == 2, "the controller")
            assert execute(client, "6 * 7").result == "42"
        # It knows what it had saved some seconds before its end: nodes and jobs as they were then.
        cluster.ask("scontrol", "update", f"NodeName={','.join(NODES)}", "State=RESUME")
        for job in cluster.jobs():
            cluster.ask("scancel", job)
        cluster.wait_until_idle()

    @needs_all
    def test_node_daemon_is_killed(self, start: Start, cluster: Cluster, nodes: Nodes) -> None:
        """Slurm notices after half a minute. The sandbox ends, whoever noticed first."""
        with start("slurm") as (manager, client):
            node = _node_of(manager)
            reason = death_of(client, lambda: cluster.kill(node))
            assert "node has failed" in reason
            cluster.start_node(node)
            cluster.wait_until_idle()
        # Slurm ends the helper later than the server has asked the node to remove what is left.
        wait_until(lambda: nodes.helpers() == [], "the end of the job")
        with start("slurm"):
            pass

    @needs_all
    def test_step_daemon_is_killed(
        self, start: Start, cluster: Cluster, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """srun notices nothing for long; the link's patience does."""
        monkeypatch.setattr(sleep, "WAIT_SECONDS", 0.5)
        with start("slurm") as (_, client):
            (helper,) = nodes.helpers()
            reason = death_of(client, lambda: kill(child_named("slurmstepd", helper)))
            assert reason.startswith("The kernel's sandbox is gone: ")
        wait_until(lambda: cluster.jobs() == [], "an empty queue", 120)


def clients() -> list[Record]:
    """Return the records of sandboxes that have a client."""
    return [record for _, record in records.find_sandboxes() if "client" in record.processes]


def _node_of(manager: Any) -> str:
    return str(manager.provisioner._kernel.sandbox._record.node)
