"""Passes messages between the clients of one kernel and its link: checks them, signs them again.

``_from_client`` checks a client's message, ``_to_kernel`` signs it and gives it to the link;
``from_kernel`` does both for the other direction. Each channel and direction has a lane, which
keeps the order and handles large messages in a worker thread (``queues``). The start and the end of
a kernel are in ``kernel``. Everything runs on the bridge's loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import zmq

from gvisor_kernel.bridge.addresses import Address, KernelIdentity
from gvisor_kernel.bridge.clients import ClientSockets, OnSent
from gvisor_kernel.bridge.deaths import make_death_messages, make_note, make_refusal
from gvisor_kernel.bridge.doors import NOTHING, AllowedEffects, guard, read_request
from gvisor_kernel.bridge.memory_answers import MemoryAnswers
from gvisor_kernel.bridge.queues import ClientMessage, Lane, RenewalRequest, WaitingMessages
from gvisor_kernel.bridge.records import Records
from gvisor_kernel.bridge.replies import Replies
from gvisor_kernel.bridge.sandbox_link import SandboxLink
from gvisor_kernel.bridge.wire import Signer, WireError, WireMessage, new_message, split_message
from gvisor_kernel.link import Channel, LocalProtocolError, Message
from gvisor_kernel.link.frames import Part
from gvisor_kernel.link.state import State
from gvisor_kernel.shown_text import printable_name

T = TypeVar("T")

MAX_TO_KERNEL = 1024 * 1024
"""Bytes that wait for the kernel on one channel. Above this the clients' socket is not read."""
MAX_ANSWER_SECONDS = 60.0
"""Seconds that a request without a reply keeps the sandbox awake. Some never get a reply."""
MAX_REFUSAL, MAX_REFUSALS = 400, 5
"""Characters of a refused connection that is shown in a cell, and their number."""
CUT = "the server was killed while this cell ran: some of its output may be missing here"
MAX_PENDING = 1000
"""Requests whose headers are kept, so that the death of a kernel is shown in the right cell."""


