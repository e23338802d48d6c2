"""Functions with which the tests start kernels and send requests to them.

What is expected of a kernel is in the tests. Each wait has a deadline and fails with a sentence.
"""

from __future__ import annotations

import asyncio
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
from ..nodes.cluster import needs_slurm
from ..nodes.sshd import needs_sshd
from ..patience import scale_seconds
from ..sweeps import needs_all
from ..world import DEFAULT_KERNEL, WAYS, kernelspec_of

KERNEL = os.environ.get("GK_TEST_KERNEL", DEFAULT_KERNEL)
SANDBOXED = KERNEL == DEFAULT_KERNEL
SOONEST = kernelspec_of("restored") if SANDBOXED else KERNEL
"""The kernelspec that starts fastest, for tests that start it by its name alone."""
SECONDS = scale_seconds(60)
"""How long a reply may take before a test fails."""

Message = dict[str, Any]

EVERY_WAY = [pytest.param("relay", marks=pytest.mark.once), pytest.param("restored")]
"""The two ways in which messages reach a kernel. A cold kernel is reached like a restored one;
test_conformance.py also tests that way."""
every_way = pytest.mark.parametrize(
    "way", EVERY_WAY if SANDBOXED else [""], indirect=True, scope="module"
)
"""For modules whose kernels must answer alike, whichever way messages reach them."""
MOSTLY_RESTORED = [pytest.param("relay", marks=[pytest.mark.once, needs_all]), "restored"]
"""The same, but the relay only with ``--all``: it hands on any message alike, and test_messages.py
and test_conformance.py always test it."""
every_way_if_all = pytest.mark.parametrize(
    "way", MOSTLY_RESTORED if SANDBOXED else [""], indirect=True, scope="module"
)
every_runtime = pytest.mark.parametrize(
    "way",
    [
        *MOSTLY_RESTORED,
        pytest.param("docker", marks=needs_dockerd),
        pytest.param("ssh", marks=[*needs_sshd, needs_all]),
        pytest.param("slurm", marks=[*needs_slurm, needs_all]),
        *(pytest.param(w, marks=pytest.mark.once) for w in ("kubernetes", "other") if w in WAYS),
    ]
    if SANDBOXED
    else [""],
    indirect=True,
    scope="module",
)
"""The same, also in a Docker engine, in a real cluster and in another package's runtime if the
environment names one, and with ``--all`` on nodes: for modules that need only ipykernel in an
image."""


@dataclass
class Answer:
    """The reply to one request, and its messages on iopub in order."""

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
        """The text of the cell's result."""
        return next(
            m["content"]["data"]["text/plain"]
            for m in self.outputs
            if m["msg_type"] == "execute_result"
        )

    @property
    def error(self) -> str:
        """The name of the exception, or an empty string."""
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
    """Start a kernel and a client of it, and wait for an answer; shut it down at the end.

    ``prepare`` gets the manager before the start, ``config`` is Jupyter's, ``settings`` are the
    provisioner's part of it, and ``start`` is passed to ``start_kernel``. By default the kernel
    starts from the run's snapshot if that fits, else cold. No snapshot is made
    (``tests/conftest.py``).
    """
    settings = WAYS["restored"] | (settings or {})
    config = Config({"GVisorProvisioner": settings}) if config is None else config
    manager = KernelManager(kernel_name=kernel_name, config=config)
    prepare(manager)
    try:
        manager.start_kernel(**(start or {}))
    except BaseException:
        manager.cleanup_connection_file()
        raise
    try:
        with connected(manager) as client:
            yield manager, client
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel()


@contextmanager
def connected(manager: KernelManager) -> Iterator[BlockingKernelClient]:
    """Connect a client to the manager's kernel, and wait for an answer.

    The client has its own session, as in Jupyter's server: clients of one session share an
    identity, and the kernel answers only the last of them. It has no heartbeat, whose thread takes
    a second to end.
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
"""Prints whether the kernel listens on ZMQ sockets."""


def sandbox_of(manager: KernelManager) -> Any:
    """Return the sandbox of a running kernel."""
    return manager.provisioner._kernel.sandbox  # type: ignore[union-attr]


def assert_way(manager: KernelManager, client: BlockingKernelClient, way: str) -> None:
    """Check that the kernel was started and is reached in ``way``."""
    assert execute(client, FIND_WAY).text == f"{way == 'relay'}\n"
    runtime = type(sandbox_of(manager)).__name__
    assert (runtime == "DockerSandbox") == (way == "docker")
    assert (runtime == "NodeSandbox") == (way in ("ssh", "slurm"))
    assert (runtime == "PodSandbox") == (way == "kubernetes")
    log = kernel_log(manager)
    assert ("the kernel was restored from a snapshot" in log) == (way == "restored"), log


def kernel_log(manager: KernelManager) -> str:
    """Return the log of the running kernel: events of the bridge, and text from inside."""
    path = sandbox_of(manager).log_path
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
    """Wait for the reply and all outputs of a request that was sent already."""
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
    """Return the reply to a request, and drop replies to others."""
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
    """Return the first message on iopub from now on for which ``condition`` is true."""
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
    """Send a message that the client has no method for; return its msg_id."""
    message = client.session.msg(message_type, content or {})
    message["header"].update(header or {})
    socket = getattr(client, f"{channel}_channel").socket
    sent = client.session.send(socket, message, buffers=buffers)
    return str(sent["header"]["msg_id"])


def ask(
    client: BlockingKernelClient, message_type: str, content: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Send a request on the control channel; return the content of the reply."""
    msg_id = send(client, message_type, content)
    content = reply_to(client, msg_id, channel="control")["content"]
    assert isinstance(content, dict)
    return content


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Poll for something that causes no event, such as the end of another process's child.

    ``seconds`` is the limit on an idle machine (``scale_seconds``).
    """
    deadline = time.monotonic() + scale_seconds(seconds)
    while not (found := condition()):
        assert time.monotonic() < deadline, f"Waited in vain for {what}."
        time.sleep(0.02)
    return found


def call_sandbox(manager: KernelManager, **content: object) -> dict[str, Any]:
    """Ask the service process in the sandbox of a kernel something; return its only answer."""
    session = manager.provisioner.sandboxed_kernel  # type: ignore[union-attr]

    async def ask() -> dict[str, Any]:
        call = await session.open_call(content)
        try:
            return (await call.receive()).content  # type: ignore[no-any-return]
        finally:
            await call.close()

    return asyncio.run(ask())
