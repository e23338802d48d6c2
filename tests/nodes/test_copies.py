"""Kernels on nodes that share no files with the server: these are copied there and back.

The node's helper runs in a mount namespace where the notebook's folder is an empty one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import LaunchError, SandboxError, SettingError

from ..jupyter.helpers import execute, wait_for, wait_until
from ..sweeps import needs_all
from ..world import PROJECT, WAYS
from .cluster import Cluster
from .conftest import Nodes, Start, ways
from .test_faults import SERVE, death_of, kill

OUTPUTS = "/mnt/user-data/outputs"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts another folder")

both = ways(ssh=True, slurm=True)
all_both = ways(ssh=False, slurm=False)
mostly_ssh = ways(ssh=True, slurm=False)
only_ssh = ways(ssh=True)


@pytest.fixture
def far(tmp_path: Path, folder: Path, way: str) -> dict[str, Any]:
    """The settings of a node that has an empty folder at the path of the notebook's."""
    path = tmp_path / "python"
    script = f"""\
        #!/bin/sh
        if [ -z "$IN_NAMESPACE" ]; then
            IN_NAMESPACE=1 exec unshare --mount "$0" "$@"
        fi
        mount -t tmpfs none {folder}
        exec {shlex.quote(sys.executable)} "$@"
        """
    path.write_text(textwrap.dedent(script))
    path.chmod(0o755)
    return {way: {"python": str(path), "files": "copy"}}


def read(folder: Path) -> dict[str, str]:
    """Return the texts of the outputs, by name."""
    return {path.name: path.read_text() for path in (folder / "outputs").iterdir()}


def find_id(capsys: pytest.CaptureFixture[str], state: str = "running") -> str:
    """Return the id of the only sandbox that ``list`` shows."""
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["state"] == state
    return str(shown["id"])


