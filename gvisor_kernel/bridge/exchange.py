"""Messages between one kernel's clients and its link: checked, signed anew, passed on.

A message's way, in one pass: ``_from_client`` checks and signs what a client sent and hands it to
the link; ``from_kernel`` does the same the other way. When a kernel starts and ends stands in
``kernel``. On the bridge's loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from gvisor_kernel.bridge.clients import Address, ClientSockets
from gvisor_kernel.bridge.deaths import tell_death
from gvisor_kernel.bridge.identity import KernelIdentity
from gvisor_kernel.bridge.records import Records
from gvisor_kernel.bridge.sandbox_link import SandboxLink
from gvisor_kernel.bridge.settling import Settling
from gvisor_kernel.bridge.waiting import Sent, WaitingMessages
from gvisor_kernel.bridge.wire import Signer, WireError, WireMessage, new_message, split_message
from gvisor_kernel.link import Channel, LocalProtocolError, Message
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
        self._pending: dict[str, bytes] = {}
        self._unanswered: dict[str, float] = {}
        """Other requests, as many, and when each came."""
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
        while self._clients.waiting() and loop.time() < deadline:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Close the clients' sockets. Idempotent."""
        self._clients.close()

    # -- from clients ----------------------------------------------------------------------------

    def _may_take(self, channel: Channel) -> bool:
        if channel is Channel.IOPUB:
            return True
        if self.running:
            assert self.link is not None
            return self.link.connection.queued(channel) < TO_KERNEL_ABOVE
        return not self._waiting.full

    def _from_client(self, channel: Channel, parts: list[bytes]) -> None:
        """Check what a client sent and pass it on, or keep it for the kernel that is starting."""
        if channel is Channel.HB:
            if self.link is not None and self.link.stopped:
                self._clients.send(channel, parts)  # in the place of a kernel that was well
            else:
                self._to_kernel(channel, parts)
            return
        try:
            message = split_message(parts)
            self._host.check(message)
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
        assert self.link is not None
        parts = message if isinstance(message, list) else self._inner.sign(message)
        try:
            self.link.send_message(channel, parts)
        except LocalProtocolError as error:
            self._note_drop("a client's", channel, error)

    def _welcome(self, topic: bytes) -> None:
        """Tell a topic's first subscriber that it is connected (JEP 65): it misses no output."""
        content = {"subscription": topic.decode("utf-8", "replace")}
        self._publish(new_message("iopub_welcome", content, b"{}", topic))

    def _publish(self, message: WireMessage) -> None:
        self._clients.send(Channel.IOPUB, self._host.sign(message))

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
        try:
            checked = split_message(message.parts)
            self._inner.check(checked)
            wanted = checked.kind != "iopub_welcome"
            if self.settling is not None and self.settling.takes(channel, checked):
                wanted = False
            else:
                self._take_note(channel, checked)
        except WireError as error:
            self._note_drop("the kernel's", channel, error)
            wanted = False
        if wanted:
            self._clients.send(channel, self._host.sign(checked), taken)
        else:
            taken()

    def _take_note(self, channel: Channel, message: WireMessage) -> None:
        if channel in (Channel.SHELL, Channel.CONTROL):
            self._pending.pop(message.parent_id, None)
            self._unanswered.pop(message.parent_id, None)
        self._records.answered(channel, message)

    def _note_drop(self, whose: str, channel: Channel, error: Exception) -> None:
        self._records.note(f"{whose} message on {channel.name.lower()} was dropped: {error}")
