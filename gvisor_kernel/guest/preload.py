"""Imports modules ahead of a snapshot: those that restored kernels can have as if imported later.

Each module is tried in another process first, which then ends: a module cannot be imported back. It
is left out if it takes too much, or if its import does something that must happen in each kernel:
starts a thread of Python or a process, reads the time, makes a random generator of its own, changes
settings of the process. Threads of C libraries, such as OpenBLAS's, are
restored with the kernel.

A snapshot has nobody's data, so nothing here is hostile but by accident; all is bounded anyway.
"""

from __future__ import annotations

import _thread
import contextlib
import datetime
import gc
import hashlib
import importlib
import json
import locale
import os
import pickle
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

from gvisor_kernel.guest import module_files
from gvisor_kernel.guest.installed import find_directories, is_installed, is_loaded
from gvisor_kernel.guest.interpreter import read_file
from gvisor_kernel.guest.linux import adopt_orphans

MAX_BYTES = 150 * 1024 * 1024
"""Memory of all modules together."""
MAX_CPU_SECONDS = 10.0
"""CPU time of all imports together."""
MAX_SECONDS = 60.0
"""Seconds that all trials may take, on a busy machine."""
MAX_LINE = 64 * 1024
MAX_LEFT_OUT = 8
"""Modules that are left out for what they do, after which no further one is tried."""
HARMLESS = frozenset({"numpy.f2py.rules.generationtime"})
"""Variables with the time of their import that do no harm: the date in a file that f2py writes.
scipy.stats imports that, and so do many packages."""
UNTRIED = "it was not tried"
LOADED = ("asyncio", "inspect", "logging")
"""Modules that a kernel has imported anyway, and of which another module may replace a part."""
UNIQUE = (1, 4, 6, 7)
"""Versions of a UUID that is made of the time or of random numbers."""
MAX_KILLS = 100
"""Processes that a trial ends after it, one after the other."""
PROGRAM = """
import sys
sys.path.insert(0, {guest!r})
try:
    from gvisor_kernel.guest import preload
finally:
    sys.path.remove({guest!r})
preload.run_trials({ahead!r}, {names!r})
"""


class Trial(NamedTuple):
    """Time and memory that an import took, and its fault (empty: none)."""

    seconds: float
    size: int
    fault: str


class Chosen(NamedTuple):
    """The modules to import, and why the other ones are left out."""

    names: list[str]
    left_out: dict[str, str]


# -- in the kernel's process -----------------------------------------------------------------------


def import_usable(names: Sequence[str], guest: str) -> dict[str, Any]:
    """Import those of ``names`` that may be imported ahead. Returns JSON: which, and why not.

    ``guest``: the folder of this package. Names that are not installed are left out silently.
    """
    try:
        chosen = choose(names, guest)
    except OSError:  # no process can be started
        chosen = Chosen([], dict.fromkeys(names, UNTRIED))
    imported = []
    for name in chosen.names:
        try:
            importlib.import_module(name)
        except BaseException as error:  # a module may end the process
            chosen.left_out[name] = _describe(error)
        else:
            imported.append(name)
    module_files.note_files()
    return {"imported": imported, "left_out": chosen.left_out}


def choose(names: Sequence[str], guest: str, seconds: float = MAX_SECONDS) -> Chosen:
    """Try ``names`` one after the other in processes that end. Blocks for ``seconds`` at most."""
    end = time.monotonic() + seconds
    chosen = Chosen([], {})
    left = [name for name in names if is_installed(name)]
    used_seconds, used_size = 0.0, 0
    while left and len(chosen.left_out) < MAX_LEFT_OUT:
        # A process in which a module was refused has its imports; the next one has not.
        program = PROGRAM.format(guest=guest, ahead=chosen.names, names=left)
        trials = _try_in_process(program, end) or [Trial(0.0, 0, "its trial says nothing")]
        for name, trial in zip(tuple(left), trials):
            fault = trial.fault
            left.remove(name)
            if not fault and used_size + trial.size > MAX_BYTES:
                fault = f"it takes {trial.size >> 20} MiB, {used_size >> 20} are used"
            if not fault and used_seconds + trial.seconds > MAX_CPU_SECONDS:
                fault = f"its import takes {trial.seconds:.1f} s of CPU time"
            if fault:
                chosen.left_out[name] = fault
                break
            used_seconds, used_size = used_seconds + trial.seconds, used_size + trial.size
            chosen.names.append(name)
    chosen.left_out.update((name, UNTRIED) for name in left)
    return chosen


