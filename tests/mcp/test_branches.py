"""A session that goes on from the state of another one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from .servers import call, fail, stdio_session


def test_a_session_is_branched(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stdio_session("--outputs", str(tmp_path), "--sessions", "2") as session:
            await call(session, "run_code", code="x = 1")
            made = await call(session, "branch_session", session="python", name="try")
            assert (made["session"], made["language"]) == ("try", "python")
            other = await call(session, "run_code", code="x += 1; x", session="try")
            assert (other["result"], other["new_session"]) == ("2", False)
            assert (await call(session, "run_code", code="x"))["result"] == "1"
            code = "open('/mnt/user-data/outputs/mine', 'w').close()"
            await call(session, "run_code", code=code, session="try")
            assert [path.parts[-3] for path in tmp_path.rglob("mine")] == ["branches"]
            assert "limit" in await fail(session, "branch_session", session="python")
            await call(session, "stop_session", session="try")
            assert "no session" in await fail(session, "branch_session", session="none")

    asyncio.run(scenario())
