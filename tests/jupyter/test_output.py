"""All output of code is shown in its cell and in order, however it is printed."""

from __future__ import annotations

import sys

import pytest
from jupyter_client import BlockingKernelClient

from ..sweeps import ALL, needs_all
from .helpers import (
    SANDBOXED,
    Answer,
    every_way_if_all,
    execute,
    finish,
    wait_for,
    wait_for_text,
)

pytestmark = every_way_if_all

PRINTING = {
    "print": ("print('said')", "said\n"),
    "without an end of line": ("import sys; sys.stdout.write('said'); None", "said"),
    "a descriptor": ("import os; os.write(1, b'said\\n'); None", "said\n"),
    "a system call's child": ("import os; os.system('echo said; echo again'); None", "said\nagain"),
    "a subprocess": ("import subprocess; subprocess.run(['echo', 'said']); None", "said\n"),
    "a shell escape": ("!echo said", "said"),
    "a cell of bash": ("%%bash\necho said\necho again", "said\nagain\n"),
    "C": ("import ctypes; c = ctypes.CDLL(None); c.puts(b'said'); c.fflush(None); None", "said\n"),
}


@pytest.mark.parametrize("how", PRINTING)
def test_output_is_shown(how: str, client: BlockingKernelClient) -> None:
    code, said = PRINTING[how]
    answer = execute(client, code)
    assert answer.status == "ok", answer.reply["content"]
    if "child" in how or "shell" in how:  # line ends of a terminal, or output of another process
        assert answer.text.replace("\r", "").strip() == said
    else:
        assert answer.text == said


def test_stdout_and_stderr_keep_their_order(client: BlockingKernelClient) -> None:
    code = "import sys\nfor i in range(20): print(i, file=(sys.stdout, sys.stderr)[i % 2])"
    answer = execute(client, code)
    said = [m["content"]["text"] for m in answer.of_type("stream")]
    assert "".join(sorted("".join(said).split(), key=int)) == "".join(map(str, range(20)))
    for name in ("stdout", "stderr"):
        numbers = [int(n) for n in words(answer, name)]
        assert numbers == sorted(numbers)
        assert len(numbers) == 10


def words(answer: Answer, name: str) -> list[str]:
    streams = [m["content"] for m in answer.of_type("stream")]
    return "".join(s["text"] for s in streams if s["name"] == name).split()


def test_output_of_threads_keeps_order(client: BlockingKernelClient) -> None:
    code = """
import threading
def work(number):
    for i in range(200): print(f"<{number}:{i}>")
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    said = execute(client, code).text
    for number in range(8):
        places = [said.index(f"<{number}:{i}>") for i in range(200)]
        assert places == sorted(places)


def test_thread_output_after_its_cell_is_shown(client: BlockingKernelClient) -> None:
    """Also while other cells run."""
    code = """
import threading
go, done = threading.Event(), threading.Event()
def work():
    go.wait()
    print("from the thread", flush=True)
    done.set()
threading.Thread(target=work).start()
"""
    assert execute(client, code).status == "ok"
    client.execute("go.set(); done.wait(); print('and the cell')")
    wait_for_text(client, "from the thread")
    assert execute(client, "done.is_set()").result == "True"


FORKED = """
import os, sys
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        sys.stdout.write(f"child{number}\\n"); sys.stdout.flush()
        os._exit(0)
    children.append(pid)
statuses = [os.waitpid(pid, 0)[1] for pid in children]
"""
POOL = """
import multiprocessing, sys
def work(number):
    sys.stdout.write(f"child{number}\\n"); sys.stdout.flush()
    return number * 2
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map(work, range(3))
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("code", "rest"),
    [(FORKED, "statuses"), (POOL, "found")],
    ids=["forked", "multiprocessing"],
)
def test_output_of_children_is_shown(client: BlockingKernelClient, code: str, rest: str) -> None:
    """ipykernel forwards their output over its own socket; it may come after the cell."""
    msg_id = client.execute(code)
    seen = ""
    while len(seen.split()) < 3 or not seen.endswith("\n"):
        message = wait_for(client, lambda m: m["msg_type"] == "stream", "what children print")
        if message["content"]["name"] == "stdout":
            seen += message["content"]["text"]
    assert sorted(seen.split()) == ["child0", "child1", "child2"]
    # Its idle message may have been read above.
    assert execute(client, f"sum({rest})").result == ("0" if rest == "statuses" else "6")
    assert msg_id


