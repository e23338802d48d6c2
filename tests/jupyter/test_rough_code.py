"""Code that disturbs its own process must break neither the kernel nor the link."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from ..sweeps import ALL, needs_all
from ..world import WAYS
from .helpers import (
    SANDBOXED,
    SECONDS,
    ask,
    execute,
    finish,
    next_message,
    reply_to,
    running_kernel,
    send,
    wait_for_text,
    wait_until,
)
from .test_messages import ECHO, is_comm_message, wait_for

# A relayed kernel does not speak frames itself, so it is tested only in a complete run.
pytestmark = pytest.mark.parametrize(
    "way",
    [pytest.param("relay", marks=needs_all), "restored"] if SANDBOXED else [""],
    indirect=True,
    scope="module",
)


def assert_works(client: BlockingKernelClient) -> None:
    answer = execute(client, "print('printed')\n40 + 2")
    assert (answer.text, answer.result) == ("printed\n", "42")


# -- errors ---------------------------------------------------------------------------------------


def test_cell_after_error_runs(client: BlockingKernelClient) -> None:
    """Also if it comes as soon as the first cell has ended."""
    for number in range(40 if ALL else 15):
        assert execute(client, "1 / 0").error == "ZeroDivisionError"
        assert execute(client, f"{number}").result == f"{number}"


def test_cells_waiting_behind_error_are_aborted(client: BlockingKernelClient) -> None:
    failing = client.execute("import time; print('here', flush=True); time.sleep(0.3); 1 / 0")
    wait_for_text(client, "here")
    waiting = [client.execute("must_not_run = True") for _ in range(3)]
    assert reply_to(client, failing)["content"]["status"] == "error"
    for msg_id in waiting:
        assert reply_to(client, msg_id)["content"]["status"] == "aborted"
    assert execute(client, "print('must_not_run' in globals())").text == "False\n"


# -- interrupts -----------------------------------------------------------------------------------

TOUCH = """
from pathlib import Path
outputs = Path("/mnt/user-data/outputs")
(outputs if outputs.is_dir() else Path("outputs")).joinpath("{0}").touch()
"""
"""Reports by a file, as ipykernel's threads may need the GIL to send what was printed."""


def wait_until_touched(manager: KernelManager, what: str) -> None:
    path = Path(manager._launch_args["cwd"], "outputs", what)
    wait_until(path.exists, f"the cell to be {what}")
    path.unlink()


HOLDING = {
    "a sum": "while True: sum(range(3 * 10**7))",
    "a call of C": "import ctypes\nwhile True: ctypes.PyDLL(None).usleep(300_000)",
    "a long call of C": "import ctypes\nwhile True: ctypes.PyDLL(None).sleep(600)",
}
"""C code that ignores signals ends when it returns, as in a local kernel. Interrupted system calls
return at once."""


@pytest.mark.parametrize("what", HOLDING)
def test_interrupt_works_while_gil_is_held(
    what: str, manager: KernelManager, client: BlockingKernelClient
) -> None:
    """PID 1 sends the signal; no thread of the kernel has to run for it."""
    msg_id = client.execute(TOUCH.format("holding") + HOLDING[what])
    wait_until_touched(manager, "holding")
    manager.interrupt_kernel()
    assert finish(client, msg_id).error == "KeyboardInterrupt"
    assert_works(client)


def test_shutdown_works_while_gil_is_held(way: str, folder: Path) -> None:
    """The kernel ignores the request, so it is killed after the wait time."""

    def be_quick(manager: KernelManager) -> None:
        manager.shutdown_wait_time = 0.5

    start = {"cwd": str(folder)}
    with running_kernel(prepare=be_quick, settings=WAYS.get(way), start=start) as (manager, client):
        code = """
import ctypes, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True: ctypes.PyDLL(None).sleep(600)
"""
        client.execute(TOUCH.format("deaf") + code)
        wait_until_touched(manager, "deaf")
    assert not manager.is_alive()


def test_interrupts_during_output_are_harmless(
    manager: KernelManager, client: BlockingKernelClient
) -> None:
    """The cell prints all the time, so most of them hit the code that sends."""
    for number in range(12 if ALL else 5):
        msg_id = client.execute(f"while True: print('{number:03}' * 100)")
        wait_for_text(client, f"{number:03}")
        manager.interrupt_kernel()
        assert finish(client, msg_id).error == "KeyboardInterrupt"
    assert_works(client)