class Exchange:
    """Clients' sockets and the messages on them, from construction to ``close``, for all restarts.

    A shutdown request for which ``is_for_this_kernel(request)`` is false is dropped.
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
        """:raises LaunchError: when the sockets cannot be opened; see ClientSockets"""
        self.link: SandboxLink | None = None
        """The link to the kernel's sandbox, if there is one."""
        self.kernel_key = ""
        """The key that the kernel signs with. Clients use the host key instead."""
        self.has_sent = False
        """True once a message of a client was sent to the kernel that has this key."""
        self._has_failed = False
        self.restoring = False
        """The kernel is being restored: its key is not known yet, and it gets no messages."""
        self.held = False
        """The kernel is being saved, or is asleep: messages of clients wait."""
        self.works = False
        """A cell of an earlier process goes on in the kernel, which was saved in the middle of it.
        No reply to it may come: then this is so until the next one."""
        self.cut = ""
        """The header of that cell's request, until its client, connected again, is told that output
        may be missing."""
        self.on_held: Callable[[], None] = lambda: None
        """Called for each message that waits while ``held``."""
        self.known = MemoryAnswers()
        """What the kernel has told of itself."""
        self.renewal: RenewalRequest | None = None
        """Code that a restored kernel runs before it gets messages of clients."""
        self._client_signer = Signer(identity.key, identity.signature_scheme)
        self._kernel_signer = Signer(secrets.token_hex(32).encode())
        self._records = records
        self._is_for_this_kernel = is_for_this_kernel
        self._waiting = WaitingMessages()
        self._pending: dict[str, Part] = {}
        self._asked: dict[str, AllowedEffects] = {}
        """Permissions that requests give to their replies, by message id; at most MAX_PENDING."""
        self._told = ""
        """A text for the next cell."""
        self._refused_in: str | None = None
        self._refused: set[str] = set()
        """Connections that were shown to be refused in that cell."""
        self._unanswered: dict[str, float] = {}
        """Times at which other requests came, by message id; at most MAX_PENDING."""
        self.clients = ClientSockets(
            context, address, base, self._from_client, self._may_read, self._welcome
        )
        self._check_lanes = {
            channel: Lane(executor, self.clients.resume_reading) for channel in Channel
        }
        """Messages of clients, to be checked."""
        self._sign_lanes = {
            channel: Lane(executor, self.clients.resume_reading) for channel in Channel
        }
        """Checked messages of clients, to be signed for the kernel."""
        self._output_lanes = {channel: Lane(executor) for channel in Channel}
        """Messages for clients, to be checked and signed."""
        self._replies = Replies(partial(self.clients.send, Channel.SHELL))
        self._holds_replies = identity.holds_replies

    @property
    def address(self) -> Address:
        """The address that clients connect to; it stays over restarts."""
        return self.clients.address

    @property
    def pending(self) -> bool:
        """Return whether a request that was sent has no reply yet but may still get one."""
        since = time.monotonic() - MAX_ANSWER_SECONDS
        waits = bool(self._pending) or self.works
        return waits or any(came > since for came in self._unanswered.values())

    def find_cell(self) -> str:
        """Return the header of the request of the cell that runs, for ``cut``; empty if none."""
        return next((bytes(it).decode() for it in self._pending.values()), self.cut)

    def describe_work(self) -> str:
        """Return what keeps the kernel from being saved."""
        if self.known.asks:
            return "A cell waits for input."
        if self._pending or self.works:
            return "A cell runs, or is stopped at a breakpoint."
        return "The kernel has a request to answer."

    @property
    def has_failed(self) -> bool:
        """Return whether the last cell that replied did so with an error, or one has no reply: what
        it has written may be half a file. Stays over restarts in the same sandbox."""
        return self._has_failed or bool(self._pending)

    @property
    def running(self) -> bool:
        """Return whether the kernel takes messages."""
        link = self.link
        if link is None or link.ended or self.restoring or self.held:
            return False
        return link.connection.state is State.RUNNING

    # -- for each kernel -------------------------------------------------------------------------

    def set_kernel_key(self, key: str) -> None:
        """Set the key that the kernel signs with."""
        self.kernel_key, self._kernel_signer = key, Signer(key.encode())
        self.has_sent = False

    def run_first(self, code: str) -> asyncio.Future[None]:
        """Make the kernel run ``code`` before clients' messages; clients do not see it.

        The returned future raises WireError if the code fails. The caller clears ``renewal``.

        :raises LocalProtocolError: when the link does not accept the request
        """
        assert self.link is not None
        self.renewal = RenewalRequest(code, asyncio.get_running_loop().create_future())
        self.link.send_message(Channel.SHELL, self._kernel_signer.sign(self.renewal.request))
        return self.renewal.done

    def deliver_waiting(self) -> None:
        """Send the kernel the messages that came before it could take any."""
        for channel, message in self._waiting.take():
            self._to_kernel(channel, message)

    @property
    def settled(self) -> bool:
        """Return whether no message of a client or of the kernel is under way in this process."""
        lanes = (*self._check_lanes.values(), *self._sign_lanes.values())
        return all(lane.empty for lane in lanes) and self._waiting.empty and not self._has_unchecked

    def show_death(self, reason: str) -> None:
        """Show why the kernel died as an error in the cell that was running."""
        if self._pending:
            for message in make_death_messages(reason, next(iter(self._pending.values()))):
                self._publish(message)

    def show_wait(self, text: str) -> None:
        """Show what the start waits for in the cell that waits for it, if one does."""
        if self._pending and text:
            self._publish(make_note(text, next(iter(self._pending.values()))))

    def tell(self, text: str) -> None:
        """Show ``text`` in the cell that waits for the kernel; if none does, in the next one."""
        self._told = text or self._told
        if self._pending:
            self.show_wait(self._told)
            self._told = ""

    def show_refused(self, text: str) -> None:
        """Show in the running cell which connection was refused, and why; each once, and few.

        curl and git show only the status of a tunnel that is refused. ``text`` is a sandbox's.
        """
        cell = next(iter(self._pending), None)
        if cell != self._refused_in:
            self._refused_in, self._refused = cell, set()
        text = printable_name(text[:MAX_REFUSAL].strip())
        if cell is not None and text not in self._refused and len(self._refused) < MAX_REFUSALS:
            self._refused.add(text)
            self._publish(make_note(f"refused: {text}", self._pending[cell]))

    def note_rewound(self, name: str) -> None:
        """Record that the kernel went back to its checkpoint ``name``."""
        self._records.note(f"the kernel went back to the checkpoint {name}")
        self._records.record_event("rewound", {"checkpoint": name})

    def forget_failures(self) -> None:
        """Forget how cells ended: a new sandbox has none of their files."""
        self._has_failed = False

    def forget_requests(self) -> None:
        """Forget open requests after the end of a kernel: the next one must not run its cells."""
        self._has_failed, self.works, self.cut = self.has_failed, False, ""
        self._pending.clear()
        self._asked.clear()
        self._unanswered.clear()
        self._waiting.drop_executions()
        self._replies.release()
        self.known.forget()

    def refuse_waiting(self, reason: str) -> None:
        """Answer the requests that wait by an error with ``reason``."""
        for channel, message in self._waiting.take():
            if isinstance(message, list):
                continue
            with suppress(WireError):
                self._pending.pop(message.id, None)
                self._unanswered.pop(message.id, None)
                for shown in make_refusal(reason, message):
                    if shown.identities == message.identities:
                        self._reply(channel, shown)
                    else:
                        self._publish(shown)

    def _reply(self, channel: Channel, message: WireMessage) -> None:
        self._output_lanes[channel].put(
            message.size,
            partial(self._client_signer.sign, message),
            partial(self.clients.send, channel),
        )

    async def drain(self, seconds: float, *, clients: bool = True) -> None:
        """Wait up to ``seconds`` until all from the kernel is checked, and sent if ``clients``."""
        deadline = time.monotonic() + seconds
        while self._has_unchecked or (clients and self.clients.count_waiting()):
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(0.01)

    @property
    def _has_unchecked(self) -> bool:
        """Return whether a message of the kernel is still being checked."""
        return not all(lane.empty for lane in self._output_lanes.values())

    def close(self) -> None:
        """Close clients' sockets. Idempotent."""
        for lanes in (self._check_lanes, self._sign_lanes, self._output_lanes):
            for lane in lanes.values():
                lane.close()
        self.clients.close()
        self._replies.release()

    # -- from clients ----------------------------------------------------------------------------

    def _may_read(self, channel: Channel) -> bool:
        if channel is Channel.IOPUB:
            return True
        if not (self._check_lanes[channel].empty and self._sign_lanes[channel].empty):
            return False
        if self.running:
            assert self.link is not None
            return self.link.connection.queued(channel) < MAX_TO_KERNEL
        return not self._waiting.full

    def _from_client(self, channel: Channel, parts: list[Part]) -> None:
        """Check a client's message, then pass it on or keep it for the kernel that is starting."""
        if channel is Channel.HB:
            if self.held or (self.link is not None and self.link.answers_heartbeats):
                self.clients.send(channel, parts)  # a stopped sandbox was alive when it stopped
            else:
                self._to_kernel(channel, parts)
            return
        self._check_lanes[channel].put(
            sum(map(len, parts)),
            partial(_check, parts, self._client_signer),
            partial(self._accept, channel),
        )

    def _accept(self, channel: Channel, message: WireMessage | WireError) -> None:
        try:
            if isinstance(message, WireError):
                raise message
            kind, message_id = message.kind, message.id
            self.known.note(message)
        except WireError as error:
            self._log_drop("a client's", channel, error)
            return
        if self.cut and message.session and message.session in self.cut:
            self._publish(make_note(CUT, self.cut.encode()))
            self.cut = ""
        answers = self.held or (self.works and kind == "kernel_info_request")
        known = self.known.find(message) if answers else None
        if known is not None:
            self._reply(channel, known[0])
            for status in known[1:2] if self.works else known[1:]:
                self._publish(status)
            return
        if kind in ("execute_request", "complete_request"):
            _remember(self._asked, message_id, read_request(message))
        if channel is Channel.CONTROL and kind == "shutdown_request":
            if not self._is_for_this_kernel(message):
                return
        elif kind == "execute_request" and len(self._pending) < MAX_PENDING:
            self._pending[message_id] = message.header
            self.tell("")
        elif channel is not Channel.STDIN and kind.endswith("_request"):
            _remember(self._unanswered, message_id, time.monotonic())
        if channel is Channel.SHELL and self._holds_replies:
            self._replies.note_request(message)
        self._to_kernel(channel, message)

    def _to_kernel(self, channel: Channel, message: ClientMessage) -> None:
        if not self.running:
            self._waiting.add(channel, message)
            if self.held:
                self.on_held()
            return
        self.has_sent = True
        if isinstance(message, list):
            self._send_signed(channel, self._kernel_signer, message)
            return
        self._records.record_request(message)  # not as it came: it may have waited for a start
        self._sign_lanes[channel].put(
            message.size,
            partial(self._kernel_signer.sign, message),
            partial(self._send_signed, channel, self._kernel_signer),
        )

    def _send_signed(self, channel: Channel, signer: Signer, parts: list[Part]) -> None:
        if signer is not self._kernel_signer or not self.running:
            return  # the kernel has ended meanwhile; its messages are lost, as with any kernel
        assert self.link is not None
        try:
            self.link.send_message(channel, parts)
        except LocalProtocolError as error:
            self._log_drop("a client's", channel, error)

    def _welcome(self, topic: bytes) -> None:
        """Welcome a topic's first subscriber (JEP 65): from now on it misses no output."""
        content = {"subscription": topic.decode("utf-8", "replace")}
        self._publish(new_message("iopub_welcome", content, b"{}", topic))
        if self.held:  # a server that begins takes a kernel for starting until it hears of it
            state = {"execution_state": "busy" if self.works else "idle"}
            self._publish(new_message("status", state, b"{}", b"status"))

    def _publish(self, message: WireMessage) -> None:
        self._output_lanes[Channel.IOPUB].put(
            message.size,
            partial(self._client_signer.sign, message),
            partial(self._send_output, message),
        )

    def _send_output(
        self, message: WireMessage, parts: list[Part], on_sent: OnSent | None = None
    ) -> None:
        self.clients.send(Channel.IOPUB, parts, on_sent)
        self._replies.note_output(message)

    # -- from the kernel -------------------------------------------------------------------------

    def from_kernel(self, message: Message) -> None:
        """Check a kernel's message, sign and send it to clients, then return its credit."""
        link = self.link
        assert link is not None

        def on_sent() -> None:
            link.connection.consumed(message)
            link.flush()

        channel = message.channel
        if channel is Channel.HB:
            self.clients.send(channel, message.parts, on_sent)
            return
        self._output_lanes[channel].put(
            message.size,
            partial(
                _check_and_sign,
                *(message.parts, self._kernel_signer, self._client_signer, self._asked),
            ),
            partial(self._to_client, channel, on_sent),
        )

    def _to_client(
        self, channel: Channel, on_sent: OnSent, signed: tuple[WireMessage, list[Part]] | WireError
    ) -> None:
        try:
            if isinstance(signed, WireError):
                raise signed
            checked, parts = signed
            wanted = checked.kind != "iopub_welcome"
            if self.renewal is not None and self.renewal.consumes(channel, checked):
                wanted = False
            else:
                self._record_reply(channel, checked)
        except WireError as error:
            self._log_drop("the kernel's", channel, error)
            wanted = False
        if not wanted:
            on_sent()
        elif channel is Channel.SHELL:
            self._replies.send(checked, parts, on_sent)
        elif channel is Channel.IOPUB:
            self._send_output(checked, parts, on_sent)
        else:
            self.clients.send(channel, parts, on_sent)

    def _record_reply(self, channel: Channel, message: WireMessage) -> None:
        if channel in (Channel.SHELL, Channel.CONTROL):
            self._pending.pop(message.parent_id, None)
            asked = self._asked.pop(message.parent_id, NOTHING)
            self.works &= message.kind != "execute_reply"
            if message.kind == "execute_reply" and not asked.silent:  # ``guard`` has built it
                self._has_failed = bytes(message.content[:15]) != b'{"status": "ok"'
            self._unanswered.pop(message.parent_id, None)
        self.known.note(message)
        self._records.record_answer(channel, message)

    def _log_drop(self, whose: str, channel: Channel, error: Exception) -> None:
        self._records.note_drop(f"{whose} message on {channel.name.lower()} was dropped: {error}")


# Large messages are checked in worker threads: these functions have no state and never raise.


def _check(parts: list[Part], signer: Signer) -> WireMessage | WireError:
    try:
        message = split_message(parts)
        signer.check(message)
    except WireError as error:
        return error
    return message


def _check_and_sign(
    parts: list[Part], inner: Signer, host: Signer, asked: dict[str, AllowedEffects]
) -> tuple[WireMessage, list[Part]] | WireError:
    message = _check(parts, inner)
    if isinstance(message, WireError):
        return message
    try:
        passed = guard(message.for_clients(), asked.get(message.parent_id, NOTHING))
        if passed is None:
            return WireError(f"no kernel may send front ends this {message.kind}")
        passed = passed.as_unicode()
    except WireError as error:
        return error
    return passed, host.sign(passed)


def _remember(known: dict[str, T], message_id: str, value: T) -> None:
    if len(known) >= MAX_PENDING:
        del known[next(iter(known))]
    known[message_id] = value
