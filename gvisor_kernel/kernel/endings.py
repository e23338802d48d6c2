"""Tells which files end with a sandbox, and those who want to know that it has ended. Blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.kernel.facts import Ended, Happenings, KernelFacts, Left
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.workspace import describe_left, list_left, read_left
from gvisor_kernel.runtimes.base import Sandbox

log = logging.getLogger(__name__)

JudgeLeft: TypeAlias = Callable[[Sandbox, Mapping[str, Any]], Left]
"""Returns which files end with a sandbox, of what it has said."""


def tell_end(
    plan: KernelPlan,
    facts: KernelFacts,
    sandbox: Sandbox,
    part: bytes,
    judge_left: JudgeLeft | None,
    logs: bool,
) -> None:
    """Tell the end of ``sandbox``. ``part``: what it has said of its files. Raises nothing.

    ``logs``: whether files that are lost are in the log, too.
    """
    request, left = plan.request, None
    try:
        content = read_left(part)
        if content is not None and plan.spec.uploads is not None:
            left = list_left(content) if judge_left is None else judge_left(sandbox, content)
    except GvisorKernelError as error:  # it says what cannot be
        log.info("%s: %s", request.kernel_name, error)
    try:
        words = describe_left(left) if left is not None else ""
        if words and logs:
            log.warning("%s in %s: %s", request.kernel_name, facts.folder, words)
        ended = Ended(request.kernel_id, request.kernel_name, facts, left)
        Happenings.instance().tell_end(ended)
    except Exception:
        log.exception("The end of a sandbox could not be told")
