"""A start whose client or helper behaves badly: no file of the server is touched, nothing is left.

The client is a shell script of the test.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.processes import ProcessId
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.clients import Trouble
from gvisor_kernel.runtimes.mounts.plan import Outputs
from gvisor_kernel.runtimes.nodes.client import Client
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.orders import MARK, Failed, Here, write_fact
from gvisor_kernel.runtimes.nodes.runtime import NodeRuntime
from gvisor_kernel.runtimes.state import leftovers, records, sweep
from gvisor_kernel.runtimes.state.beginning import first_record
from gvisor_kernel.runtimes.state.leftovers import Leftovers
from gvisor_kernel.spec.identity import new_identity

from .waiting import wait_until


class Shell(Engine):
    """Runs ``script`` in place of a client."""

    name = program = package = "sh"
    python = state = ""
    wait = 60.0

    def __init__(self, script: str) -> None:
        self._script = script

    def hosts(self) -> Sequence[str]:
        return ["n1"]

    def start_argv(self, host: str, command: Sequence[str]) -> list[str]:
        return ["sh", "-c", self._script]

    def ask_argv(self, host: str, command: Sequence[str]) -> list[str]:
        return ["true"]

    def end_argv(self, job: str) -> list[str]:
        return []

    def explain(self, words: Sequence[str], status: int, host: str) -> Trouble:
        return Trouble(f"status {status}")


def start(script: str, folder: Path) -> None:
    request = LaunchRequest("gvisor-python", "an id", folder, "/usr/bin/python3", {})
    NodeRuntime("ssh", lambda _: Shell(script)).start(SandboxSpec(runtime="ssh"), request)


@pytest.mark.parametrize("node", ["", "n1,n2", "n[1-9]", "/etc/passwd", "-x", "a\x1b[2J", "a\nb"])
def test_node_with_an_odd_name_is_refused(
    node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name becomes an argument of srun, and is shown."""
    fact = tmp_path / "fact"
    fact.write_bytes(write_fact(Here(node)))
    with pytest.raises(LaunchError, match="has sent no name of its node"):
        start(f"head -c 48 >/dev/null; cat {fact} >&2", tmp_path)
    assert not records.find_sandboxes()


@pytest.mark.parametrize(
    "answer", [write_fact(Failed(fact=" ")), MARK + b'{"kind": "failed", "fact": 7}\n']
)
def test_failure_without_a_text_is_told_nevertheless(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tmp_path / "facts"
    facts.write_bytes(write_fact(Here("n1")) + answer)
    with pytest.raises(LaunchError, match=r"On the node n1: .* has not said why"):
        start(f"head -c 48 >/dev/null; cat {facts} >&2; cat >/dev/null", tmp_path)


def test_late_end_of_a_clients_stderr_touches_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has it, as the master of a connection may. When that ends, the number of the
    descriptor that tells of the end belongs to another file."""
    pid = tmp_path / "pid"
    script = f"sleep 600 </dev/null >/dev/null & echo $! >{pid}; exit 1"
    started = Client(["sh", "-c", script], {"PATH": os.environ["PATH"]}, tmp_path / "log")
    number = started.exit_fd
    assert started.has_ended(60)
    started.abandon([], seconds=0.2)
    assert not started.reports.is_over
    read, write = os.pipe()
    os.dup2(write, number)
    os.kill(int(pid.read_text()), signal.SIGTERM)
    started.reports.join(60)
    assert started.reports.is_over
    os.close(number)
    os.close(write)
    assert os.read(read, 100) == b""
    os.close(read)


def test_dead_node_delays_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead server has left there is removed in the background. The node never answers."""
    monkeypatch.setattr(leftovers, "LEFTOVERS", Leftovers())
    monkeypatch.setattr(sweep, "LEFTOVERS", leftovers.LEFTOVERS)
    asked = tmp_path / "asked"
    answer = tmp_path / "answer"
    asks = tmp_path / "asks"
    os.mkfifo(asked)
    os.mkfifo(answer)
    identity = new_identity("gvisor-python", SandboxSpec())
    directory = records.make_directory(identity.container_id)
    request = LaunchRequest("gvisor-python", "an id", tmp_path, "/usr/bin/python3", {})
    gone = ProcessId(2**22 - 1, 1)
    record = first_record(
        *(SandboxSpec(), request, identity, Outputs(None), gone),
        runtime="ssh",
        node="n2",
        sweep_argv=("sh", "-c", f"echo >>{asks}; echo >{asked}; cat {answer}"),
    )
    records.write_record(directory, record)
    with pytest.raises(LaunchError):
        start("exit 1", tmp_path)
    assert asked.read_text() == "\n"
    assert asks.read_text() == "\n"  # the start has not waited until the first question ended
    assert directory.exists()
    answer.write_text('{"error": ""}\n')
    wait_until(lambda: not directory.exists(), "the removal", 60)
