"""A sandbox that does not begin in time is replaced once, if nothing of a client was sent to it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from gvisor_kernel import Sandbox
from gvisor_kernel.bridge.attached_sandbox import AttachedSandbox
from gvisor_kernel.bridge.exchange import Exchange
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.link import Channel
from gvisor_kernel.runtimes.runsc import starting

from .. import leaks
from ..world import World

pytestmark = pytest.mark.once

SECONDS = 0.2
"""How long the late ones have; the others have the usual time."""
SAID = {
    "sentry": "was not started within",
    "greet": "did not answer within",
    "start": "did not start within",
}


class Late:
    """Makes the first ``left`` sandboxes late at one step."""

    def __init__(self, step: str, left: int, patch: pytest.MonkeyPatch) -> None:
        self.left = left
        if step == "sentry":
            wait = starting._wait
            patch.setattr(starting, "_wait", lambda *words: wait(*words) and not self.is_late())
        else:
            self._lose_answers(getattr(AttachedSandbox, step), patch)

    def is_late(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def _lose_answers(self, step: Any, patch: pytest.MonkeyPatch) -> None:
        async def late(attached: AttachedSandbox, *words: Any) -> Any:
            if not self.is_late():
                return await step(attached, *words)
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(attached, "take_answer", lambda _: None)
                given = [SECONDS if isinstance(word, float) else word for word in words]
                return await step(attached, *given)

        patch.setattr(AttachedSandbox, step.__name__, late)


@pytest.mark.parametrize("step", SAID)
def test_a_sandbox_that_is_late_is_replaced_once(
    step: str, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = leaks.find_things(world, leaks.SANDBOX)
    late = Late(step, 1, monkeypatch)
    with Sandbox(snapshot="off") as sandbox:
        assert sandbox.run("6 * 7").text == "42"
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert SAID[step] in warning.message
    assert "Starting another one." in warning.message
    late.left = 2
    with pytest.raises(LaunchError, match=f"{SAID[step]}.*Nor did another one."):
        Sandbox(snapshot="off")
    assert late.left == 0
    assert not leaks.find_leftovers(before, lambda: leaks.find_things(world, leaks.SANDBOX))


def test_a_sandbox_that_got_a_message_is_not_replaced(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver = Exchange.deliver_waiting

    def send(exchange: Exchange) -> None:
        deliver(exchange)
        exchange._to_kernel(Channel.HB, [b"message"])

    late = Late("start", 1, monkeypatch)
    monkeypatch.setattr(Exchange, "deliver_waiting", send)
    with pytest.raises(LaunchError) as caught:
        Sandbox(snapshot="off")
    assert caught.value.fact == f"The kernel's process did not start within {SECONDS:g} s."
    assert late.left == 0
