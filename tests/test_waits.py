"""Every wait of the package has a bound, or is listed here with a reason.

The code is parsed for calls that block, and for awaits, without a timeout. A loop that sleeps must
have a deadline. Other tests check whether a timeout is sensible.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

import pytest

from .test_style import MODULES, PACKAGE, text_of, tree_of

BLOCKING = {"wait", "join", "result", "get", "acquire", "communicate"}
"""Methods that may wait for ever when called without arguments."""
READING = {"read", "readline", "recv", "recv_into", "recvmsg", "accept"}
PIPES = ("stdin", "stdout", "stderr", "socket", "sock", "pipe", "stream", "sys.")
CONTEXT_VARIABLES = {"_current", "_resolve"}
PROGRAMS = {"run", "call", "check_call", "check_output"}


INSIDE = "inside a sandbox: it delays only that sandbox, and the host detects its silence"
LOCK = "held for a few steps that do not wait"
SWEEP = "held for the first sweep of a process; each removal has a timeout"
READY = "poll or select reported data, or the descriptor does not block"
OWN = "a daemon thread that waits for work and is told to end"
DEAD = "the process was killed, or its pidfd reported its end"
SHELL = (
    "a program that the user started with this command: it may take long, prints its progress, and \
ends with Ctrl-C"
)
DATA = "a file; if the user names a pipe, it ends with its writer, or with Ctrl-C"
UNDONE = "work of a runtime that has begun, and whose steps have timeouts: it is finished or undone"
CANCELLED = "a task that was cancelled, and whose steps end at once"
SIGNAL = "until a signal comes, or what waits is cancelled"
CLIENT = "for the client of an MCP server; only its own requests wait, and a signal ends it"

CODE = "code that the program runs: its own timeout, Ctrl-C or a cancellation ends it"

ALLOWED: dict[tuple[str, str], str] = {
    ("bridge/kernel.py", "asyncio.shield(self._ending)"): UNDONE,
    ("node/serve.py", "os.read(fd, size - len(data))"): READY,
    ("node/fetch.py", "os.read(fd, 1)"): READY,
    ("runtimes/nodes/fetch.py", "os.read(fd, 4096)"): READY,
    ("runtimes/nodes/fetch.py", "os.read(out, size - len(data))"): READY,
    ("runtimes/nodes/fetch.py", "self._process.wait()"): DEAD,
    ("runtimes/nodes/client.py", "self.process.wait()"): "it has ended, or got SIGKILL",
    ("runtimes/nodes/reports.py", "stream.read(65536)"): OWN,
    ("runtimes/waits.py", "_listener.get()"): "a variable of a context, not a queue",
    ("runtimes/waits.py", "_given_up.get()"): "a variable of a context, not a queue",
    ("changes/control.py", "await done"): "bounded by WORK_SECONDS, where it is called",
    ("bridge/kernel.py", "asyncio.shield(self._begin_end())"): UNDONE,
    ("bridge/kernel.py", "asyncio.shield(self._finishing)"): "bounded by FLUSH_SECONDS",
    ("egress/stream_client.py", "stream.read()"): "the route's limit of time ends the stream",
    ("server/fetch_handlers.py", "asyncio.wait({self._work})"): (
        "the route's limit of time ends it, and so does a browser that goes or does not read"
    ),
    ("server/fetch_handlers.py", "self._work.result()"): "it is done",
    ("egress/http.py", "while True"): "bounded by HEAD_SECONDS and BODY_SECONDS a read",
    ("egress/turns.py", "await turn"): "turns have time limits, and so has who waits",
    ("egress/package_catalog.py", "self._process.wait()"): DEAD,
    ("egress/package_upstream.py", "NAMES.get()"): "a variable of a context, not a queue",
    (
        "egress/services.py",
        "asyncio.shield(charging)",
    ): "a transaction, with a timeout for its lock",
    ("egress/addresses.py", "self._turns.acquire()"): "bounded by RESOLVE_SECONDS in addresses",
    ("egress/addresses.py", "asyncio.shield(resolving)"): "bounded by RESOLVE_SECONDS",
    ("egress/services.py", "done.result()"): "it is done",
    ("egress/package_catalog.py", "asyncio.shield(future)"): "a read or write of one file",
    ("egress/package_catalog.py", "asyncio.wait([future])"): "a read or write of one file",
    ("egress/package_downloads.py", "self._progress.wait()"): "bounded by FILE_SECONDS",
    ("bridge/sandbox_link.py", "os.read(self._sandbox.link_out, self._read_size)"): READY,
    ("bridge/lanes.py", "future.result()"): "it is done",
    ("bridge/linked_sandbox.py", "await closed"): UNDONE,
    ("bridge/egress_pipe.py", "self._socket.recv(READ_SIZE)"): READY,
    ("bridge/thread.py", "done.result()"): "it is done",
    ("bridge/thread.py", "task.result()"): "it is done",
    ("kernel/snapshot_queue.py", "threading.Condition()"): LOCK,
    (
        "kernel/snapshot_queue.py",
        "self._changed.wait_for(lambda: self._ended or bool(self._wanted))",
    ): OWN,
    (
        "kernel/snapshot_queue.py",
        "process.stderr.read()",
    ): "MAX_BUILD_SECONDS later it is killed",
    (
        "kernel/snapshot_queue.py",
        "process.wait()",
    ): "MAX_BUILD_SECONDS later it is killed, or it was",
    ("cli/logs.py", "while True"): "--follow: until Ctrl-C",
    (
        "jupyter/launcher.py",
        "stopping.wait()",
    ): "awaited together with the kernel's life, which is polled",
    (
        "jupyter/launcher.py",
        "asyncio.wait({launching, stopped}, return_when=asyncio.FIRST_COMPLETED)",
    ): "start_timeout bounds the first, a signal ends the second",
    (
        "egress/services.py",
        "asyncio.shield(loop.run_in_executor(None, admission.close))",
    ): "a transaction, which BUSY_SECONDS bounds",
    ("egress/streams.py", "self._readable.wait()"): "until the stream is over; callers have limits",
    ("egress/streams.py", "self._writable.wait()"): "until the stream is over; callers have limits",
    ("egress/streams.py", "self._sock.recv(PACED_READ if is_paced else READ_SIZE)"): READY,
    ("egress/tunnel.py", "stream.read()"): "the limit seconds of the route ends the tunnel",
    ("egress/upstream.py", "self._sock.recv(1, socket.MSG_PEEK)"): READY,
    ("egress/worker.py", "worker.ended.wait()"): "its owner's end ends it",
    ("jupyter/launcher.py", "launching.result()"): "it is done",
    ("api/files.py", "asyncio.shield(call.close())"): "a step of the bridge's loop",
    (
        "api/files.py",
        "asyncio.shield(call.send({'signal': int(signal.SIGKILL)}))",
    ): "a step of the bridge's loop",
    (
        "api/shell.py",
        "asyncio.shield(asyncio.ensure_future(_end(call, is_over)))",
    ): "steps of the bridge's loop",
    ("api/runner.py", "await run.emitting"): "the program's own listener, until its run ends",
    ("changes/kernel_changes.py", "asyncio.shield(task)"): "a step on the user's disk",
    ("changes/kernel_changes.py", "asyncio.wait({task})"): "likewise: it uses open descriptors",
    ("kernel/sandbox_call.py", "asyncio.shield(beginning)"): "a step of the bridge's loop",
    ("kernel/sandbox_call.py", "begun.result()"): "it is done",
    (
        "server/changes_handlers.py",
        "asyncio.shield(changes.apply(wanted, named=named, force=force))",
    ): "each question to the sandbox has a limit",
    ("api/shell.py", "running.result()"): "it is done",
    ("bridge/service.py", "state.changed.wait()"): "until an answer, or the end of the run; callers"
    " have limits",
    ("api/async_sandbox.py", "asyncio.shield(self._closing)"): UNDONE,
    ("api/async_sandbox.py", "asyncio.shield(restarting)"): "a start, which start_timeout bounds",
    ("api/async_sandbox.py", "asyncio.wait({restarting})"): "a start, which start_timeout bounds",
    ("api/pool.py", "asyncio.shield(self._closing)"): UNDONE,
    ("api/pool.py", "self._changed.wait()"): "until a sandbox has started or failed, or the end",
    ("server/doctor.py", "asyncio.shield(self._running)"): "bounded by MAX_SECONDS",
    ("server/listings.py", "await look"): "MAX_ENTRIES names of a folder",
    ("server/sandboxes.py", "asyncio.shield(self._reading)"): "reads of /proc and of records",
    ("server/unkept.py", "asyncio.shield(look.task)"): "SHORT_ANSWER_SECONDS of the look",
    ("server/unkept.py", "asyncio.wait([before.task])"): "SHORT_ANSWER_SECONDS of the look before",
    ("server/kernel_preparer.py", "while self.enabled"): "a task that ends with the server",
    ("kernel/learned_modules.py", "threading.Lock()"): "held for a small file, with bounds",
    (
        "server/kernel_preparer.py",
        "while self._choice is not None",
    ): "until no client has asked again; the server's end cancels it",
    ("api/runner.py", "asyncio.shield(task)"): CODE,
    ("api/runner.py", "asyncio.wait({task})"): "bounded by GRACE_SECONDS and LAST_SECONDS",
    (
        "api/runner.py",
        "asyncio.gather(replied, idle, return_exceptions=True)",
    ): "they are cancelled",
    ("api/runner.py", "run.idle.wait()"): "awaited together with an end of GRACE_SECONDS",
    (
        "api/async_sandbox.py",
        "asyncio.wait({taking, running}, return_when=asyncio.FIRST_COMPLETED)",
    ): CODE,
    ("api/async_sandbox.py", "await call"): "the program's own listener",
    ("api/async_sandbox.py", "await running"): CODE,
    ("api/async_sandbox.py", "events.get()"): CODE,
    ("api/async_sandbox.py", "taking.result()"): "it is done",
    (
        "api/loop_thread.py",
        "asyncio.gather(*closing, return_exceptions=True)",
    ): "bounded by END_SECONDS",
    ("api/loop_thread.py", "future.result()"): CODE,
    ("api/mapping.py", "task.result()"): "it is done",
    (
        "api/pool.py",
        "asyncio.gather(*(sandbox.close() for sandbox in sandboxes), return_exceptions=True)",
    ): UNDONE,
    ("api/pool.py", "asyncio.gather(*self._fillers, return_exceptions=True)"): "they are cancelled",
    ("api/pool.py", "await self._taking"): "until a sandbox has started or failed",
    ("api/runner.py", "while self._kernel.find_end() is None"): "bounded by LAST_SECONDS",
    ("api/pool.py", "self._wanted.acquire()"): "a filler waits until a sandbox is taken",
    ("api/pool.py", "while True"): "a filler lives as long as its pool",
    ("host/locks.py", "threading.Lock()"): LOCK,
    ("host/locks.py", "self._lock.acquire()"): LOCK,
    ("host/homes.py", "os.read(process.stdout.fileno(), READ_SIZE)"): READY,
    (
        "jupyter/provisioner.py",
        "while (status := (await self.poll())) is None",
    ): "polls the kernel's life; Jupyter sets the timeout",
    ("archive/layers.py", "os.read(fd, min(size, left))"): DATA,
    ("images/measure.py", "os.read(fd, CHUNK)"): DATA,
    ("host/commands.py", "os.read(output, READ_SIZE)"): READY,
    ("host/commands.py", "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)"): DEAD,
    ("runtimes/copies/contents.py", "os.read(fd, min(CHUNK, left))"): DATA,
    ("runtimes/docker/stream.py", "os.read(self._link_in, READ_SIZE)"): READY,
    (
        "runtimes/docker/stream.py",
        "poller.poll()",
    ): "one of the polled pipes reports the end",
    ("runtimes/image_probe.py", "os.read(sandbox.link_out, 65536)"): READY,
    ("runtimes/runsc/memory.py", "os.read(fd, READ_SIZE)"): "a file of /proc",
    ("runtimes/runsc/staging.py", "os.read(errors, MAX_ERROR)"): READY,
    ("runtimes/runsc/staging.py", "started.wait()"): DEAD,
    (
        "runtimes/runsc/staging.py",
        "thread.join()",
    ): "mounts, and the start of a program, bounded by wait_for_sentry",
    (
        "runtimes/runsc/staging.py",
        "child.stdout.read(1)",
    ): "a program that writes a byte at once, or ends",
    ("runtimes/runsc/starting.py", "process.wait()"): DEAD,
    ("runtimes/stderr_log.py", "while _poll(self._fd, None)"): (
        "its own thread, until its sandbox has ended"
    ),
    ("runtimes/stderr_log.py", "os.read(self._fd, 65536)"): READY,
    ("runtimes/state/leftovers.py", "threading.Condition()"): LOCK,
    (
        "mcp/service.py",
        "asyncio.gather(*self._closing, self._sandboxes.close(), return_exceptions=True)",
    ): "bounded by END_SECONDS in sessions",
    ("mcp/service.py", "await sweeping"): CANCELLED,
    ("mcp/http.py", "stop.wait()"): SIGNAL,
    ("mcp/service.py", "while True"): "until it is cancelled",
    ("mcp/stdio.py", "os.read(self._reading, size)"): READY,
    ("mcp/stdio.py", "self._greeting.join()"): CLIENT,
    ("mcp/tools.py", "await sender"): CANCELLED,
    ("mcp/tools.py", "changed.wait()"): "until the run has ended",
    ("mcp/tools.py", "while True"): "until the run has ended",
    (
        "mcp/sessions.py",
        "asyncio.shield(asyncio.ensure_future(self._sandboxes.give_back(session)))",
    ): UNDONE,
    ("mcp/resources.py", "asyncio.gather(*map(list_outputs, listed))"): "LIST_SECONDS of each",
    ("mcp/sessions.py", "asyncio.shield(starting)"): "bounded by start_timeout",
    ("mcp/sessions.py", "asyncio.shield(task)"): "the timeout of a run, FILE_SECONDS, or a start",
    ("mcp/sessions.py", "await first"): "bounded by start_timeout",
    ("kernel/session.py", "asyncio.wait({launching})"): UNDONE,
    ("kernel/workers.py", "asyncio.wait(self._undoing)"): UNDONE,
    ("kernel/session.py", "asyncio.shield(self._workers.undo_by(undo))"): UNDONE,
    (
        "kernel/launch.py",
        "asyncio.shield(self._workers.undo_by(give_up(kernel, restored, error)))",
    ): UNDONE,
    ("kernel/workers.py", "asyncio.shield(starting)"): UNDONE,
    ("kernel/workers.py", "await starting"): UNDONE,
    ("kernel/left_builder.py", "poller.poll()"): OWN,
    ("kernel/left_builder.py", "os.read(fd, 65536)"): (
        "the order is there, or its program has ended; the rest is read after a poll"
    ),
    ("kernel/spare_keeper.py", "threading.Condition()"): LOCK,
}
"""Reasons by module and text of the call."""
ALLOWED_MODULES = {
    "guest/": INSIDE,
    "images/blobs.py": DATA,
    "images/builder.py": SHELL,
    "images/engines.py": SHELL,
    "images/importer.py": DATA,
    "archive/tar.py": DATA,
    "runtimes/nodes/queue.py threading.Lock()": LOCK,
    "runtimes/nodes/reports.py threading.Condition()": LOCK,
    "runtimes/state/beginning.py threading.Lock()": SWEEP,
    "runtimes/kubernetes/pump.py threading.Lock()": LOCK,
    "runtimes/kubernetes/attach.py self._socket.recv": READY,
    "runtimes/kubernetes/collection.py stream.read()": READY,
    "runtimes/kubernetes/pump.py stream.read()": READY,
    "runtimes/kubernetes/pump.py os.read(self._in": READY,
    "runtimes/kubernetes/starting.py stream.read()": READY,
    "runtimes/kubernetes/starting.py self._stream.read()": READY,
    "runtimes/state/recorded_sandbox.py threading.Lock()": "held during removal: END_SECONDS, and"
    " COPY_SECONDS if outputs are copied out of an engine",
    "runtimes/docker/stream.py threading.Lock()": LOCK,
    "runtimes/state/lifeline.py threading.Lock()": "held while a shell ends, at most 5 s",
    "runtimes/runsc/runtime.py threading.Lock()": SWEEP,
    "runtimes/runsc/runsc_sandbox.py threading.Lock()": LOCK,
    "runtimes/stderr_log.py threading.Condition()": LOCK,
}
"""Reasons by the beginning of module and text."""


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
    if method == "wait_for":
        return len(call.args) < 2 and not bounded
    if method in READING:
        return any(word in owner for word in PIPES)
    if owner in CONTEXT_VARIABLES:
        return False
    if method == "communicate":
        return not bounded
    return method in BLOCKING and not call.args and not bounded and "blocking" not in words


def unbounded(tree: ast.AST, within: bool = False) -> Iterator[str]:
    """Yield the texts of unbounded calls, awaits and loops. ``within``: inside a timeout block."""
    for node in ast.iter_child_nodes(tree):
        inside = within
        if isinstance(node, ast.AsyncWith):
            inside |= any("timeout(" in ast.unparse(item) for item in node.items)
        if isinstance(node, ast.Await) and not within and not isinstance(node.value, ast.Call):
            yield ast.unparse(node)
        if isinstance(node, ast.Call) and is_unbounded(node) and not within:
            yield ast.unparse(node)
        if isinstance(node, ast.While):
            text = ast.unparse(node)
            if "sleep(" in text and not any(w in text for w in ("deadline", "monotonic", "time()")):
                yield f"while {ast.unparse(node.test)}"
        yield from unbounded(node, inside)


@cache
def found() -> list[tuple[str, str]]:
    """Return module and text of each unbounded wait in the package."""
    return sorted(
        {
            (path.relative_to(PACKAGE).as_posix(), text)
            for path in MODULES
            for text in unbounded(tree_of(path))
        }
    )


def is_allowed(module: str, text: str) -> bool:
    whole = f"{module} {text}"
    return (module, text) in ALLOWED or any(map(whole.startswith, ALLOWED_MODULES))


def test_every_wait_has_an_end_or_a_reason() -> None:
    wrong = [f"{module}: {text}" for module, text in found() if not is_allowed(module, text)]
    assert not wrong, "\n".join(["waits without an end and without a reason in this file:", *wrong])


def test_every_listed_reason_is_used() -> None:
    assert not ALLOWED.keys() - set(found())
    for start in ALLOWED_MODULES:
        assert any(f"{module} {text}".startswith(start) for module, text in found()), start


@pytest.mark.parametrize(
    "code",
    [
        *("event.wait()", "thread.join()", "queue.get()", "future.result()", "lock.acquire()"),
        *("process.communicate()", "process.communicate(b'')", "subprocess.run(['x'])"),
        *("os.waitpid(pid, 0)", "fcntl.flock(fd, fcntl.LOCK_EX)", "select.select([a], [], [])"),
        *("poller.poll()", "process.stdout.read()", "self._socket.recv(10)", "os.read(fd, 10)"),
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
        *("fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)", "file.read()", "process.poll()"),
        "async def f():\n    async with asyncio.timeout(1):\n        await answer",
        "while time.monotonic() < deadline:\n    time.sleep(1)",
    ],
)
def test_wait_with_end_is_not_found(code: str) -> None:
    assert not list(unbounded(ast.parse(code)))
