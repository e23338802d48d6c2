"""One kernel process: started as uid 1000 without capabilities, signalled, reaped.

The uid: a child of PID 1 enters a user namespace of its own in which the uid that the sandbox has
for kernels (``identity``) is called 1000, and has no other. So the kernel owns what it writes, on
the host too, and holds no capability over anything outside that namespace. A plain setuid(1000)
would not do: a sandbox of an ordinary user has one uid, and uid 1000 could write nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from typing import Dict, List, NoReturn, Optional, Tuple

from gvisor_kernel.guest import forked_kernel, identity, linux, seccomp
from gvisor_kernel.link import LogSource

KERNEL_ID = 1000
"""The uid and gid that the kernel sees as its own."""

LINK_FD = 3
"""Where a kernel that may speak frames itself finds its socket."""

_SYNC = b"."


class StartError(Exception):
    """The kernel's program could not be started; the text says why."""


class KernelProcess:
    """The process group of one kernel. ``output``: where its stdout and stderr can be read."""

    def __init__(self, pid: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.output = {stdout: LogSource.STDOUT, stderr: LogSource.STDERR}
        self.status: Optional[int] = None

    def signal_group(self, signum: int) -> None:
        """Signal the kernel and its children. Quiet when they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signum)

    def close_output(self, fd: int) -> None:
        """Stop reading one of ``output``: the kernel has closed it, or is gone."""
        del self.output[fd]
        os.close(fd)


def start_kernel(
    argv: List[str],
    environment: Dict[str, str],
    cwd: str,
    link: Optional[int] = None,
    forked: Optional[List[str]] = None,
) -> KernelProcess:
    """Start ``argv`` in its own session and user namespace. Raises StartError.

    ``forked``: instead of ``argv``, the child becomes a kernel itself; see ``forked_kernel``.
    ``link``: a descriptor that the program gets as LINK_FD; the caller's stays open.
    Returns once the program runs: an exec that fails is reported here, not as an exit status.
    """
    unshared_read, unshared_write = os.pipe()
    mapped_read, mapped_write = os.pipe()
    failure_read, failure_write = os.pipe()
    with identity.as_kernel():  # else it could not open /dev/stdout
        stdout_read, stdout_write = os.pipe()
        stderr_read, stderr_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_kernel(
            argv,
            environment,
            cwd,
            (unshared_write, mapped_read, failure_write),
            (stdout_write, stderr_write),
            link,
            forked,
        )
    for fd in (unshared_write, mapped_read, failure_write, stdout_write, stderr_write):
        os.close(fd)
    try:
        if os.read(unshared_read, 1) == _SYNC:
            _write_maps(pid)
            os.write(mapped_write, _SYNC)
        failure = os.read(failure_read, 4096)
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


def _write_maps(pid: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{KERNEL_ID} {identity.kernel_id} 1"),
        ("gid_map", f"{KERNEL_ID} {identity.kernel_id} 1"),
    ):
        try:
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY)
        except FileNotFoundError:
            if name == "setgroups":  # gVisor of 2024 has no such file, and asks for none
                continue
            raise
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _become_kernel(
    argv: List[str],
    environment: Dict[str, str],
    cwd: str,
    pipes: Tuple[int, int, int],
    output: Tuple[int, int],
    link: Optional[int],
    forked: Optional[List[str]],
) -> NoReturn:
    """In the child: never returns, whatever happens."""
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
        linux.set_dumpable(True)  # it may look at itself
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
        # The failure pipe stays open until exec closes it (close-on-exec); nothing else does.
        for name in os.listdir("/proc/self/fd"):
            fd = int(name)
            if fd > 2 and fd != failure and (link is None or fd != LINK_FD):
                try:
                    os.close(fd)
                except OSError as error:
                    if error.errno != errno.EBADF:  # the directory's own descriptor
                        raise
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.chdir(cwd)
        if forked is not None:
            os.close(failure)
            forked_kernel.become(forked, environment)
        os.execvpe(argv[0], argv, environment)
    except BaseException as error:  # nothing may unwind into PID 1's code in this child
        text = f"{argv[0]} cannot be started inside the sandbox: {error}"
        os.write(failure, text.encode("utf-8", "replace")[:4096])
    finally:
        os._exit(127)


def kill_everything() -> None:
    """SIGKILL to every process of the sandbox but PID 1. Does nothing unless called by PID 1."""
    if os.getpid() != 1:  # started outside a sandbox by mistake: it would end a whole machine
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def reap(kernel: Optional[KernelProcess]) -> bool:
    """Collect all dead children; True when the kernel was among them (its status is set then)."""
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
