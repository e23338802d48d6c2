"""How the tests of this folder start kernels and talk to them.

What is expected of a kernel stands in the tests. Every wait ends at a deadline, with a sentence.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.session import Session
from traitlets.config import Config

from gvisor_kernel.host.log_files import INSIDE

from ..docker.dockerd import needs_dockerd
from ..patience import patient
from ..world import DEFAULT_KERNEL, WAYS, kernelspec_of

KERNEL = os.environ.get("GK_TEST_KERNEL", DEFAULT_KERNEL)
SANDBOXED = KERNEL == DEFAULT_KERNEL
SOONEST = kernelspec_of("restored") if SANDBOXED else KERNEL
"""For starts by a name alone, of how a kernel starts regardless."""
SECONDS = patient(60)
"""How long an answer may take before a test fails."""

Message = dict[str, Any]

EVERY_WAY = [pytest.param("relay", marks=pytest.mark.once), pytest.param("restored")]
"""The two ways in which a kernel is spoken to. A cold one is spoken to as one that was restored,
and test_conformance.py has it, too."""
every_way = pytest.mark.parametrize(
    "way", EVERY_WAY if SANDBOXED else [""], indirect=True, scope="module"
)
"""For modules whose kernels must answer alike, however they are spoken to."""
every_runtime = pytest.mark.parametrize(
    "way",
    [*EVERY_WAY, pytest.param("docker", marks=needs_dockerd)] if SANDBOXED else [""],
    indirect=True,
    scope="module",
)
"""Likewise, for those that need no more than ipykernel in an image: also by a Docker engine."""


@dataclass
class Answer:
    """All that came back for one request: its reply, and its messages on iopub in order."""

    reply: Message
    outputs: list[Message] = field(default_factory=list)

    @property
    def status(self) -> str:
        return str(self.reply["content"]["status"])

    @property
    def text(self) -> str:
        """What the code printed."""
        return "".join(
            m["content"]["text"]
            for m in self.outputs
            if m["msg_type"] == "stream" and m["content"]["name"] == "stdout"
        )

    @property
    def result(self) -> str:
        """The text of the last expression."""
        return next(
            m["content"]["data"]["text/plain"]
            for m in self.outputs
            if m["msg_type"] == "execute_result"
        )

    @property
    def error(self) -> str:
        """The name of the exception, or an empty text."""
        return str(self.reply["content"].get("ename", ""))

    def of_type(self, message_type: str) -> list[Message]:
        return [m for m in self.outputs if m["msg_type"] == message_type]


@contextmanager
def running_kernel(
    kernel_name: str = KERNEL,
    *,
    prepare: Callable[[KernelManager], object] = lambda manager: None,
    config: Config | None = None,
    settings: dict[str, Any] | None = None,
    start: dict[str, Any] | None = None,
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A kernel that answers, and a client of it; shut down at the end.

    ``prepare`` sees the manager before the start, ``config`` is Jupyter's, ``settings`` are the
    provisioner's part of it, ``start`` is for ``start_kernel``. Unless the settings say else, it
    starts from the image of the run where that fits, which is the soonest; else cold. No image is
    made (``tests/conftest.py``).
    """
    settings = WAYS["restored"] | (settings or {})
    config = Config({"GVisorProvisioner": settings}) if config is None else config
    manager = KernelManager(kernel_name=kernel_name, config=config)
    prepare(manager)
    manager.start_kernel(**(start or {}))
    try:
        with connected(manager) as client:
            yield manager, client
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel()


@contextmanager
def connected(manager: KernelManager) -> Iterator[BlockingKernelClient]:
    """A client of the manager's kernel, once that answers.

    With a session of its own, as Jupyter's server makes them: clients of one session share an
    identity, and the kernel answers the last of them. Without a heartbeat, whose thread takes a
    second to end.
    """
    client = manager.client(session=Session(key=manager.session.key))
    client.start_channels(hb=False)
    try:
        client.wait_for_ready(timeout=SECONDS)
        yield client
    finally:
        client.stop_channels()


FIND_WAY = """
import json, os, sys
with open(sys.argv[sys.argv.index("-f") + 1]) as file:
    info = json.load(file)
print(os.path.exists(f"{info['ip']}-{info['shell_port']}"))
del json, os, sys, file, info
"""
"""Whether the kernel listens on ZMQ."""


