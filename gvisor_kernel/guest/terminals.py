"""Programs in a terminal of their own, for pexpect and IPython's ``!command``, without a fork.

ptyprocess, on which both stand, forks the kernel for a program that is executed a moment later. On
Linux that takes 4 ms, inside gVisor 60 to 100: each page that either process touches afterwards is
mapped anew, and up to 2 MiB are copied for one that it writes. ``posix_spawn`` shares the memory
until the program runs, as ``subprocess`` does. The program finds the same, and is the kernel's own
child.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import importlib
import os
import struct
import termios
from collections.abc import Callable, Sequence
from typing import Any

from gvisor_kernel.guest.interpreter import is_plain

PLAIN_NAME = "subprocess"
"""The word for ``is_plain`` with which ptyprocess does as it does elsewhere."""
RELEASES = ("0.6.0", "0.7.0")
"""The releases of ptyprocess that were read. With another one nothing is changed."""

POSIX_SPAWN_SETSID = 0x80
OBJECT_SIZE = 1024
"""Bytes for a posix_spawn_file_actions_t or posix_spawnattr_t. glibc's have 80 and 336."""

# Python's lock is held during a call, as subprocess does: no thread changes ``environ`` meanwhile.
_libc = ctypes.PyDLL(None)


def spawn_quickly() -> bool:
    """Let ptyprocess start programs without a fork from now on. Once, in the kernel's process.

    ptyprocess also sleeps 0.1 s when a process is closed, and so after each ``!command``, for its
    end to become known. From now on it does not if the end is known. The variable of ``is_plain``
    is read each time: a restored kernel gets its variables later than this.

    Returns False and changes nothing if ptyprocess is absent or of another release, or if the C
    library is not glibc 2.34 or newer.
    """
    if not hasattr(_libc, "posix_spawn_file_actions_addclosefrom_np"):
        return False
    try:
        module: Any = importlib.import_module("ptyprocess.ptyprocess")
        if importlib.import_module("ptyprocess").__version__ not in RELEASES:
            return False
        which, process = module.which, module.PtyProcess
        original_spawn, original_close = process.spawn.__func__, process.close
    except (ImportError, AttributeError):
        return False

    @functools.wraps(original_spawn)
    def spawn(
        cls: Any,
        argv: Any,
        cwd: Any = None,
        env: Any = None,
        echo: Any = True,
        preexec_fn: Any = None,
        dimensions: Any = (24, 80),
        *rest: Any,
        **others: Any,
    ) -> Any:
        started = None
        simple = preexec_fn is None and not rest and not others  # nor pass_fds
        if simple and not is_plain(PLAIN_NAME, os.environ):
            started = start_in_terminal(which, argv, cwd, env, echo, dimensions)
        if started is None:
            options = (cwd, env, echo, preexec_fn, dimensions, *rest)
            return original_spawn(cls, argv, *options, **others)
        pid, terminal, arguments = started
        instance = cls(pid, terminal)
        instance.argv = arguments
        if env is not None:
            instance.env = env
        if cwd is not None:
            instance.launch_dir = cwd
        return instance

    @functools.wraps(original_close)
    def close(self: Any, force: Any = True) -> None:
        if self.terminated and not is_plain(PLAIN_NAME, os.environ):
            self.delayafterclose = 0
        original_close(self, force)

    process.spawn, process.close = classmethod(spawn), close
    return True


def start_in_terminal(
    which: Callable[[str], Any], argv: Any, cwd: Any, env: Any, echo: Any, dimensions: Any
) -> tuple[int, int, list[Any]] | None:
    """Start ``argv`` as ptyprocess does: in a session and terminal of its own, with no other files.

    Returns the process's id, the terminal's other end, and its arguments. Returns None if it cannot
    be started: ptyprocess then tries it its own way, and says what is wrong.
    """
    if not isinstance(argv, list) or not argv:
        return None
    try:
        terminal, end = os.openpty()
    except OSError:
        return None
    pid = 0
    try:
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", *dimensions, 0, 0))
        if not echo:
            attributes = termios.tcgetattr(end)
            attributes[3] &= ~termios.ECHO
            termios.tcsetattr(end, termios.TCSANOW, attributes)
        arguments = [which(argv[0]), *argv[1:]]
        variables = None if env is None else list(map(_encode_variable, env.items()))
        pid = _spawn(list(map(_encode, arguments)), variables, cwd, os.ttyname(end))
    except Exception:
        return None
    finally:
        os.close(end)
        if not pid:
            os.close(terminal)
    return pid, terminal, arguments


def _encode(text: Any) -> bytes:
    data = os.fsencode(text)
    if b"\0" in data:
        raise ValueError(f"null byte in {data[:100]!r}")
    return data


def _encode_variable(item: tuple[Any, Any]) -> bytes:
    name, value = map(_encode, item)
    if not name or b"=" in name:
        raise ValueError(f"no name of a variable: {name[:100]!r}")
    return name + b"=" + value


def _spawn(argv: list[bytes], variables: list[bytes] | None, cwd: Any, terminal: str) -> int:
    """Call posix_spawn(3) and return the id. ``variables``: None is what the C library has."""
    actions = ctypes.create_string_buffer(OBJECT_SIZE)
    attributes = ctypes.create_string_buffer(OBJECT_SIZE)
    pid = ctypes.c_int()
    environ: Any = ctypes.c_void_p.in_dll(_libc, "environ")
    if variables is not None:
        environ = _make_array(variables)
    _call("posix_spawn_file_actions_init", actions)
    _call("posix_spawnattr_init", attributes)
    try:
        # The leader of a new session gets the first terminal that it opens as its own.
        _call("posix_spawnattr_setflags", attributes, ctypes.c_short(POSIX_SPAWN_SETSID))
        add = "posix_spawn_file_actions_add"
        _call(f"{add}open", actions, 0, os.fsencode(terminal), os.O_RDWR, 0)
        _call(f"{add}dup2", actions, 0, 1)
        _call(f"{add}dup2", actions, 0, 2)
        _call(f"{add}closefrom_np", actions, 3)
        if cwd is not None:
            _call(f"{add}chdir_np", actions, _encode(cwd))
        _call(
            "posix_spawn",
            *(ctypes.byref(pid), argv[0], actions, attributes, _make_array(argv), environ),
        )
    finally:
        _libc.posix_spawn_file_actions_destroy(actions)
        _libc.posix_spawnattr_destroy(attributes)
    return pid.value


def _make_array(items: Sequence[bytes]) -> Any:
    return (ctypes.c_char_p * (len(items) + 1))(*items, None)


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the C library that returns an error number.

    :raises OSError: it returned one
    """
    error = getattr(_libc, name)(*arguments)
    if error:
        raise OSError(error, f"{name}: {os.strerror(error)}")
