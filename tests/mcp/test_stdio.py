"""A server over stdio and the SDK's client: every tool, resources, prompts, time limits, ends."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession
from mcp.shared.exceptions import MCPError
from mcp_types import PromptReference, ResourceTemplateReference

from .servers import call, fail, stdio_session, text_of


def test_code_files_and_sessions(tmp_path: Path) -> None:
    """One server for all of it: each start takes a second."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data.csv").write_text("a,b\n1,2\n")
    (tmp_path / "out").mkdir()

    async def scenario() -> None:
        options = ("--outputs", str(tmp_path / "out"), "--upload-from", str(tmp_path / "in"))
        async with stdio_session(*options, "--sessions", "2") as session:
            await check_code(session)
            await check_rewind(session)
            await check_output(session)
            await check_files(session, tmp_path)
            await check_resources(session, tmp_path)
            await check_sessions(session)
            await check_busy_outputs(session)

    asyncio.run(scenario())
    kept = [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")]
    assert len(kept) == 5, kept  # the folders of the two sandboxes that have outputs


async def check_code(session: ClientSession) -> None:
    first = await call(session, "run_code", code="x = 6 * 7; x")
    assert (first["result"], first["session"], first["new_session"]) == ("42", "python", True)
    code = "import sys; print(x); print('err', file=sys.stderr)"
    run = await call(session, "run_code", code=code)
    assert (run["stdout"], run["stderr"], run["new_session"]) == ("42\n", "err\n", False)
    text = await fail(session, "run_code", code="1 / 0")
    assert "ZeroDivisionError" in text
    assert "\x1b" not in text
    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
    code = f"get_ipython().display_pub.publish({{{{'image/png': {picture!r}{{}}}}}})"
    result = await session.call_tool("sandbox_run_code", {"code": code.format("")})
    assert [item.type for item in result.content] == ["text", "image"]
    result = await session.call_tool("sandbox_run_code", {"code": code.format(" + '====' * 3")})
    assert [item.type for item in result.content] == ["text"]
    run = await call(session, "run_code", code=code.format(" + 'AAAA' * 3_000_000"))
    assert len(run["cut"]) == 1
    assert "image/png (8.6 MiB) was left out" in run["cut"][0]
    answer = await session.call_tool("sandbox_shell", {"command": "echo $((40 + 2)); exit 3"})
    assert answer.is_error
    assert "[exit status 3]" in text_of(answer)


async def check_rewind(session: ClientSession) -> None:
    """By itself there is a checkpoint before each run."""
    await call(session, "checkpoint", session="python", name="own")
    await call(session, "run_code", code="x = open('/mnt/user-data/outputs/told', 'w').write('1')")
    result = await session.call_tool("sandbox_rewind", {"session": "python"})
    assert not result.is_error, text_of(result)
    assert "added: told" in text_of(result)
    code = "import os; os.remove('/mnt/user-data/outputs/told'); x"
    assert (await call(session, "run_code", code=code))["result"] == "42"
    text = await fail(session, "rewind", session="python", checkpoint="none")
    assert "own" in text
    await call(session, "rewind", session="python", checkpoint="own")
    assert (await call(session, "run_code", code="x"))["result"] == "42"
    await call(session, "remove_checkpoint", session="python", checkpoint="own")
    for verb in ("remove_checkpoint", "rewind"):
        text = await fail(session, verb, session="python", checkpoint="own")
        assert "no checkpoint 'own'" in text


async def check_busy_outputs(session: ClientSession) -> None:
    """They are listed in each language, and while code runs."""
    begun = asyncio.Event()

    async def note(progress: float, total: float | None, message: str | None) -> None:
        begun.set()

    code = "echo busy > /mnt/user-data/outputs/busy.txt; echo begun; sleep 1000"
    arguments = {"code": code, "language": "bash"}
    running = asyncio.ensure_future(
        session.call_tool("sandbox_run_code", arguments, progress_callback=note)
    )
    await begun.wait()
    uri = "sandbox://bash/outputs/busy.txt"
    assert uri in [item.uri for item in (await session.list_resources()).resources]
    assert not running.done()
    # Stopped while busy, it would get five seconds to end by itself.
    await call(session, "interrupt_session", session="bash")
    await running
    await call(session, "stop_session", session="bash")


async def check_output(session: ClientSession) -> None:
    run = await call(session, "run_code", code="print('0123456789' * 5000)")
    assert run["stdout"] == "0123456789" * 2000
    assert f"run={run['run']}" in run["cut"][0]
    assert "offset=20000" in run["cut"][0]
    rest = {"session": "python", "run": run["run"], "offset": 49_995}
    assert (await call(session, "read_output", **rest))["text"] == "56789\n"
    assert "not kept" in await fail(session, "read_output", session="python", run=99)

    noted: list[tuple[float, str | None]] = []
    come = asyncio.Event()

    async def note(progress: float, total: float | None, message: str | None) -> None:
        noted.append((progress, message))
        come.set()

    code = "import os, time\nprint('begun', flush=True)\nwhile not os.path.exists('go'): "
    code += "time.sleep(0.01)"
    running = asyncio.ensure_future(
        session.call_tool("sandbox_run_code", {"code": code}, progress_callback=note)
    )
    await come.wait()
    assert noted[0] == (6.0, "begun")
    assert (await call(session, "list_sessions"))["sessions"][0]["state"] == "busy"
    await call(session, "interrupt_session", session="python")
    assert "KeyboardInterrupt" in text_of(await running)

    text = await fail(session, "run_code", code="while True: pass", timeout=0.1)
    assert "longer than 0.1 s" in text
    assert (await call(session, "run_code", code="x"))["result"] == "42"


async def check_files(session: ClientSession, folder: Path) -> None:
    await call(session, "write_file", path="a/b.txt", content="h\u00e9llo")
    part = await call(session, "read_file", path="a/b.txt", limit=2)
    assert (part["text"], part["next"]) == ("h", 1)  # no half of a character
    part = await call(session, "read_file", path="a/b.txt", offset=1)
    assert (part["text"], part["total"], part["next"]) == ("\u00e9llo", 6, None)
    await call(session, "write_file", path="raw", content="AAH/", encoding="base64")
    assert (await call(session, "read_file", path="raw"))["encoding"] == "base64"
    assert "not base64" in await fail(
        session, "write_file", path="raw", content="?", encoding="base64"
    )
    assert "could not read" in await fail(session, "read_file", path="none")

    source = folder / "in" / "data.csv"
    assert (await call(session, "upload_file", source=str(source)))["path"] == "data.csv"
    moved = await call(session, "move_to_outputs", path="data.csv", name="kept/data.csv")
    assert moved["path"] == "/mnt/user-data/outputs/kept/data.csv"
    kept = Path(moved["host_path"])
    assert kept in folder.glob("out/*/kept/data.csv")
    assert kept.read_text() == "a,b\n1,2\n"
    assert moved["uri"] == "sandbox://python/outputs/kept/data.csv"
    assert (moved["copied"], moved["replaced"]) == (False, False)
    again = await call(session, "move_to_outputs", path=moved["path"])
    assert again["path"] == "/mnt/user-data/outputs/data.csv"
    again = await call(session, "move_to_outputs", path=again["path"], name="kept/data.csv")
    assert again["host_path"] == moved["host_path"]
    taken = await fail(session, "move_to_outputs", path="a", name="kept")
    assert "there is /mnt/user-data/outputs/kept already" in taken
    assert "give another name, or remove that one first" in taken
    found = await call(session, "list_files", path="/mnt/user-data/outputs/kept")
    assert [file["path"] for file in found["files"]] == [moved["path"]]
    assert "not in outputs" in await fail(
        session, "move_to_outputs", path="raw", name="../../../workspace/x"
    )


async def check_resources(session: ClientSession, folder: Path) -> None:
    found = {item.uri: item for item in (await session.list_resources()).resources}
    uri = "sandbox://python/outputs/kept/data.csv"
    assert found[uri].size == 8
    contents: Any = (await session.read_resource(uri)).contents[0]
    assert contents.text == "a,b\n1,2\n"
    contents = (await session.read_resource("sandbox://python/transcript")).contents[0]
    assert "6 * 7" in contents.text
    contents = (await session.read_resource("sandbox://python/log")).contents[0]
    assert contents.text
    contents = (await session.read_resource("skill://pdf/SKILL.md")).contents[0]
    assert "name: pdf" in contents.text
    assert len((await session.list_resource_templates()).resource_templates) == 4
    await check_completions(session)
    for wrong in ("sandbox://other/log", "skill://../SKILL.md", "sandbox://python/outputs/../x"):
        with pytest.raises(MCPError) as raised:
            await session.read_resource(wrong)
        assert raised.value.data == {"uri": wrong}
    assert "pdf" in {prompt.name for prompt in (await session.list_prompts()).prompts}
    prompt: Any = await session.get_prompt("pdf", {"task": "Merge them."})
    assert prompt.messages[0].content.text.endswith("The task: Merge them.")
    with pytest.raises(MCPError):
        await session.get_prompt("../pdf")


async def check_completions(session: ClientSession) -> None:
    async def complete(uri: str, name: str, value: str, **known: str) -> list[str]:
        ref, argument = ResourceTemplateReference(uri=uri), {"name": name, "value": value}
        return (await session.complete(ref, argument, known)).completion.values

    output = "sandbox://{session}/outputs/{+path}"
    assert await complete(output, "session", "py") == ["python"]
    assert await complete(output, "session", "x") == []
    assert await complete(output, "path", "kept/", session="python") == ["kept/data.csv"]
    assert await complete(output, "path", "", session="other") == []
    assert await complete("skill://{name}/SKILL.md", "name", "pd") == ["pdf"]
    task = {"name": "task", "value": ""}
    ref = PromptReference(name="pdf")
    assert (await session.complete(ref, task)).completion.values == []


async def check_sessions(session: ClientSession) -> None:
    await call(session, "start_session", session="other")
    assert (await call(session, "run_code", code="'x' in globals()", session="other"))[
        "result"
    ] == "False"
    assert "which is the limit" in await fail(session, "start_session", session="third")
    assert "already" in await fail(session, "start_session", session="other")
    assert "no session 'none'" in await fail(session, "run_code", code="1", session="none")
    assert "runs python" in await fail(
        session, "run_code", code="1", session="other", language="bash"
    )
    text = await fail(session, "run_code", code="import os; os._exit(3)", session="other")
    assert 'sandbox_restart_session with session="other"' in text
    assert "has ended" in await fail(session, "shell", command="true", session="other")
    assert (await call(session, "restart_session", session="other"))["state"] == "idle"
    assert (await call(session, "run_code", code="1", session="other"))["result"] == "1"
    code = {"code": "while True: pass", "session": "other"}
    running = asyncio.ensure_future(session.call_tool("sandbox_run_code", code))
    while "busy" not in await states(session):
        await asyncio.sleep(0.01)
    await call(session, "stop_session", session="other")
    assert "was stopped while" in text_of(await running)
    assert "it was stopped" in await fail(session, "run_code", code="1", session="other")
    assert "session: Input" in await fail(session, "run_code", code="1", session=3)
    assert "String should match" in await fail(session, "stop_session", session="../x")
    assert "the limit 3600 s" in await fail(session, "run_code", code="1", timeout=4000)


async def states(session: ClientSession) -> list[str]:
    return [item["state"] for item in (await call(session, "list_sessions"))["sessions"]]


def test_a_cancelled_call_interrupts_its_code() -> None:
    async def scenario() -> None:
        async with stdio_session() as session:
            begun = asyncio.Event()

            async def note(progress: float, total: float | None, message: str | None) -> None:
                begun.set()

            code = "import time\nprint('begun', flush=True)\ntry:\n    time.sleep(1000)\n"
            code += "except KeyboardInterrupt:\n    seen = True"
            running = asyncio.ensure_future(
                session.call_tool("sandbox_run_code", {"code": code}, progress_callback=note)
            )
            await begun.wait()
            running.cancel()
            await asyncio.wait({running})
            assert (await call(session, "run_code", code="seen"))["result"] == "True"

    asyncio.run(scenario())


def test_sessions_that_are_not_used_end() -> None:
    async def scenario() -> None:
        async with stdio_session("--idle", "1") as session:
            await call(session, "run_code", code="1")
            while (await call(session, "list_sessions"))["sessions"]:
                await asyncio.sleep(0.05)
            await call(session, "start_session", session="a")
            while "nothing used it" not in await text(session):
                await asyncio.sleep(0.05)

    async def text(session: ClientSession) -> str:
        result = await session.call_tool("sandbox_read_output", {"session": "python", "run": 1})
        return text_of(result)

    asyncio.run(scenario())
