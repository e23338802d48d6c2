"""Answers of the bridge reach the caller, also on a loop whose wake-ups other processes read."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import pytest

from gvisor_kernel.bridge import Bridge
from gvisor_kernel.errors import LaunchError

from ..patience import scale_seconds

SECONDS = scale_seconds(20)


def test_answer_arrives_when_sibling_process_reads_the_wake_up() -> None:
    """Siblings that were forked with a loop share its pipe, and only one reads each byte."""
    loop: Any = asyncio.new_event_loop()
    loop._write_to_self = lambda: None
    select = loop._selector.select
    answers: list[int] = []
    waits, said = threading.Event(), threading.Event()

    def select_and_notify(timeout: float | None = None) -> Any:
        if timeout is None or timeout > 0:
            waits.set()
        return select(timeout)

    loop._selector.select = select_and_notify

    async def answer() -> int:
        assert await asyncio.to_thread(waits.wait, SECONDS)
        said.set()
        return 42

    def wait() -> None:
        answers.append(loop.run_until_complete(Bridge.instance().run(answer())))
        loop.close()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert said.wait(SECONDS)
    waiting.join(SECONDS)
    assert answers == [42]


SIBLINGS = """
import asyncio, os, signal
from jupyter_core.utils import run_sync
from gvisor_kernel.bridge import Bridge

async def answer():
    await asyncio.sleep(0.001)
    return 42

async def ask():
    return await Bridge.instance().run(answer())

ask_now, pids = run_sync(ask), []
ask_now()
for _ in range(12):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        for _ in range(300):
            assert ask_now() == 42
        os._exit(0)
    pids.append(pid)
print({os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids})
"""


@pytest.mark.slow
def test_forked_siblings_that_share_loop_get_answers() -> None:
    """jupyter_core keeps a loop for a manager's calls, and a pool of workers inherits it."""
    argv = [sys.executable, "-W", "ignore", "-c", SIBLINGS]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90)
    assert done.stdout == "{0}\n", done.stderr


def test_cancelled_call_is_cancelled_on_bridge() -> None:
    """The coroutine ends on the bridge's loop."""
    ended = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def cancel() -> None:
        task = asyncio.ensure_future(Bridge.instance().run(endless()))
        await asyncio.wait({task}, timeout=0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert ended.wait(SECONDS)


def test_exception_reaches_caller() -> None:
    async def fail() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        asyncio.run(Bridge.instance().run(fail()))


def test_call_to_ended_bridge_raises_launch_error() -> None:
    bridge = Bridge()
    bridge.end()
    with pytest.raises(LaunchError, match="this process is exiting"):
        asyncio.run(bridge.run(asyncio.sleep(0)))
    bridge._loop.close()
    bridge.executor.shutdown()
