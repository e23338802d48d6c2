"""The program ``runsc``: its path, its version and flags, and the command lines that it is run
with.

Each call that asks runsc something has a timeout. A flag is used where ``runsc flags`` or
``--help`` lists it, never because of a version number.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import ReleaseError, RuntimeMissing, StateError
from gvisor_kernel.host import commands
from gvisor_kernel.host.cgroups import Cgroup
from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.host.private_directories import read_file, replace_file, state_root
from gvisor_kernel.releases.release_store import (
    PROGRAM,
    SYSTEM,
    find_chosen,
    find_release,
    suggest_release,
)
from gvisor_kernel.runtimes.runsc.kept_programs import (
    check_unwritten,
    describe_files,
    find_copy,
    is_script,
    list_files,
    name_program,
    split_program,
)

FILE = "runsc.json"
MAX_BYTES = 256 * 1024
"""The flags of one program take 3 KB."""
MAX_PROGRAMS = 8
"""Programs that are remembered on this machine; the oldest are forgotten."""


def read_answers(program: str) -> dict[str, Any]:
    """Return what the very ``program`` has answered before, by question; the types are not checked.

    Returns an empty dictionary if the file of answers is missing or damaged, and for a script.
    """
    found = {} if is_script(split_program(program)[0]) else _read_all().get(program)
    return found if isinstance(found, dict) else {}


def keep_answers(program: str, answers: dict[str, Any]) -> None:
    """Add ``answers`` to those of a program, unless it is a script. Never raises: without the file
    the next process asks again. Two processes may write at the same time; then one of the answers
    is asked for again."""
    if is_script(split_program(program)[0]):
        return
    merged = {**read_answers(program), **answers}
    others = [item for item in _read_all().items() if item[0] != program]
    newest = dict([*others, (program, merged)][-MAX_PROGRAMS:])
    with suppress(OSError, StateError):
        replace_file(state_root() / FILE, json.dumps(newest))


def _read_all() -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError, StateError):
        found = json.loads(read_file(state_root() / FILE, MAX_BYTES))
        if isinstance(found, dict):
            return found
    return {}


ANSWER_SECONDS = 10.0
"""Seconds that runsc may take to print its version or its flags."""
ANSWER_BYTES = 1024 * 1024
"""Bytes of output that are read. The list of flags, a line on each, is 20 KB."""
EXTRA_PATH = "/usr/local/bin:/usr/bin:/usr/local/sbin:/usr/sbin"
INSTALL = "run `gvisor-kernel runsc install`, or on Debian `sudo apt-get install runsc`."
"""A dialog of JupyterLab shows this whole: it does not break lines."""
NEEDED_FLAGS = frozenset({"root", "network", "platform", "overlay2", "ignore-cgroups"})


@dataclass(frozen=True)
class Runsc:
    """An installed runsc. ``program``: the name of this very program, see ``kept_programs``.

    ``executable``: the path at which it is run: another than ``path``, if another file is there.
    ``sidecars``: the names of the programs in SIDECARS, which releases since 2026 have."""

    program: str
    executable: str
    sidecars: tuple[str, ...] = ()
    version: str = ""
    flags: frozenset[str] = frozenset()

    @property
    def path(self) -> str:
        """The path at which it was found first."""
        return split_program(self.program)[0]

    def is_in_place(self) -> bool:
        """Return whether ``executable`` still leads to it. Takes some system calls."""
        if self.executable != self.path:
            return Path(self.executable).exists()
        with suppress(RuntimeMissing):
            return _look(self.path).program == self.program
        return False


_known: dict[str, Runsc] = {}
_commands: dict[tuple[str, str], frozenset[str]] = {}
_lock = ThreadLock()


def find_runsc(choice: str = "") -> Runsc:
    """Return the runsc of this host that ``choice`` names.

    ``choice``: a value of the setting ``runsc``, or ``Runsc.program``. The latter is that very
    program, from its copy if it was replaced. If it cannot be had any more, it is the one that new
    kernels get.

    Blocks for up to ANSWER_SECONDS when no process of this user has asked this program before.

    :raises RuntimeMissing: when it is not installed, does not answer, or lacks a needed flag
    """
    path, fingerprint = split_program(choice)
    if not fingerprint:
        return _complete(_look(_find_path(choice)))
    with suppress(RuntimeMissing):
        found = _look(path)
        if found.program == choice:
            return _complete(found)
    known = _known.get(choice)
    copy = find_copy(choice, "" if known is None else known.version)
    if copy is not None:
        return _complete(replace(_look(copy), program=choice))
    return find_runsc()


def _find_path(choice: str) -> str:
    """Return the path of the program that a value of the setting ``runsc`` names."""
    if choice.startswith("/"):
        if shutil.which(choice) is None:
            raise RuntimeMissing(
                f"The setting runsc names {choice}, which this user cannot run.",
                "name the path of gVisor's runsc, or one of its releases.",
            )
        return choice
    if choice != SYSTEM:
        try:
            chosen = find_release(choice) if choice else find_chosen()
        except ReleaseError as error:
            raise RuntimeMissing(error.fact, error.hint) from error
        if chosen is not None:
            return str(chosen.program)
    path = shutil.which("runsc", path=os.environ.get("PATH", os.defpath) + ":" + EXTRA_PATH)
    if path is None:
        suggested = suggest_release()
        hint = INSTALL if suggested in INSTALL else f"run `{suggested}`."
        if choice == SYSTEM:
            hint += " If the setting runsc is system, name an installed release, or remove it."
        raise RuntimeMissing("The program runsc (gVisor) is not installed.", hint)
    return path


def _look(path: str) -> Runsc:
    """Return the program at ``path`` without what it has to be asked for."""
    path = os.path.realpath(path)
    files = list_files(path)
    try:
        fingerprint = describe_files(map(os.stat, files.values()))
    except OSError as error:  # it is being replaced
        raise RuntimeMissing(
            f"Could not find {path}: {error.strerror}.",
            f"if it is being installed now, start the kernel again; otherwise {INSTALL}",
        ) from error
    sidecars = tuple(name.rpartition("/")[2] for name in files if name != PROGRAM)
    return Runsc(name_program(path, fingerprint), path, sidecars)


def _complete(unasked: Runsc) -> Runsc:
    with _lock:
        known = _known.get(unasked.program)
        if known is None:
            check_unwritten(unasked.executable)  # before it is run at all
            known = _read_answers(unasked) or _ask(unasked)
        _known[unasked.program] = known
        return replace(known, executable=unasked.executable)


def command_flags(runsc: Runsc, command: str) -> frozenset[str]:
    """Return the flags of ``runsc COMMAND``. Blocks the first time.

    :raises RuntimeMissing: when runsc does not answer
    """
    with _lock:
        if (runsc.program, command) not in _commands:
            (text,) = _run_each(runsc.executable, (command, "--help"))
            _commands[runsc.program, command] = _find_flags(text)
        return _commands[runsc.program, command]


def _find_flags(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"^\s*--?([A-Za-z][\w-]*)", text, re.MULTILINE))


def _read_answers(runsc: Runsc) -> Runsc | None:
    """Return ``runsc`` with what it told another process; None if it told nothing."""
    answers = read_answers(runsc.program)
    version, flags = answers.get("version"), answers.get("flags")
    if not isinstance(version, str) or not isinstance(flags, list):
        return None
    known = frozenset(flag for flag in flags if isinstance(flag, str))
    return replace(runsc, version=version, flags=known) if known >= NEEDED_FLAGS else None


def _ask(runsc: Runsc) -> Runsc:
    """Return ``runsc`` with its version and flags, which are kept for other processes."""
    path = runsc.executable
    version_text, flags_text = _run_each(path, ("--version",), ("flags",))
    match = re.search(r"runsc version (?:release-)?(\S+)", version_text)
    if match is None:
        raise RuntimeMissing(f"{path} does not print its version.", INSTALL, version_text[-1000:])
    flags = _find_flags(flags_text)
    missing = NEEDED_FLAGS - flags
    if missing:
        raise RuntimeMissing(
            f"{path} (version {match[1]}) has no flag --{sorted(missing)[0]}.",
            "it is too old: `gvisor-kernel runsc install` gets a current one.",
        )
    keep_answers(runsc.program, {"version": match[1], "flags": sorted(flags)})
    return replace(runsc, version=match[1], flags=flags)


def _run_each(path: str, *questions: Sequence[str]) -> list[str]:
    """Return what runsc prints for each of ``questions``; all of them run at the same time."""
    argvs = [(path, *question) for question in questions]
    try:
        answers = commands.run(
            *argvs, seconds=ANSWER_SECONDS, max_bytes=ANSWER_BYTES, cwd=Path("/")
        )
    except OSError as error:
        raise RuntimeMissing(f"Could not run {path}: {error.strerror}.", INSTALL) from error
    for argv, answer in zip(argvs, answers, strict=True):
        if answer.status is None:
            raise RuntimeMissing(
                f"`{shlex.join(argv)}` did not end within {ANSWER_SECONDS:g} s.",
                f"run the command yourself; if runsc is broken, {INSTALL}",
            )
    return [answer.output for answer in answers]


def start_argv(
    runsc: Runsc,
    *,
    root: str,
    bundle: str,
    container_id: str,
    panic_log: str,
    pid_file: str,
    snapshot: str | None,
) -> list[str]:
    """Return the command that starts the sandbox of ``bundle`` and ends as soon as the sandbox
    runs.

    ``snapshot``: the directory to restore from, or None. The sentry's pid is written to
    ``pid_file``. ``panic_log`` is also passed because it takes a file descriptor, so that those of
    the mounts begin at 5.
    """
    argv = [
        runsc.executable,
        f"--root={root}",
        *sandbox_flags(),
    ]
    if "panic-log" in runsc.flags:
        argv.append(f"--panic-log={panic_log}")
    # Not --background: a page that cannot be read later would end a kernel that is in use. Not
    # --direct: while the file is in the page cache, as usual, a restore takes longer with it.
    command = ["run"] if snapshot is None else ["restore", f"--image-path={snapshot}"]
    return [
        *argv,
        *command,
        "--detach",
        f"--bundle={bundle}",
        f"--pid-file={pid_file}",
        container_id,
    ]


def sandbox_flags() -> tuple[str, ...]:
    """Return the flags that a sandbox runs with. It can only be restored with the flags it was
    saved with.

    There is no overlay: the root is read-only and stays so on the host, whatever a kernel does with
    its own view of it. With an overlay a kernel could rename a folder above the interpreter or the
    guest, and replace the files that a later kernel of the same sandbox runs.
    """
    return (
        "--network=none",
        "--platform=systrap",
        "--overlay2=none",
        "--ignore-cgroups",
    )


def checkpoint_argv(
    runsc: Runsc, *, root: str, container_id: str, snapshot: str, direct: bool
) -> list[str]:
    """Return the command that saves a sandbox, which goes on, into the directory ``snapshot``.

    ``direct``: write without the page cache, where this runsc can.
    """
    flags = command_flags(runsc, "checkpoint")
    argv = [runsc.executable, f"--root={root}", "checkpoint", f"--image-path={snapshot}"]
    if "compression" in flags:
        argv.append("--compression=none")
    if "exclude-committed-zero-pages" in flags:
        # gVisor allocates memory by 2 MiB, and copies as much when one page of it is written after
        # a fork: a third of what a kernel's sandbox holds are zeros.
        argv.append("--exclude-committed-zero-pages")
    if direct and "direct" in flags:
        argv.append("--direct")
    argv.append("--leave-running")
    if os.geteuid() != 0:
        argv = ["unshare", "-Ur", *argv]
    return [*argv, container_id]


def prelude_argv(argv: Sequence[str], *, cgroup: Cgroup, file_size: int | None) -> list[str]:
    """Return ``argv`` behind a shell that enters ``cgroup``, sets limits and executes ``argv``."""
    lines = ["set -e", "umask 022", "ulimit -c 0"]
    lines += [f"echo $$ > {shlex.quote(str(d / 'cgroup.procs'))}" for d in cgroup.directories]
    if file_size is not None:
        lines.append(f"ulimit -f {file_size // 512}")  # POSIX: in blocks of 512 bytes
    script = "\n".join([*lines, 'exec "$@"'])
    return ["/bin/sh", "-c", script, "gvisor-kernel", *argv]