@both
def test_files_are_copied_there_and_back(
    start: Start,
    far: dict[str, Any],
    folder: Path,
    way: str,
    nodes: Nodes,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Uploads and earlier outputs are read; outputs come at ``sync``, and the rest at the end. What
    a kernel leaves there is hostile."""
    (folder / "data.csv").write_text("1,2")
    (folder / "outputs").mkdir()
    (folder / "outputs" / "earlier").write_text("kept")
    os.utime(folder / "outputs" / "earlier", (1, 1))
    (folder / "victim").write_text("of the host")
    os.mkfifo(folder / "pipe")
    with start(way, **far) as (_, client):
        code = f"""
        import os
        out = '{OUTPUTS}'
        print(open('data.csv').read(), open(f'{{out}}/earlier').read(), os.listdir('outputs'))
        open('outputs/made', 'w').write('first')
        """
        assert execute(client, textwrap.dedent(code)).text == "1,2 kept ['earlier']\n"
        assert read(folder) == {"earlier": "kept"}
        (copy,) = nodes.copies()
        assert copy.stat().st_mode & 0o777 == 0o700
        assert main(["sync", find_id(capsys)]) == 0
        assert "Copied 1 changed files" in capsys.readouterr().out
        assert read(folder) == {"earlier": "kept", "made": "first"}
        assert main(["hibernate", find_id(capsys)]) == 1
        assert "The kernel's files were copied to its node" in capsys.readouterr().err
        (folder / "outputs" / "earlier").write_text("changed on the host")
        code = f"""
        os.chdir('{OUTPUTS}')
        open('made', 'w').write('second, later')
        os.symlink('{folder}/victim', 'link'); os.symlink('/etc', 'etc'); os.mkfifo('pipe')
        open('line\\nbreak', 'w').write('x'); open(b'\\xff', 'w').write('x')
        os.symlink('../victim', 'above')
        """
        execute(client, textwrap.dedent(code))
    assert f"1 files of {folder} were not copied to the node" in caplog.text
    assert re.search("2 of the outputs of .* were not copied", caplog.text)
    outputs = folder / "outputs"
    assert (outputs / "made").read_text() == "second, later"
    assert (outputs / "earlier").read_text() == "changed on the host"
    assert (folder / "victim").read_text() == "of the host"
    assert sorted(p.name for p in outputs.iterdir()) == ["above", "earlier", "etc", "link", "made"]
    assert (outputs / "link").is_symlink()


@all_both
def test_outputs_come_back_after_the_helper_was_killed(
    start: Start, far: dict[str, Any], folder: Path, way: str, nodes: Nodes
) -> None:
    with start(way, **far) as (_, client):
        execute(client, f"open('{OUTPUTS}/made', 'w').write('inside')")
        reason = death_of(client, lambda: kill(*nodes.helpers()))
        assert reason.startswith("The kernel's sandbox is gone: ")
    nodes.wait_until_clean()
    assert read(folder) == {"made": "inside"}


@all_both
@pytest.mark.parametrize("what", ["sentry", "client", "kernel"])
def test_outputs_come_back_after_a_death(
    start: Start, far: dict[str, Any], folder: Path, way: str, nodes: Nodes, what: str
) -> None:
    """A dead kernel is followed by another one in the same sandbox."""

    def end() -> None:
        if what == "sentry":
            kill(*nodes.sentries())
        else:
            kill(nodes.clients("ssh" if way == "ssh" else "srun")[0])

    with start(way, **far) as (manager, client):
        execute(client, f"open('{OUTPUTS}/made', 'w').write('inside')")
        if what == "kernel":
            client.execute("import os; os.kill(os.getpid(), 9)")
            wait_for(client, lambda m: m["msg_type"] == "error", "an error", 120)
            manager.restart_kernel()
            client.wait_for_ready(timeout=120)
            assert execute(client, f"open('{OUTPUTS}/made').read()").result == "'inside'"
        else:
            death_of(client, end)
            manager.restart_kernel()
            client.wait_for_ready(timeout=120)
            assert execute(client, f"open('{OUTPUTS}/made').read()").result == "'inside'"
    nodes.wait_until_clean()
    assert read(folder) == {"made": "inside"}


@ways(slurm=True)
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("scancel {}", "the job was cancelled"),
        pytest.param(
            "scontrol update JobId={} EndTime=now",
            "Slurm has ended the job: its time is over",
            marks=needs_all,
        ),
    ],
)
def test_job_that_slurm_ends_says_why_and_leaves_its_outputs(
    start: Start,
    far: dict[str, Any],
    folder: Path,
    cluster: Cluster,
    nodes: Nodes,
    caplog: pytest.LogCaptureFixture,
    command: str,
    reason: str,
) -> None:
    with start("slurm", **far) as (_, client):
        execute(client, f"open('{OUTPUTS}/made', 'w').write('inside')")
        (job,) = cluster.jobs()
        said = death_of(client, lambda: cluster.ask(*command.format(job).split()))
        assert said == f"The kernel's sandbox is gone: {reason}."
    nodes.wait_until_clean()
    assert read(folder) == {"made": "inside"}
    assert "still on" not in caplog.text


@mostly_ssh
def test_killed_server_leaves_outputs_and_nothing_else(
    nodes: Nodes, far: dict[str, Any], way: str, folder: Path
) -> None:
    settings = {**WAYS[way], way: {**WAYS[way][way], **far[way]}}
    write = f"open('{OUTPUTS}/made', 'w').write('inside')"
    program = SERVE.replace("print(", f'client.execute("{write}", reply=True); print(', 1)
    argv = [sys.executable, "-c", program, str(PROJECT), json.dumps(settings)]
    argv.append(str(folder / "connection.json"))
    with subprocess.Popen(
        argv, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        assert nodes.copies()
        server.kill()
    nodes.wait_until_clean()
    assert read(folder) == {"made": "inside"}


@only_ssh
def test_folder_that_is_too_large_is_refused(
    start: Start, far: dict[str, Any], folder: Path, way: str, nodes: Nodes
) -> None:
    """Before anything starts on the node."""
    with (folder / "large").open("wb") as file:
        file.truncate(20 << 20)
    with (
        pytest.raises(LaunchError, match="too large to be copied into a sandbox"),
        start(way, disk_limit="16M", **far),
    ):
        pass
    with (
        pytest.raises(SettingError, match="read-only mounts"),
        start(way, mounts=[{"source": str(folder), "target": "/d", "read_only": False}], **far),
    ):
        pass
    assert nodes.copies() == []


@only_ssh
def test_full_disk_of_the_node(
    start: Start, far: dict[str, Any], folder: Path, way: str, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (folder / "data").write_bytes(bytes(1 << 20))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", disk], check=True)
    try:
        with (
            pytest.raises(SandboxError, match="has room for"),
            start(way, **{way: {**far[way], "state": str(disk)}}),
        ):
            pass
        assert list(disk.glob("gvisor-kernel-copies/*/*")) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@needs_all
@only_ssh
def test_outputs_stay_on_the_node_until_they_can_be_taken(
    start: Start,
    far: dict[str, Any],
    folder: Path,
    way: str,
    nodes: Nodes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody has put another folder in the place of the outputs: they stay where they are, the
    log and ``list`` say so, and ``sync --to`` copies them."""
    with start(way, **far) as (_, client):
        execute(client, f"open('{OUTPUTS}/made', 'w').write('inside')")
        (folder / "outputs").rename(folder / "moved")
        (folder / "outputs").mkdir()
    (copy,) = nodes.copies()
    assert str(copy) in caplog.text
    assert "gvisor-kernel sync --to FOLDER" in caplog.text
    other = tmp_path / "other"
    other.mkdir()
    assert main(["sync", "--to", str(other), find_id(capsys, "copying")]) == 0
    assert (other / "made").read_text() == "inside"
    wait_until(lambda: nodes.left() == [], "the last try", 60)
    assert read(folder) == {}
