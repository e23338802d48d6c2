"""What an installed runsc can do and needs: read from its help, or probed once and remembered."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.runtimes.runsc import command_line, features
from gvisor_kernel.runtimes.runsc.command_line import find_runsc
from gvisor_kernel.runtimes.runsc.features import init_capabilities, wants_setfcap
from gvisor_kernel.spec.oci import CAPABILITIES, SETFCAP

from ..faults.fake_runsc import FakeRunsc

ANSWER = "echo 'maps uid 0 with CAP_SETFCAP: {}, without: {}'; exit 0"


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make this process know no more of any runsc than another process."""

    def forget() -> None:
        for module in (features, command_line):
            monkeypatch.setattr(module, "_known", {})

    return forget


@pytest.fixture
def fake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]
) -> Iterator[FakeRunsc]:
    """A fake runsc that was not asked yet, and a state directory without remembered answers."""
    fake = FakeRunsc(tmp_path / "bin")
    monkeypatch.setenv("PATH", fake.environment_path())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    forget()
    monkeypatch.setattr(command_line, "is_script", lambda path: False)  # the fake is one
    yield fake
    fake.as_ever("do")


@pytest.mark.parametrize(
    ("with_it", "without", "wanted"), [("yes", "yes", False), ("yes", "no", True)]
)
def test_probe_runs_once_for_each_runsc_file(
    with_it: str, without: str, wanted: bool, fake: FakeRunsc, forget: Callable[[], None]
) -> None:
    fake.instead_of("do", ANSWER.format(with_it, without))
    assert wants_setfcap(find_runsc()) is wanted
    assert init_capabilities(find_runsc(), 0) == (*CAPABILITIES, *([SETFCAP] if wanted else []))
    assert fake.asked().count("do") == 1
    forget()
    assert wants_setfcap(find_runsc()) is wanted
    assert fake.asked().count("do") == 1
    os.utime(fake.path, ns=(1, 1))  # another program at the same place
    fake.instead_of("do", ANSWER.format("yes", "no" if without == "yes" else "yes"))
    assert wants_setfcap(find_runsc()) is not wanted
    assert fake.asked().count("do") == 2


@pytest.mark.parametrize("script", ["exit 1", "exit 0", ANSWER.format("no", "no"), "kill -9 $$"])
def test_failed_probe_is_not_remembered(script: str, fake: FakeRunsc) -> None:
    fake.instead_of("do", script)
    assert init_capabilities(find_runsc(), 0) == CAPABILITIES
    fake.instead_of("do", ANSWER.format("yes", "no"))
    assert wants_setfcap(find_runsc())


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', "[" * 60_000, "{program: 1}"])
def test_damaged_answer_file_is_written_again(content: str, fake: FakeRunsc) -> None:
    path = state_root() / command_line.FILE
    fake.instead_of("do", ANSWER.format("yes", "no"))
    program = find_runsc().program
    path.write_text(json.dumps({program: 1}) if content == "{program: 1}" else content)
    assert wants_setfcap(find_runsc())
    assert json.loads(path.read_text())[program] == {features.QUESTION: True}
    assert path.stat().st_mode & 0o777 == 0o600


def test_version_and_flags_are_asked_for_once_by_all_processes(
    fake: FakeRunsc, forget: Callable[[], None]
) -> None:
    def asked() -> tuple[int, int]:
        return fake.asked().count("--version"), fake.asked().count("flags")

    first = find_runsc()
    forget()
    assert find_runsc() == first
    assert asked() == (1, 1)
    os.utime(fake.path, ns=(1, 1))  # another program at the same place
    assert find_runsc().flags == first.flags
    assert asked() == (2, 2)


@pytest.mark.parametrize(
    "kept",
    [{}, {"version": 1, "flags": []}, {"version": "1", "flags": ["root", 1]}, {"flags": "root"}],
)
def test_answers_that_make_no_runsc_are_asked_for_again(
    kept: dict[str, object], fake: FakeRunsc, forget: Callable[[], None]
) -> None:
    first = find_runsc()
    path = state_root() / command_line.FILE
    path.write_text(json.dumps({first.program: kept}))
    forget()
    assert find_runsc() == first
    assert json.loads(path.read_text())[first.program]["version"] == first.version


def test_answers_of_a_script_are_not_kept(
    fake: FakeRunsc,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    forget: Callable[[], None],
) -> None:
    """The program that it starts may be replaced, and the script does not show that."""
    monkeypatch.undo()
    monkeypatch.setenv("PATH", fake.environment_path())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for with_setfcap in (True, False):
        forget()
        fake.instead_of("do", ANSWER.format("yes", "no" if with_setfcap else "yes"))
        assert wants_setfcap(find_runsc()) is with_setfcap
    assert not (state_root() / command_line.FILE).exists()


def test_runsc_that_is_being_replaced_is_missing(
    fake: FakeRunsc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line.shutil, "which", lambda *_, **__: str(fake.folder / "gone"))
    with pytest.raises(RuntimeMissing, match=r"gone: No such file"):
        find_runsc()


def test_only_the_newest_programs_are_remembered(fake: FakeRunsc) -> None:
    for number in range(command_line.MAX_PROGRAMS + 1):
        command_line.keep_answers(f"runsc\n{number}", {"version": str(number)})
    assert command_line.read_answers("runsc\n0") == {}
    assert command_line.read_answers("runsc\n1") == {"version": "1"}


def test_sidecar_changes_the_fingerprint(fake: FakeRunsc) -> None:
    alone = find_runsc()
    assert alone.sidecars == ()
    (fake.folder / "gvisor-bin").mkdir()
    sentry = fake.folder / "gvisor-bin" / "gvisor_sentry"
    sentry.write_text("1")
    beside = find_runsc()
    assert beside.sidecars == ("gvisor_sentry",)
    sentry.write_text("22")
    assert len({alone.program, beside.program, find_runsc().program}) == 3


def test_installed_runsc_answers_the_probe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forget: Callable[[], None]
) -> None:
    """Whichever release it is: kernels of the other tests need what the probe finds."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    forget()
    assert features._run_probes(find_runsc()) is not None
