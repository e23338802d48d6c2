"""The program ``runsc``: where it is, what it can do, and the command lines that it gets.

Every question to it has a hard timeout. A flag is used where the program lists it, never because
a version number says that it should be there.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.host import commands
from gvisor_kernel.host.cgroups import Cgroup
from gvisor_kernel.host.locks import ThreadLock

ANSWER_SECONDS = 10.0
ANSWER_BYTES = 1024 * 1024
"""Its flags, with a line on each, are 20 KB."""
EXTRA_PATH = "/usr/local/bin:/usr/bin:/usr/local/sbin:/usr/sbin"
INSTALL = (
    "install it: `sudo apt-get install runsc` on Debian and Ubuntu, or"
    " https://gvisor.dev/docs/user_guide/install/."
)
SIDECARS = "gvisor-bin"
"""The directory beside runsc for what it starts besides itself, in releases that do."""
NEEDED_FLAGS = frozenset({"root", "network", "platform", "overlay2", "ignore-cgroups"})


@dataclass(frozen=True)
class Runsc:
    """An installed runsc."""

    path: str
    version: str
    flags: frozenset[str]
    fingerprint: str = ""
    """Differs from that of any other program, and of sidecars, that were at ``path`` before."""
    sidecars: tuple[str, ...] = ()
    """The names of the programs in SIDECARS beside it, which releases since 2026 run."""


_known: dict[tuple[str, str], Runsc] = {}
_commands: dict[tuple[Runsc, str], frozenset[str]] = {}
_lock = ThreadLock()


def find_runsc() -> Runsc:
    """The runsc of this host. Raises RuntimeMissing."""
    path = shutil.which("runsc", path=os.environ.get("PATH", os.defpath) + ":" + EXTRA_PATH)
    if path is None:
        raise RuntimeMissing("The program runsc (gVisor) is not installed.", INSTALL)
    path = os.path.realpath(path)
    sidecars = _list_sidecars(path)
    files = [(Path(path).name, Path(path).stat()), *sidecars.items()]
    fingerprint = "-".join(f"{status.st_mtime_ns}-{status.st_size}" for _, status in files)
    key = (path, fingerprint)
    with _lock:
        if key not in _known:
            _known[key] = replace(
                _ask(path), fingerprint=fingerprint, sidecars=tuple(sorted(sidecars))
            )
        return _known[key]


def _list_sidecars(path: str) -> dict[str, os.stat_result]:
    """The programs that the runsc at ``path`` finds beside itself, and what may tell them apart."""
    try:
        with os.scandir(Path(path).parent / SIDECARS) as entries:
            return {entry.name: entry.stat() for entry in sorted(entries, key=attrgetter("name"))}
    except OSError:
        return {}


def command_flags(runsc: Runsc, command: str) -> frozenset[str]:
    """The flags that ``runsc COMMAND`` has. Raises RuntimeMissing."""
    with _lock:
        if (runsc, command) not in _commands:
            (text,) = _answers(runsc.path, (command, "--help"))
            _commands[runsc, command] = _find_flags(text)
        return _commands[runsc, command]


def _find_flags(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"^\s*--?([A-Za-z][\w-]*)", text, re.MULTILINE))


def _ask(path: str) -> Runsc:
    version_text, flags_text = _answers(path, ("--version",), ("flags",))
    match = re.search(r"runsc version (?:release-)?(\S+)", version_text)
    if match is None:
        raise RuntimeMissing(
            f"{path} does not say which version it is.", INSTALL, version_text[-1000:]
        )
    flags = _find_flags(flags_text)
    missing = NEEDED_FLAGS - flags
    if missing:
        raise RuntimeMissing(
            f"{path} (version {match[1]}) has no flag --{sorted(missing)[0]}.",
            f"it is too old: {INSTALL}",
        )
    return Runsc(path, match[1], flags)


def _answers(path: str, *questions: Sequence[str]) -> list[str]:
    """What runsc prints for each of ``questions``, asked at the same time."""
    argvs = [(path, *question) for question in questions]
    try:
        answers = commands.run(*argvs, seconds=ANSWER_SECONDS, most=ANSWER_BYTES, cwd=Path("/"))
    except OSError as error:
        raise RuntimeMissing(f"{path} cannot be run: {error.strerror}.", INSTALL) from error
    for argv, answer in zip(argvs, answers, strict=True):
        if answer.status is None:
            raise RuntimeMissing(
                f"`{shlex.join(argv)}` did not end within {ANSWER_SECONDS:g} s.",
                f"see what it does; where it is broken, {INSTALL}",
            )
    return [answer.words for answer in answers]


def start_argv(
    runsc: Runsc,
    *,
    root: str,
    bundle: str,
    container_id: str,
    panic_log: str,
    pid_file: str,
    image: str | None,
) -> list[str]:
    """The command that starts the sandbox of ``bundle`` and ends as soon as that runs.

    ``image``: restore from there. ``pid_file`` gets the sentry's pid. The panic log is worth
    having, and also takes the file descriptor that makes those of the mounts begin at 5.
    """
    argv = [
        runsc.path,
        f"--root={root}",
        *sandbox_flags(),
    ]
    if "panic-log" in runsc.flags:
        argv.append(f"--panic-log={panic_log}")
    command = ["run"] if image is None else ["restore", f"--image-path={image}"]
    return [
        *argv,
        *command,
        "--detach",
        f"--bundle={bundle}",
        f"--pid-file={pid_file}",
        container_id,
    ]


def sandbox_flags() -> tuple[str, ...]:
    """The flags that shape a sandbox. A restored one needs those that its image was made with.

    No overlay: the root is read-only, and stays so on the host, whatever a kernel does with its
    own view of it. Else the interpreter and the guest, which a later kernel of the same sandbox
    runs, could be replaced by renaming a folder above them.
    """
    return (
        "--network=none",
        "--platform=systrap",
        "--overlay2=none",
        "--ignore-cgroups",
    )


def checkpoint_argv(
    runsc: Runsc, *, root: str, container_id: str, image: str, direct: bool
) -> list[str]:
    """The command that writes a sandbox's image into the directory ``image`` and ends it.

    ``direct``: past the page cache, where this runsc can.
    """
    flags = command_flags(runsc, "checkpoint")
    argv = [runsc.path, f"--root={root}", "checkpoint", f"--image-path={image}"]
    if "compression" in flags:
        argv.append("--compression=none")
    if "exclude-committed-zero-pages" in flags:
        # gVisor takes memory by 2 MiB, and copies as much when one page of it is written after a
        # fork: a third of what a kernel's sandbox holds are zeros.
        argv.append("--exclude-committed-zero-pages")
    if direct and "direct" in flags:
        argv.append("--direct")
    if os.geteuid() != 0:
        argv = ["unshare", "-Ur", *argv]
    return [*argv, container_id]


def prelude_argv(argv: Sequence[str], *, cgroup: Cgroup, file_size: int | None) -> list[str]:
    """``argv`` behind a shell that enters ``cgroup``, sets limits, and becomes it."""
    lines = ["set -e", "umask 022", "ulimit -c 0"]
    lines += [f"echo $$ > {shlex.quote(str(d / 'cgroup.procs'))}" for d in cgroup.directories]
    if file_size is not None:
        lines.append(f"ulimit -f {file_size // 512}")  # POSIX: in blocks of 512 bytes
    script = "\n".join([*lines, 'exec "$@"'])
    return ["/bin/sh", "-c", script, "gvisor-kernel", *argv]