@pytest.mark.filterwarnings("ignore")
def test_children_print_while_thread_prints(client: BlockingKernelClient) -> None:
    """Locks that the kernel's threads hold at a fork must not block the children."""
    code = """
import os, signal, sys, threading
ended = threading.Event()
def work():
    while not ended.is_set():
        print("from the thread", flush=True)
thread = threading.Thread(target=work)
thread.start()
statuses = []
for number in range(6):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        print("from a child", flush=True)
        os._exit(0)
    statuses.append(os.waitpid(pid, 0)[1])
ended.set()
thread.join()
"""
    assert execute(client, f"exec({code!r})").status == "ok"
    assert execute(client, "set(statuses)").result == "{0}"


def test_spawned_child_inherits_no_descriptors(client: BlockingKernelClient) -> None:
    """Neither those of the link nor any other of the kernel."""
    code = """
import json, os, subprocess, sys
program = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1])"
done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                      close_fds=False)
print(done.stdout, done.stderr)
"""
    assert execute(client, code).text.strip() == "[0, 1, 2]"


@pytest.mark.parametrize("way_of", ["at once", pytest.param("in lines", marks=needs_all)])
def test_100_megabytes_of_output_arrive(client: BlockingKernelClient, way_of: str) -> None:
    if way_of == "at once":
        code = "print('x' * 100_000_000)"
    else:
        code = "for i in range(1000): print('x' * 99_999)"
    size = 0
    msg_id = client.execute(code)
    while True:
        message = wait_for(client, lambda m: m["parent_header"].get("msg_id") == msg_id, "output")
        if message["msg_type"] == "stream":
            size += len(message["content"]["text"])
        elif message["content"].get("execution_state") == "idle":
            break
    assert size == 100_000_001 if way_of == "at once" else 100_000_000
    assert execute(client, "40 + 2").result == "42"


def test_many_small_prints_arrive(client: BlockingKernelClient) -> None:
    count = 100_000 if ALL else 20_000
    answer = execute(client, f"for i in range({count}): print(i)")
    assert answer.text.split() == [str(i) for i in range(count)]


def test_invalid_text_output_is_harmless(client: BlockingKernelClient) -> None:
    answer = execute(
        client, "print('\\ud800 \\x00 \\x1b[31m'); import os; os.write(1, b'\\xff\\n')"
    )
    assert answer.status == "ok"
    assert execute(client, "print('next')").text == "next\n"


def test_completions_are_found(client: BlockingKernelClient) -> None:
    execute(client, "import os.path\nfirst_name = last_name = {'key one': 1}")
    for code, wanted in (
        ("first_n", "first_name"),
        ("os.path.jo", "os.path.join"),
        ("first_name['ke", "key one"),
        ("import xml.et", "xml.etree"),
        ("open('/etc/host", "/etc/hosts"),
    ):
        if not SANDBOXED and "/etc" in code and sys.platform != "linux":
            continue
        msg_id = client.complete(code, len(code))
        content = finish(client, msg_id).reply["content"]
        assert any(wanted.endswith(match.strip("'\"")) for match in content["matches"]), content


def test_inspection_and_history_are_answered(client: BlockingKernelClient) -> None:
    execute(client, "def documented():\n    'What it does.'")
    content = finish(client, client.inspect("documented", 5)).reply["content"]
    assert "What it does." in content["data"]["text/plain"]
    assert finish(client, client.is_complete("for i in x:")).reply["content"]["indent"] == "    "
    assert finish(client, client.history(n=1)).reply["content"]["status"] == "ok"
