"""Programs in a terminal of their own: what they find is what ptyprocess gives them."""

from __future__ import annotations

import gc
import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import ptyprocess
import pytest

from gvisor_kernel.guest.interpreter import PLAIN
from gvisor_kernel.guest.terminals import PLAIN_NAME, spawn_quickly

from ..foreign import run_pip
from ..patience import scale_seconds
from ..sweeps import needs_all

REPORT = """
read -r pid name state parent group session terminal foreground rest < /proc/$$/stat
echo $((group - pid)) $((session - pid)) $((foreground - pid)) $parent
[ "$terminal" != 0 ] && tty && echo there > /dev/tty
stty -a; pwd; env; echo "$0 $@"; ls -l /proc/self/fd; umask; ulimit -a; trap
kill -WINCH $$; exit 3
"""
KINDS: list[dict[str, Any]] = [
    {},
    {"cwd": "/usr", "env": {"PATH": os.environ["PATH"], "A": "ä = 1"}},
    {"echo": False, "dimensions": (40, 100)},
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("spawn", "close"):
        monkeypatch.setattr(ptyprocess.PtyProcess, name, vars(ptyprocess.PtyProcess)[name])
    assert spawn_quickly()


def refuse() -> Any:
    raise AssertionError("forked")


def run(**options: Any) -> tuple[str, int | None]:
    """Return what REPORT says, without the times of files, and its status."""
    arguments = ["-c", REPORT, "an argument", "ü"]
    child = pexpect.spawn("sh", arguments, timeout=scale_seconds(20), **options)
    text = child.read().decode()
    child.close()
    text = re.sub(r"(?m)^l.* (\d+ -> )", r"\1", text)
    return re.sub(r"/dev/pts/\d+|/proc/\d+", "?", text), child.exitstatus


@pytest.mark.parametrize("options", KINDS, ids=["usual", "variables", "size"])
def test_a_program_finds_the_same(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = os.open("/", os.O_RDONLY)
    os.set_inheritable(kept, True)  # which the program must not get
    try:
        with monkeypatch.context() as plain:
            plain.setenv(PLAIN, f"other {PLAIN_NAME}")
            forked = run(**options)
        monkeypatch.setenv(PLAIN, f"other x{PLAIN_NAME}")
        monkeypatch.setattr(pty, "fork", refuse)
        found = run(**options)
    finally:
        os.close(kept)
    assert found[0].replace("other x", "other ") == forked[0]
    assert found[1] == forked[1] == 3
    assert f"0 0 0 {os.getpid()}\r\n?\r\nthere" in found[0]
    assert f"{kept} -> /" not in found[0]


def test_an_interrupt_of_the_terminal_reaches_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pty, "fork", refuse)
    child = pexpect.spawn("sleep", ["600"], timeout=scale_seconds(20))
    assert child.isalive()
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, child.signalstatus) == (None, 2)


def test_what_cannot_be_started_fails_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"\0 no program")
    path.chmod(stat.S_IRWXU)
    errors, forked, fork = [], [], pty.fork

    def record() -> tuple[int, int]:
        forked.append(fork())
        return forked[-1]

    monkeypatch.setattr(pty, "fork", record)
    for plain in ("", PLAIN_NAME):
        monkeypatch.setenv(PLAIN, plain)
        for argv in ([str(path)], [str(tmp_path / "absent")], "text"):
            before = len(list(Path("/proc/self/fd").iterdir()))
            with pytest.raises(Exception) as raised:  # noqa: PT011  # compared below
                ptyprocess.PtyProcess.spawn(argv)
            error, left = raised.value, len(list(Path("/proc/self/fd").iterdir())) - before
            errors.append((type(error), error.args, getattr(error, "errno", None), left))
    # ptyprocess ends and closes what it has forked once its objects go, which the errors keep. A
    # descriptor that is closed here, too, would be another test's by then.
    del raised, error
    gc.collect()
    for pid, _ in forked:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    assert errors[:3] == errors[3:]


def test_a_function_that_is_called_before_the_program_is_forked(tmp_path: Path) -> None:
    made = tmp_path / "made"
    pexpect.spawn("true", preexec_fn=lambda: made.touch()).wait()
    assert made.exists()


def test_an_unknown_release_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ptyprocess.PtyProcess.spawn
    monkeypatch.setattr(ptyprocess, "__version__", "0.8.0")
    assert not spawn_quickly()
    assert ptyprocess.PtyProcess.spawn == before


@needs_all
def test_all_of_it_holds_for_the_release_before(tmp_path: Path) -> None:
    install = ("--no-deps", "--target", str(tmp_path), "ptyprocess==0.6.0")
    run_pip(Path(sys.executable), "install", *install)
    argv = [*(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"), __file__]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "GK_TEST_ALL": "0"}
    done = subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=scale_seconds(60)
    )
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout
