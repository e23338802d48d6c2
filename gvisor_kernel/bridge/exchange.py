"""Messages between one kernel's clients and its link: checked, signed anew, passed on.

A message's way: ``_from_client`` has what a client sent checked, ``_to_kernel`` signed and handed
to the link; ``from_kernel`` does the same the other way. Each channel and direction is a lane, in
which nothing is overtaken, and which does its work on large messages in a worker (``lanes``). When
a kernel starts and ends stands in ``kernel``. On the bridge's loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import zmq

from gvisor_kernel.bridge.clients import Address, ClientSockets, Taken
from gvisor_kernel.bridge.deaths import tell_death
from gvisor_kernel.bridge.identity import KernelIdentity
from gvisor_kernel.bridge.lanes import Lane
from gvisor_kernel.bridge.records import Records
from gvisor_kernel.bridge.sandbox_link import SandboxLink
from gvisor_kernel.bridge.settling import Settling
from gvisor_kernel.bridge.waiting import Sent, WaitingMessages
from gvisor_kernel.bridge.wire import Signer, WireError, WireMessage, new_message, split_message
from gvisor_kernel.link import Channel, LocalProtocolError, Message
from gvisor_kernel.link.frames import Part
from gvisor_kernel.link.state import State

TO_KERNEL_ABOVE = 1024 * 1024
"""Bytes waiting for the kernel on one channel; above, its clients' socket is not read."""
MAX_ANSWER_SECONDS = 60.0
"""How long a request without a reply keeps its sandbox awake. Not every one gets a reply."""
TOLD_PENDING = 1000
"""Requests whose headers are kept, to tell in the right cell why a kernel died."""


class Exchange:
    """From construction, which binds the clients' sockets, to ``close``; across kernels.

    ``is_for_this_kernel(request)`` is asked of each shutdown request; one that is not is dropped.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: KernelIdentity,
        address: Address,
        base: Path,
        records: Records,
        is_for_this_kernel: Callable[[WireMessage], bool],
        executor: Executor,
    ) -> None:
        """Raises LaunchError when the sockets cannot be opened; see ClientSockets."""
        self.link: SandboxLink | None = None
        """Where the kernel is, when there is one."""
        self.inner_key = ""
        """What the kernel signs with. Its clients have another one, the host's."""
        self.holding = False
        """The kernel is not yet its clients': it is being restored, and its key is not settled."""
        self.settling: Settling | None = None
        """What the kernel is to do before it hears of clients."""
        self._host = Signer(identity.key, identity.signature_scheme)
        self._inner = Signer(secrets.token_hex(32).encode())
        self._records = records
        self._is_for_this_kernel = is_for_this_kernel
        self._waiting = WaitingMessages()
        self._pending: dict[str, Part] = {}
        self._unanswered: dict[str, float] = {}
        """Other requests, as many, and when each came."""
        self._checks = {channel: Lane(executor, self.resume) for channel in Channel}
        """What clients sent, to be checked."""
        self._signs = {channel: Lane(executor, self.resume) for channel in Channel}
        """What was checked, and is to be signed for the kernel."""
        self._outs = {channel: Lane(executor) for channel in Channel}
        """What is for clients."""
        self._clients = ClientSockets(
            context, address, base, self._from_client, self._may_take, self._welcome
        )

    @property
    def address(self) -> Address:
        return self._clients.address

    @property
    def pending(self) -> bool:
        """Whether a request that was sent has no reply yet, and may still get one."""
        since = time.monotonic() - MAX_ANSWER_SECONDS
        return bool(self._pending) or any(came > since for came in self._unanswered.values())

    @property
    def running(self) -> bool:
        """Whether the kernel takes messages."""
        link = self.link
        if link is None or link.ended or self.holding:
            return False
        return link.connection.state is State.RUNNING

    # -- for each kernel -------------------------------------------------------------------------

    def expose(self) -> None:
        """Let clients connect: a kernel is about to start."""
        self._clients.expose()

    def sign_for(self, key: str) -> None:
        """The kernel signs with ``key``."""
        self.inner_key, self._inner = key, Signer(key.encode())

    def settle(self, code: str) -> asyncio.Future[None]:
        """Have the kernel run ``code`` first, unseen. Raises LocalProtocolError.

        The future raises WireError where the code fails. ``settling`` is the caller's to clear.
        """
        assert self.link is not None
        self.settling = Settling(code, asyncio.get_running_loop().create_future())
        self.link.send_message(Channel.SHELL, self._inner.sign(self.settling.request))
        return self.settling.done

    def deliver_waiting(self) -> None:
        """Send the kernel what came for it before it could take anything."""
        for channel, message in self._waiting.take():
            self._to_kernel(channel, message)

    def resume(self) -> None:
        """There is room again: clients' sockets may be read."""
        self._clients.resume()

    def tell(self, reason: str) -> None:
        """Show ``reason`` in the cell that was running, as an error of its own."""
        if self._pending:
            for message in tell_death(reason, next(iter(self._pending.values()))):
                self._publish(message)

    def forget_cells(self) -> None:
        """The kernel has ended: what it was asked to run is not for the next one to run."""
        self._pending.clear()
        self._unanswered.clear()
        self._waiting.drop_executions()

    async def let_out(self, seconds: float) -> None:
        """Give clients time to read what waits for them."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (self._clients.waiting() or self._working) and loop.time() < deadline:
            await asyncio.sleep(0.01)

    async def settle_out(self, seconds: float) -> None:
        """Let what the kernel has sent be checked, and told of, before more is said of it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._working and loop.time() < deadline:
            await asyncio.sleep(0.01)

    @property
    def _working(self) -> bool:
        """Something that the kernel sent is still being checked."""
        return not all(lane.empty for lane in self._outs.values())

    def close(self) -> None:
        """Close the clients' sockets. Idempotent."""
        for lanes in (self._checks, self._signs, self._outs):
            for lane in lanes.values():
                lane.close()
        self._clients.close()

    # -- from clients ----------------------------------------------------------------------------

    def _may_take(self, channel: Channel) -> bool:
        if channel is Channel.IOPUB:
            return True
        if not (self._checks[channel].empty and self._signs[channel].empty):
            return False
        if self.running:
            assert self.link is not None
            return self.link.connection.queued(channel) < TO_KERNEL_ABOVE
        return not self._waiting.full

    def _from_client(self, channel: Channel, parts: list[Part]) -> None:
        """Check what a client sent and pass it on, or keep it for the kernel that is starting."""
        if channel is Channel.HB:
            if self.link is not None and self.link.stopped:
                self._clients.send(channel, parts)  # in the place of a kernel that was well
            else:
                self._to_kernel(channel, parts)
            return
        self._checks[channel].put(
            sum(map(len, parts)),
            partial(_check, parts, self._host),
            partial(self._take_checked, channel),
        )

    def _take_checked(self, channel: Channel, message: WireMessage | WireError) -> None:
        try:
            if isinstance(message, WireError):
                raise message
            kind, message_id = message.kind, message.id
        except WireError as error:
            self._note_drop("a client's", channel, error)
            return
        if channel is Channel.CONTROL and kind == "shutdown_request":
            if not self._is_for_this_kernel(message):
                return
        elif kind == "execute_request" and len(self._pending) < TOLD_PENDING:
            self._pending[message_id] = message.header
        elif channel is not Channel.STDIN and kind.endswith("_request"):
            self._note_request(message_id)
        self._records.asked(message)
        self._to_kernel(channel, message)

    def _note_request(self, message_id: str) -> None:
        if len(self._unanswered) >= TOLD_PENDING:
            del self._unanswered[next(iter(self._unanswered))]
        self._unanswered[message_id] = time.monotonic()

    def _to_kernel(self, channel: Channel, message: Sent) -> None:
        if not self.running:
            self._waiting.add(channel, message)
            return
        if isinstance(message, list):
            self._send_signed(channel, self._inner, message)
            return
        self._signs[channel].put(
            message.size,
            partial(self._inner.sign, message),
            partial(self._send_signed, channel, self._inner),
        )

    def _send_signed(self, channel: Channel, signer: Signer, parts: list[Part]) -> None:
        if signer is not self._inner or not self.running:
            return  # the kernel has ended meanwhile, as it may with what was written to it
        assert self.link is not None
        try:
            self.link.send_message(channel, parts)
        except LocalProtocolError as error:
            self._note_drop("a client's", channel, error)

    def _welcome(self, topic: bytes) -> None:
        """Tell a topic's first subscriber that it is connected (JEP 65): it misses no output."""
        content = {"subscription": topic.decode("utf-8", "replace")}
        self._publish(new_message("iopub_welcome", content, b"{}", topic))

    def _publish(self, message: WireMessage) -> None:
        self._outs[Channel.IOPUB].put(
            message.size,
            partial(self._host.sign, message),
            partial(self._clients.send, Channel.IOPUB),
        )

    # -- from the kernel -------------------------------------------------------------------------

    def from_kernel(self, message: Message) -> None:
        """Check what the kernel sent, sign it, send it; then give the credit back."""
        link = self.link
        assert link is not None

        def taken() -> None:
            link.connection.consumed(message)
            link.flush()

        channel = message.channel
        if channel is Channel.HB:
            self._clients.send(channel, message.parts, taken)
            return
        self._outs[channel].put(
            message.size,
            partial(_check_and_sign, message.parts, self._inner, self._host),
            partial(self._to_client, channel, taken),
        )

    def _to_client(
        self, channel: Channel, taken: Taken, signed: tuple[WireMessage, list[Part]] | WireError
    ) -> None:
        try:
            if isinstance(signed, WireError):
                raise signed
            checked, parts = signed
            wanted = checked.kind != "iopub_welcome"
            if self.settling is not None and self.settling.takes(channel, checked):
                wanted = False
            else:
                self._take_note(channel, checked)
        except WireError as error:
            self._note_drop("the kernel's", channel, error)
            wanted = False
        if wanted:
            self._clients.send(channel, parts, taken)
        else:
            taken()

    def _take_note(self, channel: Channel, message: WireMessage) -> None:
        if channel in (Channel.SHELL, Channel.CONTROL):
            self._pending.pop(message.parent_id, None)
            self._unanswered.pop(message.parent_id, None)
        self._records.answered(channel, message)

    def _note_drop(self, whose: str, channel: Channel, error: Exception) -> None:
        self._records.note_drop(f"{whose} message on {channel.name.lower()} was dropped: {error}")


# In workers, for large messages: no state, and no exception.


def _check(parts: list[Part], signer: Signer) -> WireMessage | WireError:
    try:
        message = split_message(parts)
        signer.check(message)
    except WireError as error:
        return error
    return message


def _check_and_sign(
    parts: list[Part], inner: Signer, host: Signer
) -> tuple[WireMessage, list[Part]] | WireError:
    message = _check(parts, inner)
    return message if isinstance(message, WireError) else (message, host.sign(message))
