"""Calls one function with many inputs, each call in a clean sandbox."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gvisor_kernel.api.execution import Execution, ExecutionError
from gvisor_kernel.errors import GvisorKernelError, SettingError

ANSWER = "application/vnd.gvisor-kernel.answer+json"
INPUT = "/home/user/.gvisor-kernel-input.json"
MAX_IN_CODE = 64 * 1024
"""Characters of an input that travels in the code: ipykernel takes half a second for a megabyte."""
MAX_VALUE = 16 * 1024 * 1024
"""Bytes of a result, as JSON."""


@dataclass(frozen=True)
class MapResult:
    """The result of one call: ``value`` (JSON), or ``error``. ``execution``: what it printed."""

    value: Any
    error: ExecutionError | None
    execution: Execution

    @property
    def ok(self) -> bool:
        """Return whether the call returned."""
        return self.error is None


async def run_map(
    function: Callable[..., Any] | str,
    inputs: Sequence[Any],
    *,
    workers: int = 4,
    timeout: float | None = None,
    **settings: Any,
) -> list[MapResult]:
    """Return the results in the order of ``inputs``; see ``Sandbox.map``.

    :raises ValueError: when there is no source, or an input is not JSON
    :raises GvisorKernelError: when a sandbox cannot be started; the others are ended then
    """
    if settings.get("language", "python") != "python":
        raise SettingError("language", settings["language"], "python: the function is Python")
    name, source = find_source(function)
    texts = [encode_input(value) for value in inputs]
    limit = asyncio.Semaphore(max(1, workers))

    async def call(text: str) -> MapResult:
        async with limit:
            return await _call(name, source, text, timeout, settings)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call(text)) for text in texts]
    except* GvisorKernelError as errors:
        raise _first(errors) from None
    return [task.result() for task in tasks]  # no timeout: it is done


async def _call(
    name: str, source: str, text: str, timeout: float | None, settings: dict[str, Any]
) -> MapResult:
    from gvisor_kernel.api.async_sandbox import AsyncSandbox

    async with AsyncSandbox(**settings) as sandbox:
        is_large = len(text) > MAX_IN_CODE
        if is_large:
            await sandbox.files.write(INPUT, text)
        code = make_call(name, source, None if is_large else text)
        execution = await sandbox.run(code, timeout=timeout, max_rich=MAX_VALUE)
    values = [result.data[ANSWER] for result in execution.results if ANSWER in result.data]
    error = execution.error
    if error is None and not values:
        error = ExecutionError("NoValue", "The call gave no value that is JSON.")
    value = values[-1].get("value") if values and isinstance(values[-1], dict) else None
    return MapResult(None if error is not None else value, error, execution)


def _first(errors: BaseExceptionGroup[GvisorKernelError]) -> GvisorKernelError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, GvisorKernelError)
    return error


def find_source(function: Callable[..., Any] | str) -> tuple[str, str]:
    """Return a function's name and source.

    :raises ValueError: there is none, or it is not one function
    """
    if isinstance(function, str):
        source = textwrap.dedent(function)
    else:
        try:
            source = textwrap.dedent(inspect.getsource(function))
        except (OSError, TypeError) as error:
            raise ValueError(
                "The function has no source that can be read: give its source as text."
            ) from error
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError("The source is not Python; a lambda must be written with def.") from error
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if not names:
        raise ValueError("The source has no function: write one with def.")
    return names[-1], source


def encode_input(value: Any) -> str:
    """Return an input as JSON.

    :raises ValueError: it is not JSON
    """
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"An input is not JSON: {error}.") from error


def make_call(name: str, source: str, text: str | None) -> str:
    """Return code that calls a function and shows its result.

    ``text``: the input, as JSON; None if it is in the file INPUT.
    """
    value = f"_json.load(open({INPUT!r}))" if text is None else f"_json.loads({text!r})"
    return (
        f"{source}\n"
        f"import json as _json\n"
        f"_value = _json.loads(_json.dumps({name}({value})))\n"
        f"get_ipython().display_pub.publish(data={{{ANSWER!r}: {{'value': _value}}}})\n"
    )
