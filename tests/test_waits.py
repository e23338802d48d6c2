"""Every wait of the package has a timeout, or says beside it why it needs none.

The code is parsed for calls that block, and for awaits, without a timeout. A loop that sleeps must
have a deadline. The reason is a comment ``# no timeout: …`` in the line, or above it. What runs
inside a sandbox delays only that, and the host notices its silence.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from .marks import find_marks
from .source import MODULES, PACKAGE, part_of, text_of, tree_of

BLOCKING = {"wait", "join", "result", "get", "acquire", "communicate"}
"""Methods that may wait for ever when called without arguments."""
READING = {"read", "readline", "recv", "recv_into", "recvmsg", "accept"}
PIPES = ("stdin", "stdout", "stderr", "socket", "sock", "pipe", "stream", "sys.")
CONTEXT_VARIABLES = {"_current", "_resolve"}
PROGRAMS = {"run", "call", "check_call", "check_output"}

MARK = "# no timeout: "


def is_unbounded(call: ast.Call) -> bool:
    """Whether a call may wait for ever, judged by its text."""
    name = text_of(call.func)
    method, owner = name.rpartition(".")[2], name.rpartition(".")[0]
    words = {keyword.arg for keyword in call.keywords}
    bounded = bool(words & {"timeout", "seconds"})
    if name in ("asyncio.wait", "asyncio.gather", "asyncio.shield"):
        return not bounded
    if name in ("os.waitpid", "os.waitid", "os.wait", "fcntl.flock", "fcntl.lockf"):
        text = ast.unparse(call)
        return "NOHANG" not in text and "LOCK_NB" not in text and "LOCK_UN" not in text
    if name in ("os.read", "os.readv", "threading.Lock", "threading.RLock", "threading.Condition"):
        return True
    if name == "select.select":
        return len(call.args) < 4
    if owner == "subprocess" and method in PROGRAMS:
        return not bounded
    if method == "poll" and "poller" in owner:
        return not call.args
    if name == "is_ready":
        return "None" in map(ast.unparse, call.args)
    if method == "wait_for":
        return len(call.args) < 2 and not bounded
    if method in READING:
        return any(word in owner for word in PIPES)
    if owner in CONTEXT_VARIABLES:
        return False
    if method == "communicate":
        return not bounded
    return method in BLOCKING and not call.args and not bounded and "blocking" not in words


def unbounded(tree: ast.AST, within: bool = False) -> Iterator[tuple[int, str]]:
    """Yield line and text of unbounded waits. ``within``: inside a block with a timeout."""
    for node in ast.iter_child_nodes(tree):
        inside = within
        if isinstance(node, ast.AsyncWith):
            inside |= any("timeout(" in ast.unparse(item) for item in node.items)
        if isinstance(node, ast.Await) and not within and not isinstance(node.value, ast.Call):
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Call) and is_unbounded(node) and not within:
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.While):
            text = ast.unparse(node)
            if "sleep(" in text and not any(w in text for w in ("deadline", "monotonic", "time()")):
                yield node.lineno, f"while {ast.unparse(node.test)}"
        yield from unbounded(node, inside)


OWN_LOOPS = ("bridge/", "egress/", "kernel/launch.py", "kernel/session.py")
"""Where all coroutines run on a loop that the package has made, and that no fork inherits."""


def find_default_executors(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that give work to the default executor of the running loop."""
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.Call | ast.Attribute) else ""
        if text.endswith(".to_thread") or ".run_in_executor(None" in text.partition("\n")[0]:
            yield node.lineno  # type: ignore[attr-defined]


def test_no_default_executor_of_a_loop_that_a_fork_inherits() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in MODULES
        if not str(path.relative_to(PACKAGE)).startswith(OWN_LOOPS) and part_of(path) != "guest"
        for line in find_default_executors(tree_of(path))
    ]
    assert not wrong, "use in_thread of gvisor_kernel/host/workers.py: " + ", ".join(wrong)


@pytest.mark.parametrize("code", ["asyncio.to_thread(f, 1)", "loop.run_in_executor(None, f)"])
def test_default_executor_is_found(code: str) -> None:
    assert list(find_default_executors(ast.parse(code)))


def test_every_wait_has_a_timeout_or_a_reason() -> None:
    wrong = []
    for path in MODULES:
        marks = find_marks(path, MARK)
        waits = {} if part_of(path) == "guest" else dict(unbounded(tree_of(path)))
        name = path.relative_to(PACKAGE)
        wrong += [f"{name}:{line}: {waits[line]}" for line in waits if line not in marks.values()]
        wrong += [f"{name}:{at}: no such wait" for at, line in marks.items() if line not in waits]
    assert not wrong, f"give it a timeout, or a comment '{MARK}…': " + "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        *("event.wait()", "thread.join()", "queue.get()", "future.result()", "lock.acquire()"),
        *("process.communicate()", "process.communicate(b'')", "subprocess.run(['x'])"),
        *("os.waitpid(pid, 0)", "fcntl.flock(fd, fcntl.LOCK_EX)", "select.select([a], [], [])"),
        *("poller.poll()", "process.stdout.read()", "self._socket.recv(10)", "os.read(fd, 10)"),
        "is_ready(fd, None)",
        "async def f(): await answer",
        "async def f(): await asyncio.wait({task})",
        "while not done():\n    time.sleep(1)",
    ],
)
def test_wait_without_end_is_found(code: str) -> None:
    assert list(unbounded(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        *("event.wait(1)", "thread.join(timeout=1)", "', '.join(parts)", "settings.get('x')"),
        *("subprocess.run(['x'], timeout=1)", "os.waitpid(pid, os.WNOHANG)", "poller.poll(1)"),
        *("is_ready(fd)", "is_ready(fd, 1.0)"),
        *("fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)", "file.read()", "process.poll()"),
        "async def f():\n    async with asyncio.timeout(1):\n        await answer",
        "while time.monotonic() < deadline:\n    time.sleep(1)",
    ],
)
def test_wait_with_end_is_not_found(code: str) -> None:
    assert not list(unbounded(ast.parse(code)))
