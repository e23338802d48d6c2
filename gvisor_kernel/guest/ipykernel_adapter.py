"""Makes a kernel of the ipykernel family speak frames, with as few changes to it as possible.

Its ROUTER and XPUB sockets are bound to ``inproc`` addresses. Messages from the link enter through
DEALER sockets; replies to these, and what the kernel publishes, go to the link instead. Everything
else stays ipykernel's own: identities, threads, subshells, the debugger's socket to the shell
channel, the output of forked children.

These methods are replaced. They are the same in ipykernel 6.29 to 7.4 (scripts/try_ipykernels.py
lists the versions tested):

- ``IPKernelApp._bind_socket(socket, port)`` binds one of the application's four sockets.
- ``IPKernelApp.init_heartbeat()`` would start a thread and a socket; PID 1 answers heartbeats.
- ``IPKernelApp.init_io()``: after it ``sys.stdout`` and ``sys.stderr`` are ``OutStream``.
- ``IPKernelApp.start()`` starts the kernel and serves.
- ``IPKernelApp.close()`` closes the sockets at exit.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
from functools import partial
from typing import Any, Callable

import zmq

from gvisor_kernel.guest import heap, installed, lost_files
from gvisor_kernel.guest import ipykernel_shortcuts as shortcuts
from gvisor_kernel.guest.cell_hooks import CellImports, UnkeptFiles
from gvisor_kernel.guest.direct import DirectLink
from gvisor_kernel.guest.idle_check import IdleCheck
from gvisor_kernel.guest.missed_paths import MissedPaths, replace_chdir
from gvisor_kernel.guest.resume import (
    apply_environment,
    rekey_kernel,
    renew_secrets,
    renew_session,
    reseed,
)
from gvisor_kernel.link import ADOPT, BRANCH, WAKE, Channel, Hello, Message, Resume

METHODS: dict[str, list[str]] = {
    "_bind_socket": ["self", "s", "port"],
    "init_heartbeat": ["self"],
    "init_io": ["self"],
    "start": ["self"],
    "close": ["self"],
}
"""The replaced methods and the parameters that each must have."""
SOCKETS = {
    "shell_socket": Channel.SHELL,
    "stdin_socket": Channel.STDIN,
    "control_socket": Channel.CONTROL,
    "iopub_socket": Channel.IOPUB,
}
IDENTITY = b"gvisor-kernel-link"
"""Identity of the DEALER sockets on all channels: a kernel sends its input_request to the identity
that sent the execute_request."""


def find_obstacle(application: Any) -> str | None:
    """Return why the class ``application`` cannot be adapted, or None if it can."""
    for name, parameters in METHODS.items():
        method = getattr(application, name, None)
        if method is None:
            return f"{application.__name__} has no {name}"
        found = list(inspect.signature(method).parameters)
        if found != parameters:
            return f"{application.__name__}.{name} takes {found}, not {parameters}"
    return None


class Adapter:
    """Connects one IPKernelApp to one DirectLink."""

    def __init__(self, link: DirectLink, facts: Hello) -> None:
        self.link = link
        link.on_message = self.deliver
        self.facts = facts
        self.flushes_on_demand = True
        """True if both output streams know by themselves when there is something to flush."""
        self._dealers: dict[Channel, zmq.Socket[bytes]] = {}
        self._to_main: shortcuts.MainThreadRoute | None = None

    def bind(self, application: Any, kernel_socket: Any, port: int) -> int:
        """Replace ``_bind_socket``: bind to ``inproc`` and connect the DEALER socket."""
        channel = next(
            channel
            for name, channel in SOCKETS.items()
            if getattr(application, name, None) is kernel_socket
        )
        address = f"inproc://gvisor-kernel-{channel.name.lower()}"
        kernel_socket.rcvhwm = 0
        kernel_socket.bind(address)
        if channel is not Channel.IOPUB:
            dealer = kernel_socket.context.socket(zmq.DEALER)
            dealer.linger = 0
            dealer.sndhwm = 0
            dealer.setsockopt(zmq.IDENTITY, IDENTITY)
            dealer.connect(address)
            self._dealers[channel] = dealer
        self._redirect_sends(kernel_socket, channel)
        return port

    def _redirect_sends(self, kernel_socket: Any, channel: Channel) -> None:
        """Send to the link what ``kernel_socket`` publishes or sends to the link's identity."""
        send_inproc = kernel_socket.send_multipart
        link = self.link

        def send_multipart(
            parts: Any, flags: int = 0, copy: bool = True, track: bool = False, **kwargs: Any
        ) -> Any:
            taken = [_as_bytes(part) for part in parts]
            if channel is not Channel.IOPUB:
                if taken[0] != IDENTITY:
                    return send_inproc(parts, flags=flags, copy=copy, track=track, **kwargs)
                del taken[0]
            link.send(channel, taken)
            return zmq.MessageTracker() if track and not copy else None

        kernel_socket.send_multipart = send_multipart

    def deliver(self, message: Message) -> None:
        """Pass a message to the kernel's own sockets. Called in the link's reading thread."""
        to_main = self._to_main if message.channel is Channel.SHELL else None
        if to_main is not None and to_main.deliver(message.parts):
            return
        dealer = self._dealers.get(message.channel)
        if dealer is not None:
            try:
                dealer.send_multipart(message.parts, copy=False)
            except zmq.ZMQError:  # the kernel is closing its sockets
                return

    def open_link(self, application: Any) -> None:
        """Install the shortcuts and start the link. Called when the kernel's sockets are bound."""
        kernel = application.kernel
        if self.flushes_on_demand:
            kernel._execute_sleep = 0
        shortcuts.reply_at_once(kernel, self._redirect_sends)
        if hasattr(getattr(kernel, "shell", None), "events"):
            kernel.shell.events.register("post_run_cell", MissedPaths().after_cell)
            kernel.shell.events.register("post_run_cell", lost_files.after_cell)
            kernel.shell.events.register("post_run_cell", UnkeptFiles(kernel).after_cell)
            kernel.shell.events.register("post_run_cell", CellImports().after_cell)
            installed.explain_pip(kernel.shell)
        replace_chdir()
        self._to_main = shortcuts.MainThreadRoute(kernel, IDENTITY)
        install_wake_handler()
        self.link.on_signal = partial(wake_after_interrupt, later=self.link.run_later)
        self.link.on_resume(partial(apply_resume, application))
        heap.keep(os.environ)
        heap.keep_little_in_forks()
        self.link.on_trim = heap.give_back
        self.link.start(self.facts)
        self.link.on_idle_query = IdleCheck(application).is_idle  # created after the link's threads

    def close_dealers(self) -> None:
        """Close the DEALER sockets before the context is terminated, which waits for them."""
        for dealer in self._dealers.values():
            dealer.close()
        self._dealers.clear()

    def throttle_writes(self, stream: Any) -> None:
        """Make ``stream.write`` block while too much output is queued for the host."""
        write, link = stream.write, self.link

        def throttled_write(text: str) -> Any:
            link.wait_for_room()
            return write(text)

        stream.write = throttled_write