def assert_way(manager: KernelManager, client: BlockingKernelClient, way: str) -> None:
    """The kernel was started in ``way``, and is spoken to by it."""
    assert execute(client, FIND_WAY).text == f"{way == 'relay'}\n"
    runtime = type(manager.provisioner._kernel.sandbox).__name__  # type: ignore[union-attr]
    assert (runtime == "DockerSandbox") == (way == "docker")
    log = kernel_log(manager)
    assert ("the kernel was restored from a snapshot" in log) == (way == "restored"), log


def kernel_log(manager: KernelManager) -> str:
    """What the bridge wrote down of the kernel that runs, and of what it said."""
    path = manager.provisioner._kernel.sandbox.log_path  # type: ignore[union-attr]
    inside = path.with_name(INSIDE)
    return path.read_text() + (inside.read_text() if inside.exists() else "")


def execute(client: BlockingKernelClient, code: str, seconds: float = SECONDS) -> Answer:
    """Run ``code`` and wait until the kernel is idle again and has replied."""
    return finish(client, client.execute(code), seconds)


def finish(
    client: BlockingKernelClient,
    msg_id: str,
    seconds: float = SECONDS,
    *,
    channel: str = "shell",
) -> Answer:
    """Wait for all that belongs to a request which is already under way."""
    deadline = time.monotonic() + seconds
    outputs: list[Message] = []
    while True:
        message = next_message(client, "iopub", deadline, f"the end of {msg_id}")
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        outputs.append(message)
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return Answer(reply_to(client, msg_id, seconds, channel=channel), outputs)


def reply_to(
    client: BlockingKernelClient, msg_id: str, seconds: float = SECONDS, *, channel: str = "shell"
) -> Message:
    """The reply to a request; replies to others are dropped."""
    deadline = time.monotonic() + seconds
    while True:
        message = next_message(client, channel, deadline, f"a reply to {msg_id}")
        if message["parent_header"].get("msg_id") == msg_id:
            return message


def wait_for(
    client: BlockingKernelClient,
    condition: Callable[[Message], bool],
    what: str,
    seconds: float = SECONDS,
) -> Message:
    """The first message on iopub from now on that fulfils ``condition``."""
    deadline = time.monotonic() + seconds
    while True:
        message = next_message(client, "iopub", deadline, what)
        if condition(message):
            return message


def wait_for_text(client: BlockingKernelClient, text: str) -> None:
    """Wait until a cell has printed ``text``."""
    seen = ""

    def printed(message: Message) -> bool:
        nonlocal seen
        if message["msg_type"] == "stream":
            seen += message["content"]["text"]
        return text in seen

    wait_for(client, printed, f"the output {text!r}")


def next_message(client: BlockingKernelClient, channel: str, deadline: float, what: str) -> Message:
    try:
        message: Message = getattr(client, f"get_{channel}_msg")(
            timeout=max(0.0, deadline - time.monotonic())
        )
    except Empty:
        raise AssertionError(f"Waited in vain on {channel} for {what}.") from None
    return message


def send(
    client: BlockingKernelClient,
    message_type: str,
    content: dict[str, Any] | None = None,
    *,
    channel: str = "control",
    header: dict[str, Any] | None = None,
    buffers: list[bytes] | None = None,
) -> str:
    """Send a message that the client has no method for; its msg_id."""
    message = client.session.msg(message_type, content or {})
    message["header"].update(header or {})
    socket = getattr(client, f"{channel}_channel").socket
    sent = client.session.send(socket, message, buffers=buffers)
    return str(sent["header"]["msg_id"])


def ask(
    client: BlockingKernelClient, message_type: str, content: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The content of the reply to a request on the control channel."""
    msg_id = send(client, message_type, content)
    content = reply_to(client, msg_id, channel="control")["content"]
    assert isinstance(content, dict)
    return content


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Look for what announces itself by no event, such as a process of another's that ends.

    ``seconds``: on an idle machine (``patient``).
    """
    deadline = time.monotonic() + patient(seconds)
    while not (found := condition()):
        assert time.monotonic() < deadline, f"Waited in vain for {what}."
        time.sleep(0.02)
    return found