def test_raising_signal_handler_is_harmless(client: BlockingKernelClient) -> None:
    """The signal comes fifty times in the middle of printing."""
    code = """
import signal, sys
class Late(Exception): pass
def ring(*_): raise Late
signal.signal(signal.SIGALRM, ring)
rang = 0
while rang < 50:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        while True: print("x" * 100); sys.stdout.flush()
    except Late:
        rang += 1
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, signal.SIG_DFL)
"""
    answer = execute(client, code)
    assert answer.status == "ok", answer.reply["content"]
    assert execute(client, "rang").result == "50"
    assert_works(client)


# -- comms while a cell runs ----------------------------------------------------------------------


def test_comm_answers_while_async_cell_waits(client: BlockingKernelClient) -> None:
    """If ipykernel does not read while a cell awaits, the answers come after the cell."""
    execute(client, ECHO)
    code = "import asyncio; print('waiting', flush=True); await asyncio.sleep(0.3); print('done')"
    msg_id = client.execute(code)
    wait_for_text(client, "waiting")
    send(client, "comm_open", {"comm_id": "rough", "target_name": "echo"}, channel="shell")
    content = {"comm_id": "rough", "data": {}}
    for number in range(10):
        send(client, "comm_msg", content, channel="shell", buffers=[b"%d" % number])
    back = []
    while len(back) < 10:
        message = wait_for(client, is_comm_message("rough"), "the buffers")
        back.append(bytes(message["buffers"][0]))
    assert back == [b"%d" % number for number in range(10)]
    assert reply_to(client, msg_id)["content"]["status"] == "ok"


# -- descriptors ----------------------------------------------------------------------------------


def test_descriptors_0_to_2_are_not_the_link(client: BlockingKernelClient) -> None:
    """Data that is written there is output at most; there is nothing to read."""
    code = """
import os
with open("/dev/null", "r+b", buffering=0) as null:
    found = os.read(0, 100)
for number in (1, 2):
    os.write(number, b"GK\\0" * 50_000)
print(found)
"""
    answer = execute(client, code)
    assert answer.status == "ok", answer.reply["content"]
    assert "b''" in answer.text
    assert_works(client)


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor number in range(3): os.close(number)",
        pytest.param(
            "import os\nfor number in range(3): os.dup2(os.open('/dev/zero', os.O_RDWR), number)",
            marks=needs_all,
        ),
        "import sys\nsys.__stdout__.close(); sys.__stderr__.close(); sys.__stdin__.close()",
    ],
    ids=["closed", "replaced", "closed by Python"],
)
def test_closing_descriptors_0_to_2_is_harmless(way: str, code: str) -> None:
    with running_kernel(settings=WAYS.get(way)) as (_, client):
        assert execute(client, code).status == "ok"
        assert_works(client)
        assert execute(client, "1 / 0").error == "ZeroDivisionError"
        assert ask(client, "kernel_info_request")["status"] == "ok"


def test_closing_all_descriptors_ends_only_kernel(way: str, folder: Path) -> None:
    """The end of the kernel is noticed and reported; the sandbox serves the next kernel."""
    settings = WAYS.get(way)
    with running_kernel(settings=settings) as (manager, client):
        client.execute("import os; os.closerange(0, 65536); os._exit(0)")
        wait_until(lambda: not manager.is_alive(), "the end of the kernel", 20)
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=SECONDS)
        assert_works(client)


# -- the end --------------------------------------------------------------------------------------


def test_exit_delivers_queued_output(way: str) -> None:
    """All output of before is shown, except with ipykernel's own sockets, which also lose it
    without a sandbox."""
    with running_kernel(settings=WAYS.get(way)) as (manager, client):
        msg_id = client.execute("for i in range(200): print('x' * 99_999)\nexit()")
        if way in ("direct", "restored"):
            assert len(finish_output(client, msg_id)) == 20_000_000
        wait_until(lambda: not manager.is_alive(), "the end of the kernel")


def finish_output(client: BlockingKernelClient, msg_id: str) -> str:
    """Return what a cell printed, which may get no reply."""
    deadline = time.monotonic() + SECONDS
    texts: list[str] = []
    while True:
        message = next_message(client, "iopub", deadline, f"the end of {msg_id}")
        if message["parent_header"].get("msg_id") == msg_id:
            if message["msg_type"] == "stream":
                texts.append(message["content"]["text"])
            elif message["content"].get("execution_state") == "idle":
                return "".join(texts)
