"""Completions: the values that a client may offer while a person fills in a resource's template.

Only names that the client may list anyway. A template or a prompt that is not known, and an
argument with free text, have no completions, which is no error: clients ask with each key.
"""

from __future__ import annotations

from urllib.parse import unquote

from mcp_types import CompleteRequestParams, Completion, ResourceTemplateReference

from gvisor_kernel.mcp.resources import (
    LOG_OF,
    OUTPUT_OF,
    SKILL_OF,
    TRANSCRIPT_OF,
    list_outputs,
)
from gvisor_kernel.mcp.sessions import Sessions
from gvisor_kernel.mcp.skill_files import list_skills
from gvisor_kernel.shown_text import printable_name

MAX_VALUES = 100
"""The protocol's limit."""


async def complete(sessions: Sessions, params: CompleteRequestParams) -> Completion:
    """Return the values that begin with what was typed, at most MAX_VALUES."""
    typed = params.argument.value
    found = [value for value in await find_values(sessions, params) if value.startswith(typed)]
    return Completion(values=found[:MAX_VALUES], total=len(found), has_more=len(found) > MAX_VALUES)


async def find_values(sessions: Sessions, params: CompleteRequestParams) -> list[str]:
    """Return all values of the argument, in order."""
    if not isinstance(params.ref, ResourceTemplateReference):
        return []  # the one argument of prompts is free text
    template, argument = params.ref.uri, params.argument.name
    if (template, argument) == (SKILL_OF, "name"):
        return sorted(skill.name for skill in await list_skills())
    if sessions.is_stateless or template not in (OUTPUT_OF, TRANSCRIPT_OF, LOG_OF):
        return []
    if argument == "session":
        return sorted(session.name for session in sessions.list())
    if (template, argument) == (OUTPUT_OF, "path"):
        known = (params.context.arguments if params.context else None) or {}
        return await find_paths(sessions, known.get("session"))
    return []


async def find_paths(sessions: Sessions, name: str | None) -> list[str]:
    """Return the files in the outputs of a session, or of all if none is named.

    A name that hides something is left out: whoever types it could not see what it is.
    """
    found: set[str] = set()
    for session in sessions.list():
        if name in (None, session.name):
            start = f"sandbox://{session.name}/outputs/"
            listed, _ = await list_outputs(session)
            found |= {unquote(resource.uri.removeprefix(start)) for resource in listed}
    return sorted(path for path in found if path == printable_name(path))
