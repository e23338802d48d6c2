"""Commands of the shell in a sandbox. They run beside its kernel, in any language."""

from __future__ import annotations

import asyncio
import codecs
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from gvisor_kernel.api.collector import Collector, clean_name, with_text
from gvisor_kernel.api.execution import ExecutionError, Missing, describe_kernel_end
from gvisor_kernel.bridge.deaths import End
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.kernel.sandbox_call import SandboxCall
from gvisor_kernel.link.service_messages import ServiceMessage

STREAMS = ("stdout", "stderr")
END_POLLS, END_POLL_SECONDS = 20, 0.05
GRACE_SECONDS = 5.0
"""Seconds that a command may go on after its SIGINT, before SIGKILL, and after that."""


@dataclass(frozen=True)
class ShellResult:
    """The result of a command.

    ``status``: its exit status, negative for a signal; None if it could not be run to its end,
    which ``error`` explains. ``ended_by``: None, or "interrupt" or "kill" if it ran longer than its
    timeout, or "death" if the kernel ended meanwhile. ``duration`` is in seconds. ``missing``: what
    was over the limit of output; ``Sandbox.output`` returns all of it.
    """

    status: int | None
    stdout: str = ""
    stderr: str = ""
    error: ExecutionError | None = None
    ended_by: str | None = None
    duration: float = 0.0
    missing: Missing = field(default_factory=Missing)
    id: str = ""

    @property
    def output(self) -> str:
        """Return the text that it printed to both streams, stdout first."""
        return self.stdout + self.stderr

    @property
    def ok(self) -> bool:
        """Return whether it exited with status 0."""
        return self.status == 0


async def run_shell(
    call: SandboxCall,
    collector: Collector,
    seconds: float | None,
    find_end: Callable[[], End | None],
    on_output: Callable[[str], None] | None = None,
) -> ShellResult:
    """Follow the command that ``call`` has begun to its end; see ``AsyncSandbox.shell``."""
    running = asyncio.ensure_future(_Command(call, collector, on_output).run())
    ended_by = None
    error = None
    status: object = None
    is_over = False
    try:
        await asyncio.wait({running}, timeout=seconds)
        for how, signum in (("interrupt", signal.SIGINT), ("kill", signal.SIGKILL)):
            if not running.done():
                ended_by = how
                with suppress(SandboxError):
                    await call.send({"signal": int(signum)})
                await asyncio.wait({running}, timeout=GRACE_SECONDS)
        if ended_by is not None:
            text = f"The command ran longer than {seconds:g} s and was"
            text += " interrupted." if ended_by == "interrupt" else " killed."
            error = with_text(None, "Timeout", text)
        if running.done():
            status = running.result()  # no timeout: it is done
            is_over = True
    except SandboxError as failure:
        end = await _wait_for_end(find_end)
        ended_by = "death" if end is not None else ended_by
        error = describe_kernel_end("CommandFailed", end or failure.fact)
    finally:
        running.cancel()
        running.add_done_callback(lambda task: task.cancelled() or task.exception())
        # A task of its own: a second cancellation must not leave the command, or the call.
        # no timeout: steps of the bridge's loop
        await asyncio.shield(asyncio.ensure_future(_end(call, is_over)))
    is_status = type(status) is int and -64 <= status <= 255
    execution = collector.finish(ended_by, error)
    return ShellResult(
        status=status if is_status and isinstance(status, int) else None,
        stdout=execution.stdout,
        stderr=execution.stderr,
        error=execution.error,
        ended_by=ended_by,
        duration=execution.duration,
        missing=execution.missing,
        id=execution.id,
    )


async def _end(call: SandboxCall, is_over: bool) -> None:
    """Forget a call; kill its command unless that is over."""
    if not is_over:
        with suppress(SandboxError):
            await call.send({"signal": int(signal.SIGKILL)})
    await call.close()


async def _wait_for_end(find_end: Callable[[], End | None]) -> End | None:
    """Return why the kernel has ended, if it has; its end is reported a moment after the call's."""
    for _ in range(END_POLLS):
        end = find_end()
        if end is not None:
            return end
        await asyncio.sleep(END_POLL_SECONDS)
    return find_end()


class _Command:
    """Takes a command's output until its end."""

    def __init__(
        self, call: SandboxCall, collector: Collector, on_output: Callable[[str], None] | None
    ) -> None:
        self._call = call
        self._collector = collector
        self._on_output = on_output
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {name: decoder("replace") for name in STREAMS}

    async def run(self) -> object:
        """Return what the sandbox says is the command's status.

        :raises SandboxError: it could not be run, or the kernel has ended
        """
        while True:
            message = await self._call.receive()
            if message.content.get("done") is True:
                for name in STREAMS:
                    self._add(name, b"", True)
                if "error" in message.content:
                    reason = clean_name(str(message.content["error"])[:300])
                    raise SandboxError(f"The command could not be run: {reason}.")
                return message.content.get("status")
            await self._take(message)

    async def _take(self, message: ServiceMessage) -> None:
        name = message.content.get("stream")
        if name not in STREAMS or not message.data:
            raise SandboxError("The sandbox did not answer as it should about a command.")
        self._add(name, message.data, False)
        await self._call.send({"more": len(message.data)})

    def _add(self, name: str, data: bytes, is_last: bool) -> None:
        text = self._decoders[name].decode(data, is_last)
        if text:
            content = {"name": name, "text": text}
            self._collector.add({"msg_type": "stream", "content": content})
            if self._on_output is not None:
                self._on_output(text)