def _as_bytes(part: Any) -> bytes:
    if isinstance(part, bytes):
        return part
    return bytes(part.buffer if isinstance(part, zmq.Frame) else part)


def adapt(application: Any, adapter: Adapter) -> None:
    """Replace the methods of the class ``application``; see the top of this module."""
    start, close, init_io = application.start, application.close, application.init_io

    def adapted_bind(self: Any, s: Any, port: int) -> int:
        return adapter.bind(self, s, port)

    def adapted_heartbeat(self: Any) -> None:
        return None

    def adapted_init_io(self: Any) -> None:
        init_io(self)
        shortcuts.publish_at_once(self.iopub_thread, adapter.link)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "pub_thread"):
                adapter.throttle_writes(stream)
                adapter.flushes_on_demand &= shortcuts.flush_by_link(stream, adapter.link)

    def adapted_start(self: Any) -> None:
        if self.subapp is None:
            start_kernel = self.kernel.start

            def start_with_link() -> None:
                start_kernel()
                adapter.open_link(self)

            self.kernel.start = start_with_link
        start(self)

    def adapted_close(self: Any) -> None:
        adapter.link.stop_delivering()
        adapter.close_dealers()
        close(self)
        adapter.link.drain()

    application._bind_socket = adapted_bind
    application.init_heartbeat = adapted_heartbeat
    application.init_io = adapted_init_io
    application.start = adapted_start
    application.close = adapted_close


def apply_resume(application: Any, resume: Resume) -> None:
    """Apply a RESUME to this kernel; see ``resume``. Called in the link's reading thread."""
    seed = bytes.fromhex(resume.seed)
    if resume.mode == ADOPT:
        reseed(seed)
        apply_environment(resume)
        heap.keep(os.environ)  # this sandbox may have another limit
        application.iopub_thread._pipe_uuid = os.urandom(16)  # it has no children yet
    elif resume.mode == BRANCH:
        renew_secrets(seed)
    if resume.mode != WAKE:
        renew_session(application)
    rekey_kernel(application, resume.key)


# -- interrupts ------------------------------------------------------------------------------------
# A signal only sets a flag for Python's main thread. If it arrives just before the thread enters a
# blocking call (a sleep, a read), or if another thread receives it, the call continues and the
# interrupt seems lost. On a busy machine, whose threads wait long for the CPU, this happened to one
# interrupt in some five hundred. A second signal, whose handler does nothing, ends the call: Python
# then sees the flag, and without a flag it continues the call by itself (PEP 475).

WAKE_SIGNAL = signal.SIGURG
"""A signal that processes without a handler for it ignore."""
WAKE_DELAYS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds after an interrupt at which the main thread is woken, whether it needs it or not."""


def _do_nothing(signum: int, frame: Any) -> None:
    """Handle WAKE_SIGNAL. A signal without a handler would not end a blocking call."""


def install_wake_handler() -> None:
    """Install the handler of WAKE_SIGNAL unless it has one. Main thread, before any interrupt."""
    if signal.getsignal(WAKE_SIGNAL) is signal.SIG_DFL:
        signal.signal(WAKE_SIGNAL, _do_nothing)


def wake_after_interrupt(signum: int, later: Callable[[float, Callable[[], None]], None]) -> None:
    """Wake the main thread several times if ``signum``, which this process received, is SIGINT.

    ``later(seconds, act)`` calls ``act`` in another thread.
    """
    if signum == signal.SIGINT:
        for seconds in WAKE_DELAYS:
            later(seconds, wake_main)


def wake_main() -> None:
    """End the blocking call of the main thread, unless the notebook handles WAKE_SIGNAL itself."""
    main = threading.main_thread().ident
    if main is not None and signal.getsignal(WAKE_SIGNAL) is _do_nothing:
        signal.pthread_kill(main, WAKE_SIGNAL)
