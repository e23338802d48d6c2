"""Kernels on nodes of real servers: where they run, what they see, how they end."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import LaunchError, SandboxError
from gvisor_kernel.jupyter.provisioner import GVisorProvisioner
from gvisor_kernel.runtimes.runsc.command_line import find_runsc

from ..jupyter.helpers import execute, finish, running_kernel, wait_for, wait_until
from ..sweeps import needs_all
from ..world import WAYS
from .cluster import Cluster, needs_slurm
from .conftest import Nodes, Start, ways
from .sshd import Sshd, needs_sshd

OUTPUTS = "/mnt/user-data/outputs"

both = ways(ssh=True, slurm=True)
mostly_slurm = ways(ssh=False, slurm=True)
"""For what the helper does: with ``--all`` over SSH, too."""


@pytest.fixture
def wrapper(tmp_path: Path) -> Iterator[Any]:
    """Write a script that stands for the node's Python, and runs ``lines`` before it."""

    def write(lines: str) -> dict[str, str]:
        path = tmp_path / "python"
        python = shlex.quote(sys.executable)
        path.write_text(f'#!/bin/sh\n{textwrap.dedent(lines)}\nexec {python} "$@"\n')
        path.chmod(0o755)
        return {"python": str(path)}

    return write


@both
def test_kernel_on_a_node(
    start: Start,
    folder: Path,
    nodes: Nodes,
    way: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Folders are the same, nothing of the server's environment is there, ``list`` names the node;
    a restart keeps the sandbox."""
    monkeypatch.setenv("A_SECRET", "hunter2")
    monkeypatch.setenv("FOR_KERNELS", "yes")
    (folder / "data.csv").write_text("1,2\n")
    with start(way, environment=["FOR_KERNELS"]) as (manager, client):
        code = f"""
        import os
        open('{OUTPUTS}/made', 'w').write('inside')
        print(open('data.csv').read().strip(), os.environ.get('FOR_KERNELS'),
              os.environ.get('A_SECRET'), os.listdir('/sys/class/net') if
              os.path.isdir('/sys/class/net') else ['lo'])
        kept = open('/tmp/kept', 'w')
        """
        assert execute(client, textwrap.dedent(code)).text == "1,2 yes None ['lo']\n"
        assert (folder / "outputs" / "made").read_text() == "inside"
        (helper,) = nodes.helpers()
        assert b"hunter2" not in Path(f"/proc/{helper}/environ").read_bytes()
        capsys.readouterr()
        assert main(["list", "--json"]) == 0
        (shown,) = json.loads(capsys.readouterr().out)
        assert shown["node"] in ("n1", "n2")
        assert shown["runtime"] == way
        assert shown["runsc"] == find_runsc().version.removeprefix("0.0~")
        manager.restart_kernel()
        client.wait_for_ready(timeout=60)
        assert execute(client, "import os; print(os.path.exists('/tmp/kept'))").text == "True\n"
        assert nodes.helpers() == [helper]


@mostly_slurm
def test_memory_is_bounded_on_the_node(start: Start, way: str) -> None:
    with start(way, memory_limit="300M") as (_, client):
        answer = client.execute("x = bytearray(400 << 20)\nx[::4096] = b'1' * len(x[::4096])")
        error = wait_for(client, lambda m: m["msg_type"] == "error", "an error")["content"]
        assert error["ename"] == "KernelDied"
        assert "its limit is 300" in error["evalue"]
        assert answer


@mostly_slurm
def test_folder_that_is_not_shared_is_refused(
    start: Start, folder: Path, wrapper: Any, way: str, tmp_path: Path
) -> None:
    """The node has another folder at that path."""
    hidden = wrapper(
        f"""
        if [ -z "$IN_NAMESPACE" ]; then
            IN_NAMESPACE=1 exec unshare --mount "$0" "$@"
        fi
        mount -t tmpfs none {folder}
        """
    )
    if os.geteuid() != 0:
        pytest.skip("only root mounts another folder")
    with (
        pytest.raises(LaunchError, match="of the server is another folder on the node"),
        start(way, **{way: hidden}),
    ):
        pass
    assert not (folder / "outputs").exists()


@both
def test_helper_that_cannot_run_is_reported(start: Start, wrapper: Any, way: str) -> None:
    """The reason is the node's own words."""
    broken = wrapper("echo 'No module named gvisor_kernel' >&2; exit 1")
    with pytest.raises(SandboxError) as raised, start(way, **{way: broken}):
        pass
    assert "No module named gvisor_kernel" in str(raised.value)


@needs_all
@both
def test_node_of_another_clock(start: Start, wrapper: Any, way: str, tmp_path: Path) -> None:
    """Nothing compares times of two machines. The node's clock is ten minutes ahead here."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nnow, now_ns = time.time, time.time_ns\n"
        "time.time = lambda: now() + 600\ntime.time_ns = lambda: now_ns() + 600 * 10**9\n"
    )
    ahead = wrapper(f"export PYTHONPATH={tmp_path}")
    with start(way, **{way: ahead}) as (_, client):
        assert execute(client, "6 * 7").result == "42"


@mostly_slurm
def test_killed_by_the_command(
    start: Start, way: str, capsys: pytest.CaptureFixture[str], nodes: Nodes
) -> None:
    """One that rests does not hibernate at the notice that its job is ended by that."""
    with start(way) as (manager, _):
        assert main(["list", "--json"]) == 0
        (shown,) = json.loads(capsys.readouterr().out)
        assert main(["kill", shown["id"]]) == 0
        wait_until(lambda: not manager.is_alive(), "the kernel's end")
        nodes.wait_until_clean()
    capsys.readouterr()
    with start(way) as (manager, client):
        assert main(["list", "--json"]) == 0
        (shown,) = json.loads(capsys.readouterr().out)
        client.execute("import time; time.sleep(600)")
        assert main(["kill", shown["id"]]) == 0
        error = wait_for(client, lambda m: m["msg_type"] == "error", "an error")["content"]
        assert error["ename"] == "KernelDied"
        ended = "The kernel's sandbox is gone: it was ended by `gvisor-kernel kill`."
        assert error["evalue"] == ended
        wait_until(lambda: not manager.is_alive(), "the kernel's end")


# -- SSH -------------------------------------------------------------------------------------------


class TestSsh:
    pytestmark = needs_sshd

    @needs_all
    def test_next_host_is_tried(self, start: Start, sshd: Sshd) -> None:
        """One host refuses connections, one has an unknown key."""
        with start("ssh", ssh={"hosts": ["dead", "stranger", "n1"]}) as (_, client):
            assert execute(client, "6 * 7").result == "42"

    def test_reasons_of_all_hosts_are_told(self, start: Start, sshd: Sshd) -> None:
        hosts = {"hosts": ["dead", "stranger", "nobody.invalid"]}
        with pytest.raises(LaunchError) as raised, start("ssh", ssh=hosts):
            pass
        text = str(raised.value)
        assert "dead: it does not answer" in text
        assert "stranger: its key is not the one that this user knows" in text
        assert "nobody.invalid: its name is not known" in text


def find_wait() -> str:
    """Return what a kernel of this process waits for; empty if none does."""
    found = [provisioner._kernel.describe() for provisioner in GVisorProvisioner.starting]
    return next((facts.waits_for for facts in found if facts and facts.waits_for), "")


# -- Slurm -----------------------------------------------------------------------------------------


class TestSlurm:
    pytestmark = needs_slurm

    @needs_all
    def test_job_has_the_kernels_limits(self, start: Start, cluster: Cluster) -> None:
        with start("slurm", memory_limit="512M", cpu_shares=2048) as (_, client):
            assert execute(client, "6 * 7").result == "42"
            asked = cluster.ask("squeue", "-h", "-o", "%m %C %j")
            assert asked.split() == ["832M", "2", "gvisor-kernel"]

    def test_kernel_waits_for_resources_and_says_so(self, start: Start, cluster: Cluster) -> None:
        """Other jobs fill both nodes. One kernel gives up; one waits behind somebody else's job."""
        told: list[str] = []

        def make_room() -> None:
            wait_until(find_wait, "a kernel that waits")
            told.append(find_wait())
            for job in (*others, *running):
                cluster.ask("scancel", job)

        running = [cluster.submit("--mem=9500M", "sleep 600") for _ in range(2)]
        wait_until(lambda: cluster.states() == ["mixed", "mixed"], "two full nodes")
        with (
            pytest.raises(LaunchError, match=r"job \d+ .* no resources within 2 s: Resources\."),
            start("slurm", slurm={"wait": 2}),
        ):
            pass
        assert sorted(cluster.jobs()) == sorted(running)
        others = [cluster.submit("--mem=9500M", "sleep 600")]
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(make_room)
            with start("slurm") as (_, client):
                assert execute(client, "6 * 7").result == "42"
            done.result()
        assert re.fullmatch(r"waiting for resources: job \d+, 1 before it", told[0])

    def test_job_that_no_node_can_have_is_refused(self, start: Start, cluster: Cluster) -> None:
        with (
            pytest.raises(LaunchError, match="Slurm cannot run such a job"),
            start("slurm", memory_limit="100G"),
        ):
            pass
        cluster.ask("scontrol", "update", "PartitionName=k", "MaxTime=10")
        try:
            with (
                pytest.raises(LaunchError, match="s: PartitionTimeLimit") as caught,
                start("slurm", slurm={"time": "20", "wait": 2}),
            ):
                pass
        finally:
            cluster.ask("scontrol", "update", "PartitionName=k", "MaxTime=INFINITE")
        assert "scontrol show partition" in caught.value.hint

    @needs_all
    @pytest.mark.timeout(900)
    def test_forty_kernels_at_once(self, cluster: Cluster, folder: Path) -> None:
        """All answer; the cluster's memory is enough for all of them on two nodes."""
        settings = {**WAYS["slurm"], "memory_limit": "160M", "start_timeout": 600}
        with ExitStack() as stack, ThreadPoolExecutor(8) as pool:

            def run_one(_: int) -> str:
                kernel = running_kernel(settings=settings, start={"cwd": str(folder)})
                _, client = stack.enter_context(kernel)
                return finish(client, client.execute("6 * 7")).result

            assert list(pool.map(run_one, range(40))) == ["42"] * 40


# -- the commands ----------------------------------------------------------------------------------


def test_doctor_tells_of_each_host(sshd: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--runtime", "ssh", "--json"]) == 0
    (check,) = json.loads(capsys.readouterr().out)["checks"]
    assert re.fullmatch(r"the node \S+ has runsc \S+, and the same gvisor-kernel", check["fact"])
