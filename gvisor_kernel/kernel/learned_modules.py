"""Keeps which modules kernels of each kind import, in the user's cache, for their snapshots.

Only names of modules and counts are kept: no code, no folder, no time. A report comes from a
sandbox, so its names are checked for their form here, and, where the sandbox shows this machine's
packages, for a module of that name. All functions block for a file, but ``read_report``.
"""

from __future__ import annotations

import json
import logging
import struct
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gvisor_kernel.config.validators import HOST_IMAGE
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host import private_directories
from gvisor_kernel.host.private_directories import own_cache
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.restore import preloads_learned
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import SnapshotRuntime
from gvisor_kernel.runtimes.mounts.host_python import ask_interpreter
from gvisor_kernel.snapshots.key import IMPORTED, KEY_DIGITS, digest
from gvisor_kernel.snapshots.learned import (
    MAX_NAMES,
    Counts,
    Preloaded,
    add_late,
    add_report,
    choose,
    is_module_name,
    is_outdated,
    read_counts,
)
from gvisor_kernel.strict_json import JsonError, parse_json

log = logging.getLogger(__name__)

VARIABLE = "GVISOR_KERNEL_LEARNS"
"""Tells a kernel that it may report; see ``guest/cell_hooks.py``."""
MAX_REPORT = 8 * 1024
MAX_LISTS = 16
"""Lists and objects of a report, which is parsed on the bridge's loop. An honest one has three."""
MAX_FILE = 16 * 1024
MAX_KINDS = 64
"""Kinds of kernels whose counts are kept: those that were changed last."""
PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_LENGTH = struct.Struct(">I")


def learns(plan: KernelPlan) -> bool:
    """Return whether what kernels of ``plan`` import is counted, and is in their snapshots."""
    runtime = get_runtime(plan.spec.runtime)
    return (
        plan.spec.snapshot != "off"
        and (isinstance(runtime, SnapshotRuntime) or runtime.finds_snapshots)
        and preloads_learned(plan)
    )


def learning_variables(plan: KernelPlan) -> dict[str, str]:
    """Return the variables by which a kernel knows that it may report its imports."""
    return {VARIABLE: "imports"} if learns(plan) else {}


def find_kind(plan: KernelPlan) -> str:
    """Return the name of the kernels that share counts: those of one environment."""
    packages = plan.spec.packages.environment if plan.spec.packages is not None else ""
    facts = [plan.spec.runtime, plan.spec.image, plan.request.python, packages]
    return digest(facts)[:KEY_DIGITS]


def with_learned(plan: KernelPlan) -> KernelPlan:
    """Return ``plan`` with the modules that its next snapshot is to import, if it learns."""
    if not learns(plan):
        return plan
    return replace(plan, learned=choose(read(find_kind(plan))))


def find_outdated(plan: KernelPlan, made: Preloaded | None) -> KernelPlan | None:
    """Return the plan of a snapshot that is to replace one with ``made``; None if that is good."""
    if made is None or not learns(plan) or not is_outdated(made, read(find_kind(plan))):
        return None
    return with_learned(plan)


