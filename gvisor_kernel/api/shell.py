"""Commands of the shell in a sandbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gvisor_kernel.api.execution import ExecutionError, Missing, Printed, Result
from gvisor_kernel.api.programs import ANSWER, make_code, run_command
from gvisor_kernel.errors import SandboxError

if TYPE_CHECKING:
    from gvisor_kernel.api.async_sandbox import AsyncSandbox
    from gvisor_kernel.api.collector import Event


@dataclass(frozen=True)
class ShellResult:
    """What a command gave.

    ``status``: its exit status, negative for a signal; None if it was ended (``ended_by``, as in
    an Execution) or could not be run, which ``error`` explains. ``duration`` is in seconds.
    ``missing``: what was over the limit of output; ``Sandbox.output`` returns all of it.
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
        """What it printed to both streams, stdout first."""
        return self.stdout + self.stderr

    @property
    def ok(self) -> bool:
        """Whether it exited with status 0."""
        return self.status == 0


class Answers:
    """The answer of a program of ``programs.py``. Only the last is kept: a sandbox sends many."""

    last: object = None

    async def take(self, event: object) -> None:
        """Listen to a run."""
        if isinstance(event, Result) and ANSWER in event.data:
            self.last = event.data[ANSWER]


async def run_shell(
    sandbox: AsyncSandbox,
    command: str,
    timeout: float | None,
    max_output: int | None,
    on_output: Callable[[str], None] | None,
) -> ShellResult:
    """Run a command; see ``AsyncSandbox.shell``."""
    require_python(sandbox, "shell")
    answers = Answers()

    async def listen(event: Event) -> None:
        await answers.take(event)
        if isinstance(event, Printed) and on_output is not None:
            on_output(event.text)

    execution = await sandbox._execute(
        make_code(run_command), timeout, listen, max_output, arguments={"command": command}
    )
    answer = answers.last
    status = answer.get("status") if isinstance(answer, dict) else None
    return ShellResult(
        status=status if isinstance(status, int) and not isinstance(status, bool) else None,
        stdout=execution.stdout,
        stderr=execution.stderr,
        error=execution.error,
        ended_by=execution.ended_by,
        duration=execution.duration,
        missing=execution.missing,
        id=execution.id,
    )


def require_python(sandbox: AsyncSandbox, what: str) -> None:
    """Check that the sandbox's kernel can run the programs of ``programs.py``.

    :raises SandboxError: it cannot
    """
    if sandbox.language != "python":
        raise SandboxError(
            f"A sandbox of the language {sandbox.language} has no {what}.",
            "run a command in the language itself, or exchange files by uploads= and outputs=.",
        )
