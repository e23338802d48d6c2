"""The kernel process: started as uid 1000 without capabilities, signalled and reaped.

The service process (``service``) is started in the same way.

The uid: a child of PID 1 enters its own user namespace, which maps uid 1000 to the uid that the
sandbox has for kernels (``identity``), and maps no other. So the kernel owns what it writes, on the
host too, and has no capability over anything outside that namespace. A plain setuid(1000) would not
work: a sandbox of an ordinary user has one uid, and uid 1000 could write nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
from collections.abc import Container, Iterator
from typing import Callable, NoReturn

from gvisor_kernel.guest import forked_kernel, identity, installed, linux, seccomp
from gvisor_kernel.link import LogSource

KERNEL_ID = 1000
"""The uid and gid that the kernel sees as its own inside its user namespace."""

LINK_FD = 3
"""The descriptor of the socket on which a kernel may speak frames itself."""

FORK_SECONDS = 3.0
"""Seconds that PID 1 waits for a fork beside a kernel, which may stop it on its way. A kernel has
nobody beside it, and the host bounds its start."""

_SYNC = b"."


class StartError(Exception):
    """The program of the kernel could not be started; the text says why."""


class KernelProcess:
    """The process group of a kernel, or of the service process.

    ``output``: descriptors from which its stdout and stderr can be read. ``status``: as in
    ``subprocess``, once ``reap`` has found that it ended.
    """

    def __init__(self, pid: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.output = {stdout: LogSource.STDOUT, stderr: LogSource.STDERR}
        self.status: int | None = None

    def signal_group(self, signum: int) -> None:
        """Send a signal to the kernel and its children. Does nothing when they have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signum)

    def read_output(self, ready: Container[int]) -> Iterator[tuple[LogSource, bytes]]:
        """Read once from each descriptor of ``output`` that is ready; close those at their end."""
        for fd, source in tuple(self.output.items()):
            if fd not in ready:
                continue
            try:
                data = os.read(fd, 16 * 1024)
            except BlockingIOError:
                continue
            if data:
                yield source, data
            else:
                self.close_output(fd)

    def close_output(self, fd: int) -> None:
        """Stop reading one descriptor of ``output``: the kernel has closed it, or has ended."""
        del self.output[fd]
        os.close(fd)


def start_kernel(
    argv: list[str],
    environment: dict[str, str],
    cwd: str,
    link: int | None = None,
    forked: list[str] | None = None,
) -> KernelProcess:
    """Start ``argv`` in its own session and user namespace. Blocks until the program runs.

    :param link: a descriptor that the program gets as LINK_FD; the caller's stays open
    :param forked: run a kernel in the child instead of ``argv``; see ``forked_kernel``
    :raises StartError: when the program cannot be started, a failed exec included
    :raises OSError: when no pipe or process can be made
    """
    if forked is None:
        return _start(argv[0], environment, cwd, link, exec_argv=argv)

    def run() -> None:
        forked_kernel.run_in_fork(forked, environment)

    return _start(argv[0], environment, cwd, link, run=run)


def start_fork(
    name: str, environment: dict[str, str], cwd: str, link: int, run: Callable[[], None]
) -> KernelProcess:
    """Call ``run`` in a process like a kernel's. Its errors, and ``ps``, call it ``name``.

    Its descriptor LINK_FD is a copy of ``link``.

    :raises StartError: when the process cannot be set up
    :raises OSError: when no pipe or process can be made
    """
    return _start(name, environment, cwd, link, run=run, seconds=FORK_SECONDS)


