"""The tools for checkpoints of a session."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from gvisor_kernel.kernel.noted_outputs import OutputChanges
from gvisor_kernel.mcp.results import make_plain, make_result, mark
from gvisor_kernel.mcp.tools import Call, OneSession, StateResult, describe, find_session, tool
from gvisor_kernel.shown_text import printable_name

MAX_PATHS = 20
"""Paths of outputs that a result names."""
CheckpointName = Annotated[
    str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
]


@tool("Save a checkpoint")
async def sandbox_checkpoint(
    call: Call,
    session: OneSession,
    name: Annotated[CheckpointName | None, Field(description="a new name")] = None,
) -> StateResult:
    """Save the state of a session (variables, processes, files but outputs), to go back to it with
    sandbox_rewind."""
    found = await find_session(call, session, None)
    made = await found.use(found.sandbox.checkpoint(name))
    return make_result(f"The checkpoint {made} is saved.", describe(found))


@tool("Rewind a session", destroys=True)
async def sandbox_rewind(
    call: Call,
    session: OneSession,
    checkpoint: Annotated[
        CheckpointName | None, Field(description="default: the state before the last run")
    ] = None,
) -> StateResult:
    """Take back what runs have done to variables, processes and files, but outputs. Undo it with
    the checkpoint before-rewind."""
    found = await find_session(call, session, None)
    checkpoint = checkpoint or found.sandbox.find_before_last_run()
    outputs = await found.use(found.sandbox.rewind(checkpoint))
    text = f"The session went back to {checkpoint}.{describe_outputs(outputs)}"
    return make_result(text, describe(found))


@tool("Remove a checkpoint", destroys=True)
async def sandbox_remove_checkpoint(
    call: Call, session: OneSession, checkpoint: CheckpointName
) -> StateResult:
    """Remove a checkpoint of a session, for good, as when there is no room for another one."""
    found = await find_session(call, session, None)
    await found.use(found.sandbox.remove_checkpoint(checkpoint))
    return make_result(f"The checkpoint {checkpoint} is removed.", describe(found))


def describe_outputs(outputs: OutputChanges) -> str:
    """Return what a model reads about outputs, whose names the sandbox has chosen."""
    paths = [
        f"{word}: {printable_name(make_plain(path))[:200]}"
        for word in ("added", "changed", "removed")
        for path in getattr(outputs, word)
    ]
    if not paths:
        return ""
    shown, more = "\n".join(paths[:MAX_PATHS]), len(paths) - MAX_PATHS
    rest = f"\n[{more} more]" if more > 0 else ""
    return f" These outputs are not as they were then:\n{mark('outputs', shown)}{rest}"


CHECKPOINT_TOOLS = (sandbox_checkpoint, sandbox_rewind, sandbox_remove_checkpoint)
