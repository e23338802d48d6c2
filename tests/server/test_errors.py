"""What a client is told of an error of this package."""

from __future__ import annotations

import asyncio

import pytest
from tornado import web

from gvisor_kernel.errors import GvisorKernelError, LaunchError, NotIdle, SnapshotError
from gvisor_kernel.server.handlers import answer_errors


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            SnapshotError("It is full.", "free some.", "runsc: a/b"),
            "It is full.\nWhat to do: free some.",
        ),
        (NotIdle("It works.", "wait."), "It works.\nWhat to do: wait."),
        (LaunchError("It is off.", "set it.", "runsc: a/b"), "It is off."),
    ],
)
def test_hints_for_the_reader_and_no_words_of_programs(error: GvisorKernelError, told: str) -> None:
    @answer_errors
    async def fail() -> None:
        raise error

    with pytest.raises(web.HTTPError) as raised:
        asyncio.run(fail())
    assert (raised.value.status_code, raised.value.log_message) == (409, told)