# -- reports of sandboxes --------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """The modules that cells of a kernel have imported, and those variables of IMPORTED that they
    have named. A malformed report has none."""

    names: tuple[str, ...] = ()
    variables: frozenset[str] = frozenset()


def read_report(question: bytes) -> Report | None:
    """Return the report of a sandbox; None if the question is another one."""
    if not _LENGTH.size < len(question) <= MAX_REPORT:
        return None
    if question.count(b"[") + question.count(b"{") > MAX_LISTS:  # many take long to parse
        return None
    try:
        head = parse_json(question[_LENGTH.size :], MAX_REPORT)
    except JsonError:
        return None
    if not isinstance(head, dict) or head.get("do") != "imports":
        return None
    names, variables = head.get("names"), head.get("variables", [])
    if not isinstance(names, list) or len(names) > MAX_NAMES or not isinstance(variables, list):
        return Report()
    read = frozenset(name for name in variables if isinstance(name, str) and name in IMPORTED)
    return Report(tuple(dict.fromkeys(filter(is_module_name, names))), read)


class ImportReports:
    """The imports that one kernel has reported: each module counts once for it, however often it is
    restarted. Any thread.

    Of a kernel MAX_NAMES names are looked at, whatever they are. However many reports it sends, one
    worker at a time counts them.
    """

    def __init__(self, plan: KernelPlan) -> None:
        self._plan = plan
        self.kind = find_kind(plan)
        self._lock = threading.Lock()  # no timeout: held for a small file, with bounds
        self._names: set[str] = set()
        self._variables: set[str] = set()
        self._new = Report()
        """The modules and variables that are not counted yet."""
        self._has_worker = False
        self._is_counted = False
        self._is_late = False

    def take(self, report: Report) -> bool:
        """Take what this kernel had not reported; return whether ``count`` must be called. Does not
        wait for a file."""
        with self._lock:
            names = [name for name in report.names if name not in self._names]
            names = names[: MAX_NAMES - len(self._names)]
            variables = report.variables - self._variables
            self._names.update(names)
            self._variables.update(variables)
            self._new = Report((*self._new.names, *names), self._new.variables | variables)
            if self._has_worker or self._new == Report():
                return False
            self._has_worker = True
            return True

    def count(self) -> None:
        """Count what was taken. Raises nothing."""
        while True:
            with self._lock:
                new, self._new = self._new, Report()
                if new == Report():
                    self._has_worker = False
                    return
            try:
                self._count(new.names)
                self._note_late(new.variables)
            except (GvisorKernelError, OSError, private_directories.NotPrivate) as error:
                log.debug("What a kernel imports is not counted: %s", error)

    def _count(self, names: Collection[str]) -> None:
        if not names or not learns(self._plan):
            return
        found = [name for name in names if is_installed(self._plan, name)]
        if found:
            is_first, self._is_counted = not self._is_counted, True
            change(self.kind, lambda c: add_report(c, found, is_first=is_first))

    def _note_late(self, variables: Collection[str]) -> None:
        """Note that a cell has named a variable that the kernelspec has not set."""
        late = sorted(set(variables) - set(self._plan.environment))
        if not late or self._is_late or not learns(self._plan):
            return
        self._is_late = True
        was_late = read(self.kind).is_late
        change(self.kind, add_late)
        if not was_late and read(self.kind).is_late:
            log.info(
                "Cells of several kernels have set variables such as %s, which modules read when"
                " they are imported: so snapshots of this kernel import none ahead. Set it in the"
                " kernelspec's env to have them again.",
                late[0],
            )


def is_installed(plan: KernelPlan, name: str) -> bool:
    """Return whether ``name`` is that of a module of the environment, as far as this machine shows:
    by the names of files only."""
    is_here = get_runtime(plan.spec.runtime).shows_host_python
    if plan.spec.image != HOST_IMAGE or not is_here or plan.spec.packages:
        return True  # the process that makes the snapshot finds out
    interpreter = ask_interpreter(plan.request.python)
    folders = [Path(d) for d in interpreter.site_directories if Path(d).name in PACKAGE_FOLDERS]
    if interpreter.user_site is not None:
        folders.append(Path(interpreter.user_site))
    *above, last = name.split(".")
    return any(
        (folder / last).is_dir()
        or (folder / f"{last}.py").is_file()
        or any(folder.glob(f"{last}.*.so"))
        or (folder / f"{last}.so").is_file()
        for folder in (folder.joinpath(*above) for folder in folders)
    )


# -- the files of counts ---------------------------------------------------------------------------


def read(kind: str) -> Counts:
    """Return the counts of a kind of kernel; none if they cannot be read."""
    return _read(own_cache() / "imports", kind)


def change(kind: str, work: Callable[[Counts], Counts]) -> None:
    """Replace the counts of a kind by what ``work`` returns for them, or for none if they cannot be
    read.

    :raises OSError, NotPrivate: when they cannot be written
    """
    cache = own_cache()
    root = cache / "imports"
    private_directories.make_directories(cache, root)
    with private_directories.locked_directory(root):
        content = json.dumps(asdict(work(_read(root, kind))))
        new = root / f"{private_directories.NEW}{kind}"
        # by path: below a private store of this user
        new.unlink(missing_ok=True)  # of a process that was killed
        private_directories.write_file(new, content)
        new.rename(root / f"{kind}.json")
        files = sorted(root.glob("*.json"), key=lambda path: path.lstat().st_mtime, reverse=True)
        for path in files[MAX_KINDS:]:
            path.unlink()


def _read(root: Path, kind: str) -> Counts:
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        data = private_directories.read_file(root / f"{kind}.json", MAX_FILE)
        return read_counts(parse_json(data, MAX_FILE))
    return Counts()
