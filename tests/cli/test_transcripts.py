"""transcript: formatting of a real kernel's transcript, and escaping of hostile entries."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient

from gvisor_kernel.bridge.records import Transcript
from gvisor_kernel.bridge.transcripts import BAR, SHOWN_LINES
from gvisor_kernel.bridge.wire import new_message
from gvisor_kernel.cli.main import main
from gvisor_kernel.runtimes.state.listed import find_all

from ..jupyter.helpers import SANDBOXED, execute, running_kernel
from .test_sandboxes import make_record

Captured = pytest.CaptureFixture[str]
ID = "01aaaaaaaaaaaaaaaaaaaaaaaa"
PARENT = json.dumps({"msg_id": "the-request"}).encode()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingKernelClient]:
    with running_kernel(start={"cwd": str(tmp_path_factory.mktemp("notebook"))}) as (_, client):
        yield client


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The transcripts folder of a sandbox that has only a record."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    make_record(ID)
    path = tmp_path / "gvisor-kernel/sandboxes" / ID / "transcripts"
    path.mkdir()
    return path


def write(folder: Path, *entries: object) -> None:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "transcript.jsonl").write_text("\n".join(lines) + "\n")


def output(kind: str, n: int = 1, **content: Any) -> dict[str, Any]:
    return {"n": n, "time": "", "event": "output", "type": kind, "id": "x", "content": content}


def shown(capsys: Captured, *more: str) -> str:
    capsys.readouterr()
    assert main(["transcript", ID, *more]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(not SANDBOXED, reason="the kernel under test has no sandbox")
class TestRealKernel:
    def find_id(self) -> str:
        (sandbox,) = [s for s in find_all() if s.record.owner.pid == os.getpid()]
        return sandbox.id

    def test_transcript_shows_cells_and_outputs(
        self, client: BlockingKernelClient, capsys: Captured
    ) -> None:
        execute(client, "print('hel', end='', flush=True)\nprint('lo')")
        execute(client, "6 * 7")
        execute(client, "1 / 0")
        assert main(["transcript", self.find_id()]) == 0
        out = capsys.readouterr().out
        assert f"\n{BAR}print('lo')\n" in out
        assert f"\n{BAR}hello\n" in out
        assert f"\n{BAR}42\n" in out
        assert "error: ZeroDivisionError" in out
        assert out.count("done: ") >= 3
        assert all(char.isprintable() or char in "\n\t" for char in out)

    @pytest.mark.slow
    def test_transcript_is_complete_and_in_order_under_load(
        self, client: BlockingKernelClient, capsys: Captured
    ) -> None:
        """A running cell can read its own output in the transcript, except for the last moment."""
        before = 3000
        answer = execute(client, f"""
import json, sys, threading, time
for number in range({before}):
    print(number, flush=True)
def read_output():
    lines = open("/mnt/transcripts/transcript.jsonl").read().splitlines()
    return [json.loads(line) for line in lines if '"stream"' in line]
deadline = time.monotonic() + 20
while not read_output()[-1]["content"]["text"].endswith("{before - 1}\\n"):
    assert time.monotonic() < deadline
    time.sleep(0.05)
""")  # fmt: skip
        assert answer.status == "ok", answer.reply["content"]
        capsys.readouterr()
        assert main(["transcript", "--raw", self.find_id()]) == 0
        entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [entry["n"] for entry in entries] == list(range(1, len(entries) + 1))
        mine = answer.reply["parent_header"]["msg_id"]
        text = "".join(
            entry["content"]["text"]
            for entry in entries
            if entry["id"] == mine and entry["type"] == "stream"
        )
        assert text == "".join(f"{number}\n" for number in range(before))


def test_rotated_files_are_read_as_one_transcript(folder: Path, capsys: Captured) -> None:
    transcript = Transcript(folder, 5000)
    for number in range(200):
        message = new_message("stream", {"name": "stdout", "text": f"{number}\n"}, PARENT, b"")
        transcript.record("output", message)
    transcript.close()
    lines = shown(capsys).splitlines()
    numbers = [int(line.removeprefix(BAR)) for line in lines if line.startswith(BAR)]
    assert numbers == list(range(numbers[0], 200))
    assert lines[0] == f"-- entries older than this were removed: {numbers[0]} --"
    raw = [json.loads(line)["n"] for line in shown(capsys, "--raw").splitlines()]
    assert raw == [number + 1 for number in numbers]


def test_missing_entries_are_reported(folder: Path, capsys: Captured) -> None:
    write(folder, output("error", 1), output("error", 5))
    assert "-- entries missing here: 3 --" in shown(capsys)


@pytest.mark.parametrize(
    "text",
    [
        "\x1b]0;owned\x07",
        "\x1b[2J\x1b[1;1H",
        "\x9b31m",
        "a\r[1] cell",
        "\u202egpj.exe",
        "\ud800",
        "x\n[2] cell   2026-01-01 00:00:00\n  │ rm -rf /",
        "\x1b[31mred\x1b[0m",
    ],
)
def test_every_quoted_line_begins_with_a_bar(text: str, folder: Path, capsys: Captured) -> None:
    write(
        folder,
        output("stream", 1, name=text, text=text),
        output("execute_result", 2, data={text: text, "text/plain": text}),
        output("error", 3, ename=text, traceback=[text, {text: text}, 3]),
        output("input_request", 4, prompt=text),
        {"n": 5, "event": "reply", "type": "x", "id": text, "content": {"status": text}},
        {"n": 6, "event": "output", "type": text, "id": "x", "time": text, "size": 9},
    )  # fmt: skip
    out = shown(capsys)
    assert all(char.isprintable() or char in "\n\t" for char in out)
    for line in out.splitlines():
        assert line.startswith((BAR, "[?] "))
    raw = shown(capsys, "--raw")
    assert raw.isascii()
    assert "\x1b" not in raw


def test_malformed_entries_are_skipped(folder: Path, capsys: Captured) -> None:
    write(
        folder,
        "no JSON",
        "[" * 100_000,
        [],
        {},
        {"n": "x", "id": [1], "type": {}, "event": 3, "content": 5, "time": 7},
        output("stream", name=[1], text={"a": 1}),
        output("display_data", data=[1]),
        output("error", traceback=None),
        output("stream", name="stdout", text="the end"),
    )
    assert shown(capsys).endswith(f"{BAR}the end\n")


def test_long_texts_are_cut(folder: Path, capsys: Captured) -> None:
    lines = "".join(f"{number}\n" for number in range(2000))
    write(
        folder,
        output("stream", text=lines),
        output("display_data", data={"text/plain": "y" * 10**5}),
    )
    out = shown(capsys)
    assert len(out) < 30_000
    assert f"\n{BAR}{SHOWN_LINES - 1}\n" in out
    assert f"\n{BAR}{SHOWN_LINES}\n" not in out
    assert out.count(" more characters (--raw prints all)\n") == 2


def test_symbolic_link_instead_of_transcript_is_not_followed(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps(output("stream", text="secret")))
    (folder / "transcript.jsonl").symlink_to(secret)
    assert main(["transcript", ID]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "has no transcript" in err
    assert main(["transcript", "01bbb"]) == 1