def _try_in_process(program: str, end: float) -> list[Trial]:
    """Run ``program``; return its trials in their order. The last one has failed, if not all are
    there."""
    trials: list[Trial] = []
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    fault = "its import ends the process"
    data = b""
    try:
        while len(data) < MAX_LINE:
            if not select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                fault = "its import does not end"
                break
            more = os.read(process.stdout.fileno(), 4096)
            if not more:
                break
            data += more
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()
    lines = data.decode(errors="replace").splitlines()
    is_over = bool(lines) and lines[-1] == "over"
    for line in lines[:-1] if is_over else lines:
        with contextlib.suppress(ValueError, TypeError):
            seconds, size, text = json.loads(line)
            trials.append(Trial(float(seconds), int(size), str(text)))
    return trials if is_over else [*trials, Trial(0.0, 0, fault)]


def describe_process() -> dict[str, Any]:
    """Return facts of this process by which a restored one is compared with the saved one."""
    modules: dict[str, Any] = sys.modules
    facts: dict[str, Any] = {
        "threads": _thread._count(),
        "children": len(_find_children()),
        "random": _digest(random.getstate()),
    }
    if "numpy.random" in modules:
        facts["numpy.random"] = _digest(pickle.dumps(modules["numpy.random"].get_state()))
    return facts


def _digest(state: object) -> str:
    return hashlib.sha256(repr(state).encode()).hexdigest()


# -- in the process that tries ---------------------------------------------------------------------


def run_trials(ahead: Sequence[str], names: Sequence[str]) -> None:
    """Import ``ahead``, then try ``names`` until one fails; write a line for each to stdout."""
    out = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    write = json.dumps  # a module may replace it
    with contextlib.suppress(OSError):  # a process that a module starts by another one shows, too
        adopt_orphans()
    for name in (*LOADED, *ahead):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    for name in names:
        trial = try_module(name)
        os.write(out, write(trial).encode() + b"\n")
        if trial.fault:
            break
    _end_children()
    os.write(out, b"over\n")
    os._exit(0)


def _end_children() -> None:
    """Kill the processes that imports have started, and those that these leave behind."""
    for _ in range(MAX_KILLS):
        children = _find_children()
        if not children:
            return
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def try_module(name: str) -> Trial:
    """Import ``name`` in this process and return what that took, and its fault."""
    gc.collect()
    known = set(sys.modules)
    generators = _find_generators()
    threads, children = _thread._count(), _find_children()
    settings = read_settings()
    size, cpu, since = _find_size(), time.process_time(), time.time()
    fault = ""
    try:
        importlib.import_module(name)
    except BaseException as error:
        fault = _describe(error)
    seconds, grown = time.process_time() - cpu, max(0, _find_size() - size)
    if not fault and not is_loaded(name):
        fault = "it is no module of the environment"
    if not fault and _thread._count() > threads:
        fault = "its import starts a thread"
    if not fault and _find_children() - children:
        fault = "its import starts a process"
    if not fault and _find_generators() - generators:
        fault = "its import makes a random generator of its own"
    if not fault:
        changed = find_change(settings)
        fault = f"its import changes {changed}" if changed else ""
    if not fault:
        fault = _find_own(set(sys.modules) - known, since, time.time())
    return Trial(seconds, grown, fault)


def _describe(error: BaseException) -> str:
    return f"its import raises {type(error).__name__}"


def _find_size() -> int:
    """Return the bytes of memory that this process has of its own: a snapshot holds no files."""
    lines = read_file("/proc/self/smaps").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(b"Anonymous:")) * 1024


