"""``gvisor-kernel mcp``: its arguments, and what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.cli.mcp import TOKEN_VARIABLE, make_folder, make_listener

pytestmark = pytest.mark.once

WITHOUT_SDK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mcp", "mcp_types"):
            raise ImportError("no", name=name)
sys.meta_path.insert(0, Refuse())
from gvisor_kernel.mcp import sessions
sessions.Sandboxes.start_first = lambda self: None
from gvisor_kernel.cli.main import main
sys.exit(main(["mcp"]))
"""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--host", "x"], "--host needs --http"),
        (["--http", "127.0.0.1"], "no address and port"),
        (["--http", "somewhere:1"], "no address and port"),
        (["--http", "127.0.0.1:99999"], "no address and port"),
        (["--http", "0.0.0.0:0"], "can be reached from other machines"),
        (["--http", "[::]:0"], "can be reached from other machines"),
        (["--sessions", "0"], "--sessions is 0"),
        (["--set", "outputs=/tmp"], "use --outputs"),
        (["--set", "memory"], "has no value"),
        (["--upload-from", "/"], "no folder that can be used"),
        (["--outputs", "/nowhere/out"], "cannot be used"),
    ],
)
def test_wrong_arguments_say_what_to_do(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mcp", *arguments]) == 1
    printed = capsys.readouterr()
    assert reason in printed.err
    assert "What to do:" in printed.err
    assert not printed.out


def test_a_folder_for_outputs_is_made(tmp_path: Path) -> None:
    made = make_folder("--outputs", str(tmp_path / "new"))
    assert made.is_dir()
    assert make_folder("--outputs", str(made)) == made


def test_a_short_token_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    assert main(["mcp", "--http", "127.0.0.1:0"]) == 1
    printed = capsys.readouterr().err
    assert "at least 32" in printed
    assert "short" not in printed


def test_another_address_is_possible_when_a_name_is_given() -> None:
    with make_listener("0.0.0.0:0", is_remote=True) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"  # noqa: S104


def test_a_missing_sdk_is_named(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_SDK],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1, result.stderr
    assert "pip install 'gvisor-kernel[mcp]'" in result.stderr
    assert not result.stdout
