"""Code with which an attacked kernel sends forged frames and messages, and checks of its end.

The code runs in the attacked kernel; ``armed`` defines it there. The tests say what is sent and
which rule it breaks.
"""

from __future__ import annotations

import os
import re
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..jupyter.helpers import SECONDS, execute, next_message, wait_for, wait_until
from ..logs import LogPosition
from .inside import PRELUDE, Kernel, Neighbour
from .lent_link import LENT_LINK

HOST_SLACK = 64 * 1024 * 1024
"""Bytes by which the host's side may grow, whatever a kernel sends, except for half messages."""

FORGING = """
import random
HEADER = struct.Struct(">BBBBI")
(HELLO, START, STARTED, DATA, CREDIT, SIGNAL, EXIT, STATS, LOG, PING, PONG, STOP, RESUME, RESUMED,
 IDLE_QUERY, IDLE_REPLY, OPEN, STREAM, GRANT, FINISH, RESET) = range(1, 22)
SHELL, IOPUB, STDIN, CONTROL, HB = range(1, 6)

def frame(kind, payload=b"", channel=0, flags=0, zero=0, length=None):
    length = len(payload) if length is None else length
    return HEADER.pack(kind, channel, flags, zero, length) + payload

def pack(*parts):
    lengths = b"".join(struct.pack(">I", len(part)) for part in parts)
    return struct.pack(">H", len(parts)) + lengths + b"".join(parts)

def send_all(end, data, write=socket.socket.send):
    view = memoryview(data)
    while view:
        select.select([], [end], [])
        try:
            view = view[write(end, view[:65536]):]
        except BlockingIOError:
            pass

def own(name):
    '''The kernel's object of the class called name, found in a running method.'''
    for frame in sys._current_frames().values():
        while frame is not None:
            thing = frame.f_locals.get("self")
            if type(thing).__name__ == name:
                return thing
            frame = frame.f_back

session = get_ipython().kernel.session

def message(kind, content, ident=None):
    '''The parts of a message with this kernel's signature.'''
    made = session.msg(kind, content, parent=get_ipython().kernel.get_parent())
    return session.serialize(made, ident=ident)
"""

DIRECT = """
link = own("DirectLink")
Channel = sys.modules["gvisor_kernel.link.frames"].Channel
"""

ZMTP = """
def voices(channel):
    '''The kernel's ends of all connections to one of its sockets; one of them is to PID 1.'''
    seen = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            which = os.readlink(f"/proc/self/fd/{name}")
            if "socket" not in which or which in seen:  # such as a descriptor made here
                continue
            end = socket.socket(fileno=os.dup(int(name)))
            seen.add(which)
            if str(end.getsockname()).endswith(f"/s-{channel}") and end.getpeername() is not None:
                yield end
        except OSError:
            pass

def send_on(channel, data):
    for end in voices(channel):
        send_all(end, data)
"""


def armed(kernel: Kernel, code: str) -> Kernel:
    """Define the attack code in the kernel, which is restarted if the last attack ended it."""
    if not kernel.manager.is_alive():
        assert_restart_works(kernel)
    run = kernel_bridge(kernel).run.number
    code = f"{PRELUDE}\n{FORGING}\n{LENT_LINK}\n{code}\nrun = struct.pack('>I', {run})"
    assert execute(kernel.client, code).status == "ok"
    return kernel


def assert_restart_works(kernel: Kernel) -> None:
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=60)
    assert execute(kernel.client, "6 * 7").result == "42"


def kernel_bridge(kernel: Kernel) -> Any:
    return kernel.manager.provisioner._kernel._kernel  # type: ignore[union-attr]


class HostMemory:
    """Growth of this process's peak memory since construction. This process runs the bridge."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    def grown(self) -> int:
        return self._read("VmHWM") - self._before

    @staticmethod
    def _read(name: str) -> int:
        status = Path("/proc/self/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024


def assert_ends_with(
    kernel: Kernel, code: str, words: str, meanwhile: Callable[[], object] = lambda: None
) -> str:
    """Assert that ``code`` ends the kernel with one error that matches ``words``.

    The error is in the cell and in the log. Neither names the host, and the host's memory does not
    grow. Return the lines that were added to the log.
    """
    mark = LogPosition(kernel.sandbox.log_path)
    hidden = names_of_the_host(kernel)
    memory = HostMemory()
    msg_id = kernel.client.execute(textwrap.dedent(code) + "\ntime.sleep(100)")
    meanwhile()

    def is_error(message: Any) -> bool:
        return bool(
            message["msg_type"] == "error" and message["parent_header"].get("msg_id") == msg_id
        )

    error = wait_for(kernel.client, is_error, f"an error that says {words!r}")["content"]
    assert error["ename"] == "KernelDied", error
    assert re.search(words, error["evalue"]), (error["evalue"], mark.more())
    idle = next_message(kernel.client, "iopub", time.monotonic() + 10, "idle")
    assert idle["content"] == {"execution_state": "idle"}
    wait_until(lambda: not kernel.manager.is_alive(), "the kernel's end")
    assert memory.grown() < HOST_SLACK
    log = mark.more()
    ends = [line for line in log.splitlines() if re.search(words, line)]
    assert 1 <= len(ends) <= 2, log  # the end of the link, and the text for the cell
    for name in hidden:
        # A number of bytes may be that of a process.
        assert name not in words_of(re.sub(words, "", error["evalue"]))
        assert name not in words_of(re.sub(words, "", log))
    assert kernel.client.iopub_channel.socket.poll(0) == 0, "one error, and nothing after it"
    return log


def names_of_the_host(kernel: Kernel) -> set[str]:
    """Return names of the host that no kernel may learn or get into a message."""
    sentry = str(kernel.sandbox._sentry)
    keys = kernel.manager.session.key.decode(), kernel_bridge(kernel)._exchange.kernel_key
    return {str(os.getpid()), sentry, str(kernel.folder), os.environ["XDG_STATE_HOME"], *keys}


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[\w/.-]+", text))


def read_raw_until_idle(kernel: Kernel, msg_id: str) -> list[list[bytes]]:
    """Return all raw messages on iopub until the end of a cell."""
    found: list[list[bytes]] = []
    iopub = kernel.client.iopub_channel.socket
    while True:
        assert iopub.poll(SECONDS * 1000), f"The cell {msg_id} did not end."
        found.append(iopub.recv_multipart())
        header, parent, _, content = found[-1][found[-1].index(b"<IDS|MSG>") + 2 :][:4]
        if msg_id.encode() in parent and b'"status"' in header and b'"idle"' in content:
            return found


def assert_answers(neighbour: Neighbour, times: int) -> None:
    for _ in range(times):
        neighbour.check()
