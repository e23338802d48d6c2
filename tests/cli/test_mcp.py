"""``gvisor-kernel mcp``: its arguments, and what is missing."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.cli.mcp import TOKEN_VARIABLE, make_folder, make_listener, open_outputs
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.mcp.settings import OutputsFolder

from ..patience import scale_seconds

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
        (["--timeout", "-1"], "--timeout is -1"),
        (["--timeout", "4000"], "--timeout is 4000, and --max-timeout 3600"),
        (["--max-timeout", "0"], "--max-timeout is 0"),
        (["--idle", "1" + "0" * 400], "give a number from 1 to 2678400"),
        (["--all-sessions", "1001"], "give a number from 1 to 1000"),
        (["--set", "memroy=2"], "There is no setting 'memroy'"),
        (["--set", "language=bash"], "There is no setting 'language'"),
        (["--memory", "lots"], "The setting memory_limit is 'lots'"),
        (["--memory", "1G", "--set", "memory=2G"], "The setting memory"),
        (["--set", "uploads=/nowhere/in"], "there is no /nowhere/in"),
        (["--set", 'egress=["nowhere"]'], "The setting egress[0] is 'nowhere'"),
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


@pytest.mark.parametrize(
    ("streams", "reason"),
    [
        ("<&-", "stdin is closed"),
        (">&-", "stdout is closed"),
        ("<&- >&-", "stdin and stdout are closed"),
        ("--http 127.0.0.1:0 >&-", "the address and the token cannot be shown"),
    ],
)
def test_a_closed_descriptor_is_named(streams: str, reason: str) -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m gvisor_kernel mcp {streams}', sys.executable],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    fact, hint = result.stderr.splitlines()
    assert reason in fact
    assert hint.startswith("What to do:")
    assert not result.stdout


def test_another_folder_is_not_taken_for_that_of_outputs(tmp_path: Path) -> None:
    named, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    with open_outputs(str(named)).opened as opened:
        outputs = OutputsFolder(opened)
        assert outputs.name_new().parent == named
        named.rename(tmp_path / "moved")
        for replace in (lambda: named.symlink_to(other), named.unlink, named.mkdir):
            replace()
            with pytest.raises(SandboxError, match="moved or replaced"):
                outputs.name_new()


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


def test_answers_are_sent_at_once() -> None:
    """Not only when the client has acknowledged what was sent before."""

    async def scenario(listener: socket.socket) -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(note, sock=listener):
            with socket.create_connection(listener.getsockname()):
                return await asyncio.wait_for(found, scale_seconds(30))

    with make_listener("127.0.0.1:0", is_remote=False) as listener:
        assert asyncio.run(scenario(listener))


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
