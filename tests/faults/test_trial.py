"""The trial of a release: one that works passes, others are refused in time, and the error says
what has failed. Nothing is left, also when the trial is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvisor_kernel.cli.checks import kernel
from gvisor_kernel.cli.checks.trial import try_release
from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.runtimes.runsc import checks, command_line
from gvisor_kernel.runtimes.runsc.command_line import find_runsc

from .. import leaks
from ..gvisor import gvisor_release
from ..patience import scale_seconds
from ..world import World
from .fake_runsc import FakeRunsc
from .test_fake_runsc import FLOOD, NONSENSE, POSES, SLEEP, count_sleepers

TRY = """
import sys
from pathlib import Path
from gvisor_kernel.cli.checks.trial import try_release
try_release(Path(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def nothing_is_left(world: World) -> Iterator[None]:
    before, sleepers = leaks.find_things(world), count_sleepers()
    yield
    left = leaks.find_leftovers(before, lambda: leaks.find_things(world))
    assert not left, "\n".join(sorted(left))
    assert count_sleepers() == sleepers


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRunsc:
    """A release that is not the one that this machine uses."""
    for module, name in (
        (command_line, "ANSWER_SECONDS"),
        (checks, "PLATFORM_SECONDS"),
        (kernel, "START_SECONDS"),
    ):
        monkeypatch.setattr(module, name, scale_seconds(getattr(module, name)))
    return FakeRunsc(tmp_path / "release")


def refusal(fake: FakeRunsc) -> str:
    with pytest.raises(RuntimeMissing) as caught:
        try_release(fake.path)
    assert "nothing was changed" in caught.value.hint
    assert "\033" not in caught.value.fact
    return caught.value.fact


def test_a_release_that_works_passes_with_its_own_program(fake: FakeRunsc) -> None:
    """The machine's runsc is another file; each step is done by the release."""
    told: list[str] = []
    results = {check.name: check for check in try_release(fake.path, told.append)}
    assert list(results)[:3] == ["program", "platform", "kernel"]
    assert str(fake.path) in results["program"].fact
    assert f"on gVisor's Linux {gvisor_release()}" in results["kernel"].fact
    assert len(told) == 3
    assert find_runsc().path != str(fake.path)
    asked = {"--version", "flags", "do"}
    if os.geteuid() == 0:  # a user's namespace cannot write that file
        asked |= {"run"}
    assert asked <= set(fake.asked())


@pytest.mark.once
@pytest.mark.parametrize(
    ("command", "script", "words"),
    [
        ("--version", f"{NONSENSE}; exit 0", "does not print its version"),
        ("--version", "kill -SEGV $$", "does not print its version"),
        ("flags", "exit 0", "has no flag --"),
        ("do", f"{FLOOD}; exit 3", "starting a sandbox failed: a systrap sandbox ended with"),
        ("do", "kill -SEGV $$", "ended with status -11"),
        ("do", "uname -sr; exit 0", "on the host's kernel"),
        ("run", "echo 'fatal: no luck' >&2; exit 2", "running a cell in a kernel failed: The"),
        ("run", "exit 0", "left no sandbox"),
        ("run", POSES, "gVisor"),
    ],
)
def test_a_broken_release_is_refused_by_what_failed(
    command: str, script: str, words: str, fake: FakeRunsc
) -> None:
    fake.instead_of(command, script)
    fact = refusal(fake)
    assert fact.startswith("This release of gVisor cannot be used here, ")
    assert words in fact


@pytest.mark.parametrize(
    ("module", "name", "command", "words"),
    [
        (command_line, "ANSWER_SECONDS", "--version", "did not end within 1 s"),
        (checks, "PLATFORM_SECONDS", "do", "did not end within 1 s"),
        (kernel, "START_SECONDS", "run", "was not started within 1 s. Nor did another one"),
    ],
)
def test_a_release_that_hangs_is_refused(
    module: object,
    name: str,
    command: str,
    words: str,
    fake: FakeRunsc,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, name, 1.0)
    fake.instead_of(command, f"{SLEEP} & wait")
    assert words in refusal(fake)


def test_a_kernel_that_never_answers_is_ended(
    fake: FakeRunsc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cell waits for ever: the thread that waits for the reply ends with the kernel."""
    monkeypatch.setattr(kernel, "CELL", "__import__('threading').Event().wait()")
    monkeypatch.setattr(kernel, "KERNEL_SECONDS", scale_seconds(8))
    assert "running a cell in a kernel failed: a kernel has not run a cell" in refusal(fake)


@pytest.mark.parametrize("command", ["do", "run"])
def test_a_trial_that_is_killed_leaves_nothing(command: str, fake: FakeRunsc) -> None:
    """The fixture looks for what is left. The program keeps its arguments, as a real one does."""
    for name in ("hangs", "never"):
        os.mkfifo(fake.folder / name)
        (fake.folder / name).chmod(0o666)
    fake.instead_of(command, f"echo now > {fake.folder}/hangs; read -r _ < {fake.folder}/never")
    with subprocess.Popen([sys.executable, "-c", TRY, fake.path]) as trial:
        assert (fake.folder / "hangs").read_text() == "now\n"
        trial.kill()
        assert trial.wait(10) == -signal.SIGKILL