def _start(
    name: str,
    environment: dict[str, str],
    cwd: str,
    link: int | None,
    *,
    exec_argv: list[str] | None = None,
    run: Callable[[], None] | None = None,
    seconds: float | None = None,
) -> KernelProcess:
    unshared_read, unshared_write = os.pipe()
    mapped_read, mapped_write = os.pipe()
    failure_read, failure_write = os.pipe()
    with identity.as_kernel():  # otherwise the kernel could not open /dev/stdout
        stdout_read, stdout_write = os.pipe()
        stderr_read, stderr_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_kernel(
            *(name, environment, cwd, link),
            (unshared_write, mapped_read, failure_write),
            (stdout_write, stderr_write),
            exec_argv,
            run,
        )
    for fd in (unshared_write, mapped_read, failure_write, stdout_write, stderr_write):
        os.close(fd)
    try:
        if _read_within(unshared_read, 1, seconds) == _SYNC:
            _write_maps(pid)
            os.write(mapped_write, _SYNC)
        failure = _read_within(failure_read, 4096, seconds)
    except OSError as error:
        failure = f"The kernel's user namespace cannot be set up: {error}".encode()
        os.kill(pid, signal.SIGKILL)
    finally:
        for fd in (unshared_read, mapped_write, failure_read):
            os.close(fd)
    if failure:
        os.close(stdout_read)
        os.close(stderr_read)
        os.waitpid(pid, 0)
        raise StartError(failure.decode("utf-8", "replace"))
    os.set_blocking(stdout_read, False)
    os.set_blocking(stderr_read, False)
    return KernelProcess(pid, stdout_read, stderr_read)


def _read_within(fd: int, size: int, seconds: float | None) -> bytes:
    """Read once.

    :raises OSError: nothing came within ``seconds``
    """
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not poller.poll(None if seconds is None else int(seconds * 1000)):
        raise TimeoutError(errno.ETIMEDOUT, f"it did not start within {seconds:g} s")
    return os.read(fd, size)


def _write_maps(pid: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{KERNEL_ID} {identity.kernel_id} 1"),
        ("gid_map", f"{KERNEL_ID} {identity.kernel_id} 1"),
    ):
        try:
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY)
        except FileNotFoundError:
            if name == "setgroups":  # releases of gVisor from 2024 lack the file and do not need it
                continue
            raise
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _become_kernel(
    name: str,
    environment: dict[str, str],
    cwd: str,
    link: int | None,
    pipes: tuple[int, int, int],
    output: tuple[int, int],
    exec_argv: list[str] | None,
    run: Callable[[], None] | None,
) -> NoReturn:
    """Set up the forked child, and run ``exec_argv`` or call ``run`` in it. Never returns."""
    unshared, mapped, failure = pipes
    try:
        os.setsid()
        linux.unshare_user()
        os.write(unshared, _SYNC)
        if os.read(mapped, 1) != _SYNC:
            os._exit(127)
        os.setresgid(KERNEL_ID, KERNEL_ID, KERNEL_ID)
        os.setresuid(KERNEL_ID, KERNEL_ID, KERNEL_ID)
        linux.drop_capabilities()
        linux.set_dumpable(True)  # the kernel may read its own files in /proc
        linux.forbid_new_privileges()
        seccomp.install()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.umask(0o022)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, output[0]), (2, output[1])):
            os.dup2(source, target)
        if link is not None:
            if failure == LINK_FD:
                failure = os.dup(failure)
                os.set_inheritable(failure, False)
            os.dup2(link, LINK_FD)
        # Close everything except the failure pipe, which exec closes (close-on-exec), and the link.
        for entry in os.listdir("/proc/self/fd"):
            fd = int(entry)
            if fd > 2 and fd != failure and (link is None or fd != LINK_FD):
                try:
                    os.close(fd)
                except OSError as error:
                    if error.errno != errno.EBADF:  # the descriptor of the directory itself
                        raise
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        installed.prepare(environment)
        os.chdir(cwd)
        if exec_argv is not None:
            os.execvpe(exec_argv[0], exec_argv, environment)
        elif run is not None:
            os.close(failure)
            failure = -1
            run()
    except BaseException as error:  # this child must not return into PID 1's code
        if failure < 0:
            raise
        text = f"{name} cannot be started inside the sandbox: {error}"
        os.write(failure, text.encode("utf-8", "replace")[:4096])
    finally:
        os._exit(127)


def kill_everything() -> None:
    """Send SIGKILL to every process of the sandbox except PID 1. Only PID 1 does anything."""
    if os.getpid() != 1:  # started outside a sandbox by mistake: this would end all processes
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def reap(kernel: KernelProcess | None) -> bool:
    """Reap all dead children. Return whether the kernel was one; its ``status`` is set then."""
    found = False
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if kernel is not None and pid == kernel.pid:
            kernel.status = os.waitstatus_to_exitcode(status)
            found = True
