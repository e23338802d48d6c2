"""Interrupts by signal and by message: of Python code, blocking C code and child processes."""

from __future__ import annotations

import signal

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from ..world import WAYS
from .helpers import (
    Message,
    every_runtime,
    execute,
    finish,
    running_kernel,
    wait_for,
    wait_for_text,
)

pytestmark = every_runtime

RUNNING = "print('running', flush=True); import time; time.sleep(0.2)\n"
"""With a pause, as ipykernel sometimes loses an interrupt while it flushes output."""
LOOP = RUNNING + "while True: pass"
SLEEP = RUNNING + "time.sleep(600)"
REGEX = RUNNING + "import re; re.match('(a+)+$', 'a' * 60 + 'b')"
LOCK = RUNNING + "import threading; threading.Event().wait()"
# ipykernel does not wake its loop at an interrupt (tornado's add_callback in a signal handler), so
# the coroutine has to wake it.
COROUTINE = RUNNING + "import asyncio\nwhile True: await asyncio.sleep(0.05)"
CHILD = (
    """
import subprocess
child = subprocess.Popen(["sleep", "600"])
"""
    + RUNNING
    + "child.wait()"
)
SHELL = "!echo running; sleep 600"

CODES = {
    "python": LOOP,
    "sleep": SLEEP,
    "regular expression": REGEX,
    "lock": LOCK,
    "coroutine": COROUTINE,
    "child process": CHILD,
    "shell escape": SHELL,
}


@pytest.fixture(params=["signal", "message"])
def interruptible(
    request: pytest.FixtureRequest, shared: tuple[KernelManager, BlockingKernelClient]
) -> tuple[KernelManager, BlockingKernelClient]:
    assert shared[0].kernel_spec is not None
    shared[0].kernel_spec.interrupt_mode = request.param
    return shared


@pytest.mark.parametrize("code", CODES.values(), ids=CODES.keys())
def test_interrupt_ends_cell(
    interruptible: tuple[KernelManager, BlockingKernelClient], code: str
) -> None:
    manager, client = interruptible
    assert manager.kernel_spec is not None
    if code is REGEX and manager.kernel_spec.interrupt_mode == "message":
        pytest.skip("no thread of ipykernel can read a message while re holds the GIL")
    msg_id = client.execute(code)
    wait_for_text(client, "running")
    manager.interrupt_kernel()
    answer = finish(client, msg_id)
    if code is SHELL:  # IPython reports how the command ended, and continues
        assert answer.status == "ok"
    else:
        # IPython reports an interrupted coroutine as cancelled.
        assert answer.error in ("KeyboardInterrupt", "CancelledError"), answer.reply["content"]
    if code is CHILD:
        assert execute(client, "print(child.wait(60))").text == "-2\n"
    assert execute(client, "40 + 2").result == "42"


def test_interrupt_works_for_background_server(way: str) -> None:
    """A shell starts a server with ``&`` so that it ignores SIGINT; its kernels must not."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with running_kernel(settings=WAYS.get(way)) as (manager, client):
            msg_id = client.execute(CHILD)
            wait_for_text(client, "running")
            manager.interrupt_kernel()
            assert finish(client, msg_id).error == "KeyboardInterrupt"
            assert execute(client, "print(child.wait(60))").text == "-2\n"
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupt_of_idle_kernel_is_harmless(
    interruptible: tuple[KernelManager, BlockingKernelClient],
) -> None:
    manager, client = interruptible
    for _ in range(3):
        manager.interrupt_kernel()
        assert manager.kernel_spec is not None
        if manager.kernel_spec.interrupt_mode == "message":
            # It is sent on another channel than requests, and may come after a later one.
            wait_for(client, is_idle_after_interrupt, "the end of the interrupt")
    assert execute(client, "40 + 2").result == "42"


def is_idle_after_interrupt(message: Message) -> bool:
    return (
        message["parent_header"].get("msg_type") == "interrupt_request"
        and message["content"].get("execution_state") == "idle"
    )


UNNOTICED = """
import signal, time
masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
print('running', flush=True)
time.sleep(600)
"""
"""Another thread gets the signal and the sleep continues, as if it had come just before it."""


@pytest.fixture
def notified(
    way: str, shared: tuple[KernelManager, BlockingKernelClient]
) -> tuple[KernelManager, BlockingKernelClient]:
    """A kernel that PID 1 notifies of its signals."""
    if way != "restored":
        pytest.skip("PID 1 notifies only a kernel that speaks frames")
    return shared


def test_unnoticed_interrupt_wakes_waiting_call(
    notified: tuple[KernelManager, BlockingKernelClient],
) -> None:
    """On a busy machine this happens to one of some hundred interrupts."""
    manager, client = notified
    msg_id = client.execute(UNNOTICED)
    wait_for_text(client, "running")
    manager.interrupt_kernel()
    assert finish(client, msg_id).error == "KeyboardInterrupt"
    code = "signal.pthread_sigmask(signal.SIG_SETMASK, masked); print(signal.SIGINT in masked)"
    assert execute(client, code).text == "False\n"


def test_wake_up_signal_does_not_call_notebooks_handler(
    notified: tuple[KernelManager, BlockingKernelClient],
) -> None:
    manager, client = notified
    code = "seen = []; before = signal.signal(signal.SIGURG, lambda *_: seen.append(1))"
    assert execute(client, "import signal, time; " + code).status == "ok"
    msg_id = client.execute(SLEEP)
    wait_for_text(client, "running")
    manager.interrupt_kernel()
    assert finish(client, msg_id).error == "KeyboardInterrupt"
    assert execute(client, "time.sleep(0.3); print(seen)").text == "[]\n"
    assert execute(client, "_ = signal.signal(signal.SIGURG, before)").status == "ok"
