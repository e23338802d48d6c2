"""doctor: the problems that each check finds, time limits, and a run on this machine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from gvisor_kernel.cli import doctor
from gvisor_kernel.cli.checks import kernel
from gvisor_kernel.cli.checks.jupyter import check_kernelspecs, check_python
from gvisor_kernel.cli.checks.shown import check_environment
from gvisor_kernel.cli.doctor import find_checks, run_check
from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.bounded import call_within, run_command
from gvisor_kernel.host.processes import find_with_argument
from gvisor_kernel.runtimes.checks import Check
from gvisor_kernel.runtimes.runsc.checks import (
    check_cgroups,
    check_platform,
    check_runsc,
    check_userns,
    describe_age,
    explain_userns,
    find_release_date,
)
from gvisor_kernel.runtimes.runsc.command_line import find_runsc

from ..faults.fake_runsc import FakeRunsc
from ..gvisor import gvisor_release


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory of Jupyter without kernelspecs; no other directory is searched."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_PATH", "")
    for name in ("ENV_JUPYTER_PATH", "SYSTEM_JUPYTER_PATH"):
        monkeypatch.setattr(f"jupyter_core.paths.{name}", [])
    return tmp_path / "data"


@pytest.fixture
def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Put a shell script first in PATH, instead of the real program of that name."""

    def make(name: str, script: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        return path

    return make


@pytest.mark.slow
def test_doctor_finds_no_failure_on_this_machine(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["install", "--user"])
    capsys.readouterr()
    status = main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert [check for check in document["checks"] if check["state"] == "failed"] == []
    assert (status, document["ok"]) == (0, True)
    facts = {check["name"]: check["fact"] for check in document["checks"]}
    assert f"release {find_runsc().version.removeprefix('0.0~')}" in facts["runsc"]
    assert f"on gVisor's Linux {gvisor_release()}" in facts["kernel"]
    assert "% of a CPU" in facts["idle kernel"]


def test_json_and_text_output_agree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = (
        ("a", 1.0, lambda: Check("a", "ok", "no [bold]markup[/bold]")),
        ("b", 1.0, lambda: [Check("b", "warning", "old", "sudo do-this")]),
        ("c", 1.0, lambda: Check("c", "failed", "bad \x1b[2J", "sudo do-that")),
    )
    monkeypatch.setattr(doctor, "find_checks", lambda runtime: checks)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "OK   a: no [bold]markup[/bold]",
        "WARN b: old",
        "      → sudo do-this",
        "FAIL c: bad \\x1b[2J",
        "      → sudo do-that",
    ]
    assert main(["doctor", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["checks"][1] == {
        "name": "b",
        "state": "warning",
        "fact": "old",
        "fix": "sudo do-this",
    }
    monkeypatch.setattr(doctor, "find_checks", lambda runtime: checks[:2])
    assert main(["doctor"]) == 0


def test_check_that_hangs_or_raises_is_reported_as_failed() -> None:
    forever = threading.Event()
    (check,) = run_check("x", 0.05, lambda: forever.wait() and Check("x", "ok", ""))  # type: ignore[arg-type,return-value]
    forever.set()
    assert (check.state, check.fact) == ("failed", "no answer within 0.05 s")

    def broken() -> Check:
        raise ValueError("bug")

    (check,) = run_check("x", 1, broken)
    assert "ValueError: bug" in check.fact

    def refused() -> Check:
        raise LaunchError("A fact.", "do this")

    assert run_check("x", 1, refused) == [Check("x", "failed", "A fact.", "do this")]


def test_every_check_has_a_time_limit() -> None:
    assert all(0 < seconds <= 40 for _, seconds, _ in find_checks(None))


def test_hanging_command_is_killed_with_processes_outside_its_group(tmp_path: Path) -> None:
    mark = f"{tmp_path}/mark"
    sleeper = f"{shlex.quote(sys.executable)} -Sc 'import signal; signal.pause()' {mark}"
    outcome = run_command(["sh", "-c", f"setsid {sleeper} & {sleeper}"], 1.5, mark=mark)
    assert outcome.status is None
    assert not list(find_with_argument(mark))


def test_interrupt_kills_processes_outside_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a sandbox is tried must not leave that sandbox."""

    def interrupt(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    mark = f"{tmp_path}/mark"
    argv = [sys.executable, "-Sc", "import signal; signal.pause()", mark]
    with subprocess.Popen(argv, start_new_session=True) as sandbox:
        monkeypatch.setattr("gvisor_kernel.host.bounded.commands.run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_command(["true"], 5, mark=mark)
        assert sandbox.wait(10) == -signal.SIGKILL


def test_command_runs_in_a_deleted_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run_command(["sh", "-c", "echo works"], 5).output.endswith("works")
    monkeypatch.chdir(tmp_path)


def test_command_returns_status_and_output() -> None:
    outcome = run_command(["sh", "-c", "echo out; echo err >&2; exit 3"], 5)
    assert (outcome.status, outcome.output) == (3, "out\nerr")
    with pytest.raises(FileNotFoundError):
        run_command(["/nonexistent/program"], 5)


def test_call_within_returns_results_and_raises_exceptions() -> None:
    assert call_within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        call_within(5, lambda: 1 // 0)


def test_missing_runsc_fails_two_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_kwargs: None)
    (check,) = check_runsc()
    assert check.state == "failed"
    assert check.fix.startswith("gvisor-kernel runsc install ")
    assert check_platform().state == "failed"


@pytest.mark.parametrize(
    ("version", "released"),
    [
        ("20260817.0", date(2026, 8, 17)),
        ("0.0~20240729.0", date(2024, 7, 29)),
        ("20260817.0-70-g3c5eee17d", date(2026, 8, 17)),
        ("VERSION_MISSING", None),
        ("20261340.0", None),
        ("20990101.0", None),
        ("1.2026081755", None),
    ],
)
def test_release_date_is_read_from_version(version: str, released: date | None) -> None:
    assert find_release_date(version, date(2026, 11, 26)) == released


def test_age_is_described_in_a_suitable_unit() -> None:
    days = (0, 1, 13, 15, 60, 70, 729, 731, 850)
    assert [describe_age(each) for each in days] == [
        *("0 days", "1 day", "13 days", "2 weeks", "9 weeks", "2 months", "24 months"),
        *("2.0 years", "2.3 years"),
    ]


@pytest.mark.parametrize(
    ("version", "state", "fact"),
    [
        ("release-20240102.0", "warning", "release 20240102.0 of 2024-01-02, "),
        ("release-of-mine", "warning", "release of-mine; the age cannot be told from this version"),
    ],
)
def test_old_or_undated_runsc_is_a_warning(
    version: str,
    state: str,
    fact: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeRunsc(tmp_path / "fake")
    monkeypatch.setenv("PATH", fake.environment_path())
    fake.instead_of("--version", f"echo 'runsc version {version}'; exit 0")
    fake.instead_of(
        "flags",
        'for flag in root network platform overlay2 ignore-cgroups; do echo "  -$flag x"; done;'
        " exit 0",
    )
    fake.instead_of("help", "exit 0")
    first, features = check_runsc()
    assert first.state == state
    assert fact in first.fact
    assert first.fix.startswith("gvisor-kernel runsc install ")
    for what in ("uncompressed", "empty memory"):
        assert what in features.fact


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/nonexistent", "cannot be started inside the sandbox"),
        ("/bin/false", "ended before it answered"),
    ],
)
@pytest.mark.once
def test_kernel_check_fails_if_kernel_program_does_not_start(
    program: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(kernel._make_plan(), argv=(program,))
    monkeypatch.setattr(kernel, "_make_plan", lambda *_: plan)
    (check,) = run_check("kernel", 40, kernel.check_kernel)
    assert check.state == "failed"
    assert words in check.fact


def test_platform_check_starts_a_sandbox() -> None:
    check = check_platform()
    assert check.state == "ok", check
    assert f"its kernel is Linux {gvisor_release()}" in check.fact


def test_platform_check_fails_if_sandbox_does_not_start(fake_program) -> None:  # type: ignore[no-untyped-def]
    fake_program("unshare", "echo 'unshare: unshare failed: Operation not permitted'; exit 1")
    check = check_platform()
    assert check.state == "failed"
    assert "Operation not permitted" in check.fact
    assert check.fix.startswith("unshare -Ur ")


def test_platform_check_detects_runsc_without_sandbox(fake_program) -> None:  # type: ignore[no-untyped-def]
    fake_program("unshare", "uname -sr")
    fact = "runsc started a program on the host's kernel, not on gVisor's"
    assert check_platform().fact == fact


@pytest.mark.parametrize(
    ("sysctls", "container", "seccomp", "fact", "fix"),
    [
        ({"user.max_user_namespaces": "0"}, False, "0", "max_user", "max_user_namespaces = 15000"),
        ({"kernel.unprivileged_userns_clone": "0"}, False, "0", "_clone = 0", "_clone = 1"),
        (
            {"kernel.apparmor_restrict_unprivileged_userns": "1"},
            *(False, "0", "AppArmor", "restrict_unprivileged_userns = 0"),
        ),
        ({}, True, "2", "in this container by a seccomp filter", "seccomp=unconfined"),
        ({}, True, "0", "security profile", "apparmor=unconfined"),
        ({}, False, "2", "seccomp filter on this process", "without that filter"),
        ({}, False, "0", "unknown reason", "administrator"),
    ],
)
def test_cause_of_forbidden_user_namespaces_is_named(
    sysctls: dict[str, str], container: bool, seccomp: str, fact: str, fix: str
) -> None:
    found = explain_userns(sysctls.get, container, seccomp)
    assert fact in found[0]
    assert fix in found[1]


def test_user_namespace_check_tries_unshare(fake_program) -> None:  # type: ignore[no-untyped-def]
    assert check_userns().state == "ok"
    fake_program("unshare", "echo 'unshare: unshare failed: No space left on device'; exit 1")
    check = check_userns()
    assert check.state == "failed"
    assert "No space left" in check.fact


def test_cgroup_check_distinguishes_versions_and_delegation(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    root.mkdir()
    own.write_text("1:memory:/x\n0::/user.slice/me\n")
    assert check_cgroups(root, own).fact.startswith("none at")
    (root / "memory").mkdir()
    assert check_cgroups(root, own).fact.startswith("v1, not writable")
    for name in ("pids", "cpu"):
        (root / name).mkdir()
    assert check_cgroups(root, own).fact.startswith("v1, writable")
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    (root / "user.slice/me").mkdir(parents=True)
    (root / "user.slice/me/cgroup.controllers").write_text("memory pids\n")
    check = check_cgroups(root, own)
    assert check.state == "warning"
    assert check.fact.startswith("v2, without cpu")
    assert "Delegate" in check.fix
    (root / "user.slice/me/cgroup.controllers").write_text("cpu io memory pids\n")
    assert check_cgroups(root, own).state == "ok"


def test_python_check_accepts_this_interpreter() -> None:
    check = check_python(sys.executable)
    assert check.state == "ok"
    assert "ipykernel" in check.fact


def test_python_check_names_missing_packages(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True)
    check = check_python(str(tmp_path / "v/bin/python"))
    assert check.state == "failed"
    assert "cannot import ipykernel and zmq" in check.fact
    assert check.fix == f"{tmp_path}/v/bin/python -m pip install ipykernel pyzmq"


def test_python_check_rejects_other_programs(tmp_path: Path) -> None:
    assert check_python("/nonexistent/python").fact.endswith("No such file or directory")
    assert check_python("/bin/true").fact == "/bin/true does not behave like a Python interpreter"


def test_kernelspec_check_finds_wrong_settings_and_missing_interpreter(data_dir: Path) -> None:
    (check,) = check_kernelspecs()
    assert (check.state, check.fix) == ("failed", "gvisor-kernel install")
    main(["install", "--user", "--name", "gk-doctor"])
    (check,) = check_kernelspecs()
    assert check.state == "ok"
    path = data_dir / "kernels/gk-doctor/kernel.json"
    good = path.read_text()
    path.write_text(good.replace('"config": {}', '"config": {"memory_limit": "much"}'))
    (check,) = check_kernelspecs()
    assert check.state == "failed"
    assert "memory_limit is 'much'" in check.fact
    path.write_text(good.replace(json.dumps(sys.executable), '"/nonexistent/python"'))
    (check,) = check_kernelspecs()
    assert check.fact.endswith("cannot start: /nonexistent/python does not exist")
    assert check.fix.startswith("gvisor-kernel install --name gk-doctor")


def test_interrupted_doctor_prints_no_traceback() -> None:
    code = (
        "import os, signal, sys; from gvisor_kernel.cli import doctor, main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "doctor.CHECKS = (('x', 9, lambda: 0 if os.kill(os.getpid(), signal.SIGINT) else 0),);"
        "doctor.find_checks = lambda runtime: doctor.CHECKS;"
        "sys.exit(main.main(['doctor']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20
    )
    assert (result.returncode, result.stderr) == (128 + signal.SIGINT, "")


def test_host_files_check_lists_environment_and_editable_installs(tmp_path: Path) -> None:
    """Also an editable install whose import hook cannot be interpreted is listed."""
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (environment / "etc" / "jupyter").mkdir(parents=True)
    (tmp_path / "repository" / "src" / "mine").mkdir(parents=True)
    (tmp_path / "repository" / "src" / "mine" / "__init__.py").touch()
    (packages / "mine.pth").write_text(f"{tmp_path / 'repository' / 'src'}\n")
    (packages / "_other_editable_loader.py").write_text("install('other', '/no/such/build')\n")
    python = str(environment / "bin" / "python")
    shown, hook, mine = check_environment(python)
    assert f"kernels of {python} can read " in shown.fact
    assert str(environment) in shown.fact.partition("; but not ")[0]
    assert str(environment / "etc" / "jupyter") in shown.fact.partition("; but not ")[2]
    assert mine.state == "ok"
    assert mine.fact == f"kernels can read {tmp_path / 'repository' / 'src' / 'mine'}"
    assert hook.state == "warning"
    assert "without -e" in hook.fix