def _find_children() -> set[int]:
    """Return the ids of this process's children."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = read_file(f"/proc/{entry}/stat").rpartition(b")")[2].split()
                if int(words[1]) == os.getpid():
                    found.add(int(entry))
    return found


def _find_generators() -> set[int]:
    """Return the identities of the random generators that a restore does not reseed.

    Those for names of temporary files and semaphores are none of them: a name that is taken is
    tried again, and the names are the sandbox's own.
    """
    modules: dict[str, Any] = sys.modules
    kinds: list[type] = [random.Random]
    objects = gc.get_objects()
    reseeded = {id(getattr(random, "_inst", None))}
    names = getattr(modules.get("tempfile"), "_RandomNameSequence", ())
    reseeded |= {id(getattr(item, "_rng", None)) for item in objects if type(item) is names}
    numpy = modules.get("numpy.random")
    if numpy is not None:
        kinds += [numpy.RandomState, numpy.Generator, numpy.BitGenerator]
        state = getattr(modules.get("numpy.random.mtrand"), "_rand", None)
        reseeded |= {id(state), id(getattr(state, "_bit_generator", None))}
    # By type(): isinstance would ask lazy objects for their class, and so load them.
    return {
        id(item)
        for item in objects
        if issubclass(type(item), tuple(kinds)) and not issubclass(type(item), random.SystemRandom)
    } - reseeded


def _find_own(names: set[str], since: float, now: float) -> str:
    """Return whether a variable of the new modules ``names`` is the time of their import, or an id
    that each process should have for itself."""
    directories = tuple(find_directories())
    for name in sorted(names):
        module = sys.modules.get(name)
        if not str(getattr(module, "__file__", "")).startswith(directories):
            continue
        for variable, value in list(vars(module).items()):
            if f"{name}.{variable}" not in HARMLESS and _is_time(value, since, now):
                return f"{name}.{variable} is the time of its import"
            if type(value) is uuid.UUID and value.version in UNIQUE:
                return f"{name}.{variable} is an id of its process"
    return ""


def _is_time(value: object, since: float, now: float) -> bool:
    moment: float | None = None
    if type(value) is datetime.datetime:
        with contextlib.suppress(ValueError, OverflowError, OSError):
            moment = value.timestamp()
            if value.tzinfo is None:  # it may be of UTC
                utc = value.replace(tzinfo=datetime.timezone.utc).timestamp()  # noqa: UP017 - 3.9
                moment = utc if abs(utc - now) < abs(moment - now) else moment
    elif type(value) is datetime.date:
        return value in (datetime.date.fromtimestamp(since), datetime.date.fromtimestamp(now))
    elif isinstance(value, (int, float)) and 0 < value < 1e20:
        moment = float(value)
        for unit in (1e9, 1e6, 1e3):
            if moment > since * unit / 2:
                moment /= unit
    return moment is not None and since - 1 <= moment <= now + 1


# -- settings of the process that an import must leave as they were --------------------------------
# A module that is imported ahead is in kernels that never import it. What it has set for the whole
# process would hold there, too: another working folder, a handler of a signal, a filter for all
# warnings, another function in a module of Python. What it adds for itself is none of this.

SET_ALWAYS = frozenset({"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"})
"""Variables that scikit-learn sets for its library of threads."""
HOOKS = ("displayhook", "excepthook", "breakpointhook", "unraisablehook")
STREAMS = ("stdin", "stdout", "stderr")
RESOURCES = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))


class Settings(NamedTuple):
    """Settings of a process by their names: ``values`` are compared by what they are, ``objects``
    by their identity."""

    values: dict[str, Any]
    variables: dict[str, str]
    objects: dict[str, Any]


def read_settings() -> Settings:
    """Return the settings of this process as they are now."""
    umask = os.umask(0)
    os.umask(umask)
    values: dict[str, Any] = {
        "the working folder": os.getcwd(),
        "the umask": umask,
        "the garbage collector": (gc.isenabled(), gc.get_threshold()),
        "the recursion limit": sys.getrecursionlimit(),
        "sys.path": list(sys.path),
        "the handlers of signals": [signal.getsignal(n) for n in sorted(signal.valid_signals())],
        "the locale": locale.setlocale(locale.LC_ALL),
        "the timeout of sockets": socket.getdefaulttimeout(),
        "the limits of resources": [resource.getrlimit(getattr(resource, n)) for n in RESOURCES],
        "the filters for all warnings": list(filter(_is_wide, warnings.filters)),
        "the open files": _count_files(),
    }
    values.update(_read_options())
    objects: dict[str, Any] = {f"sys.{name}": getattr(sys, name) for name in (*HOOKS, *STREAMS)}
    for name, module in list(sys.modules.items()):
        objects[name] = module
        for word, value in list(getattr(module, "__dict__", {}).items()):
            if callable(value):
                objects[f"{name}.{word}"] = value
    return Settings(values, {n: v for n, v in os.environ.items() if n not in SET_ALWAYS}, objects)


def find_change(before: Settings) -> str:
    """Return the name of a setting that is not as ``before`` any more; empty if all are.

    Variables of the environment must not be added either: libraries that are imported later would
    read them.
    """
    now = read_settings()
    for name in sorted({*before.variables, *now.variables}):
        if before.variables.get(name) != now.variables.get(name):
            return f"the variable {name}"
    for name, value in before.values.items():
        if now.values.get(name) != value:
            return name
    for name, value in before.objects.items():
        if now.objects.get(name) is not value:
            return name
    return ""


def _is_wide(entry: Any) -> bool:
    """Return whether a filter of warnings is for all modules and texts, and for a category that is
    not a package's own."""
    _, text, category, module, _ = entry
    return text is None and module is None and category.__module__ == "builtins"


def _count_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _read_options() -> dict[str, Any]:
    """Return the options of packages that are imported and that have some for the process."""
    modules: dict[str, Any] = dict(sys.modules)
    readers: dict[str, Callable[[Any], object]] = {
        "numpy": lambda m: (m.geterr(), m.get_printoptions()),
        "pandas._config.config": lambda m: m._global_config,
        # Without dict's own method, matplotlib would choose a backend now.
        "matplotlib": lambda m: dict(dict.items(m.rcParams)),
    }
    found = {}
    for name, read in readers.items():
        with contextlib.suppress(Exception):  # another version of the package has it elsewhere
            if name in modules:
                found[f"the options of {name.partition('.')[0]}"] = repr(read(modules[name]))
    return found
