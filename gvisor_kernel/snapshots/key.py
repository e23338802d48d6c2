"""Computes the key of a snapshot from the facts that it depends on, and finds those of this host.

Two starts have the same key if a snapshot of the one can be restored for the other. So the key
contains all that shapes a sandbox or its kernel, except what a restore replaces: the sources of a
session's own mounts, the memory limit, and variables that the guest sets afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gvisor_kernel
from gvisor_kernel.config.settings import DEFAULT_RUNTIME
from gvisor_kernel.host.processor import read_processor
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import SnapshotRuntime
from gvisor_kernel.spec.layout import LAYOUT

KEY_DIGITS = 32

EARLY = frozenset(
    {
        # Read by the interpreter: listed by `python --help-env` and CPython's documentation.
        *("PYTHONHOME", "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONPLATLIBDIR", "PYTHONSTARTUP"),
        *("PYTHONOPTIMIZE", "PYTHONDEBUG", "PYTHONINSPECT", "PYTHONUNBUFFERED", "PYTHONVERBOSE"),
        *("PYTHONCASEOK", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONHASHSEED"),
        *("PYTHONINTMAXSTRDIGITS", "PYTHONIOENCODING", "PYTHONNOUSERSITE", "PYTHONUSERBASE"),
        *("PYTHONEXECUTABLE", "PYTHONWARNINGS", "PYTHONFAULTHANDLER", "PYTHONTRACEMALLOC"),
        *("PYTHONPROFILEIMPORTTIME", "PYTHONASYNCIODEBUG", "PYTHONMALLOC", "PYTHONMALLOCSTATS"),
        *("PYTHONCOERCECLOCALE", "PYTHONDEVMODE", "PYTHONUTF8", "PYTHONWARNDEFAULTENCODING"),
        *("PYTHONNODEBUGRANGES", "PYTHONPERFSUPPORT", "PYTHON_PERF_JIT_SUPPORT"),
        *("PYTHON_CPU_COUNT", "PYTHON_DISABLE_REMOTE_DEBUG", "PYTHON_FROZEN_MODULES"),
        *("PYTHON_GIL", "PYTHON_JIT", "PYTHON_TLBC", "PYTHON_THREAD_INHERIT_CONTEXT"),
        *("PYTHON_CONTEXT_AWARE_WARNINGS", "PYTHON_COLORS", "PYTHON_BASIC_REPL"),
        # Read by the dynamic loader and the C library.
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT", "LD_BIND_NOW", "LD_DEBUG", "GCONV_PATH"),
        *("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_ARENA_TEST", "MALLOC_MMAP_MAX_"),
        *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_", "LOCPATH"),
        *("LANG", "LC_ALL", "LC_ADDRESS", "LC_COLLATE", "LC_CTYPE", "LC_IDENTIFICATION"),
        *("LC_MEASUREMENT", "LC_MESSAGES", "LC_MONETARY", "LC_NAME", "LC_NUMERIC", "LC_PAPER"),
        *("LC_TELEPHONE", "LC_TIME"),
        # Read by ipykernel, which looks for its configuration at its start.
        *("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_CONFIG_PATH", "JUPYTER_NO_CONFIG"),
        # Read by this package when a kernel starts.
        "GVISOR_KERNEL_PLAIN",
    }
)
"""Variables that a kernel's interpreter reads once, at its start. A value that a setting passes on
is in a snapshot only under one of these exact names. No secret has such a name. A prefix instead
(JUPYTER, NVIDIA_, TF_) would match names of tokens."""

IMPORTED = frozenset(
    {
        *("OMP_NUM_THREADS", "OMP_DYNAMIC", "OMP_PLACES", "OMP_PROC_BIND", "OMP_SCHEDULE"),
        *("OMP_STACKSIZE", "OMP_THREAD_LIMIT", "OMP_WAIT_POLICY", "OMP_MAX_ACTIVE_LEVELS"),
        *("GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME"),
        *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "MKL_NUM_THREADS", "MKL_DYNAMIC"),
        *("MKL_THREADING_LAYER", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE"),
        *("OPENBLAS_THREAD_TIMEOUT", "GOTO_NUM_THREADS"),
        *("BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS"),
        *("NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "NUMBA_NUM_THREADS", "NUMBA_CACHE_DIR"),
        *("NUMBA_DISABLE_JIT", "POLARS_MAX_THREADS", "ARROW_DEFAULT_MEMORY_POOL"),
        *("ARROW_IO_THREADS", "MPLBACKEND", "MPLCONFIGDIR", "MATPLOTLIBRC", "QT_API"),
        *("CUDA_VISIBLE_DEVICES", "TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"),
        *("TF_NUM_INTEROP_THREADS", "TF_NUM_INTRAOP_THREADS", "TORCH_HOME", "PYTORCH_JIT"),
        *("JAX_PLATFORMS", "JAX_ENABLE_X64", "XLA_FLAGS", "HF_HOME", "TOKENIZERS_PARALLELISM"),
    }
)
"""Variables that libraries read once, at their import. A restored kernel would receive them too
late. No snapshot contains them; a kernel with ``preload`` that is passed one starts without."""


PARTS = {
    "config": "settings or mounts of its sandbox",
    "cpu": "CPU features or number of CPUs",
    "environment": "variables",
    "etc": "files of /etc",
    "flags": "options of runsc",
    "guest": "version or files of gvisor-kernel",
    "kernel": "command",
    "runtime": "runsc",  # no runtime: a word for people
    "user": "user",
    "world": "Python",
}
"""Names of the parts for people, in a sentence that begins with "the nearest has other". A part
that is not here is named so that it can stand there itself, as "setting preload"."""


@dataclass(frozen=True)
class SnapshotKey:
    """A digest for each kind of fact (``parts``), so that an error can name what has changed."""

    parts: Mapping[str, str]

    @property
    def name(self) -> str:
        """The snapshot's name in the store: hexadecimal digits."""
        return digest(dict(self.parts))[:KEY_DIGITS]


@dataclass(frozen=True)
class KernelFacts:
    """The kernel in a snapshot. ``argv`` is as the guest gets it, ``environment`` is without the
    variables that are set after a restore, ``settings`` has those that are in the key. With
    ``preload`` at PRELOAD_LEARNED a snapshot of another list is used until the next one is made.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    workdir: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class HostFacts:
    """The facts of the host that a snapshot depends on; see ``find_host_facts``."""

    guest: Sequence[Any]
    """This package's version, and each file of the code that runs in the sandbox."""
    cpu: Sequence[str]
    """The CPU features, and the number of CPUs for a sandbox."""


def make_key(sandbox: Mapping[str, Any], kernel: KernelFacts, host: HostFacts) -> SnapshotKey:
    """Return the key for ``kernel`` in a sandbox that ``Runtime.describe`` has described."""
    facts = dict(sandbox)
    facts["config"] = normalize_config(sandbox["config"])
    facts["guest"] = list(host.guest)
    facts["cpu"] = list(host.cpu)
    facts["kernel"] = [list(kernel.argv), kernel.workdir]
    facts.update({f"setting {name}": value for name, value in kernel.settings.items()})
    facts["environment"] = dict(kernel.environment)
    return SnapshotKey({name: digest(value) for name, value in facts.items()})


def normalize_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config.json`` without what each restore replaces.

    That is the memory limit, the path of the root file system, and the sources of the layout's
    mounts, which differ between sessions.
    """
    normal = dict(config)
    normal["linux"] = {key: value for key, value in config["linux"].items() if key != "resources"}
    normal["root"] = {key: value for key, value in config["root"].items() if key != "path"}
    normal["mounts"] = [
        {key: value for key, value in mount.items() if key != "source"}
        if mount["destination"] in LAYOUT
        else mount
        for mount in config["mounts"]
    ]
    return normal


def split_environment(
    environment: Mapping[str, str], passed: Collection[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Split variables into those of the snapshot and those that a kernel receives after a restore.

    ``passed`` names the variables that a setting passes on from the server. They come after the
    restore unless they are in EARLY.
    """
    names = {name for name in passed if name in environment and name not in EARLY}
    early = {name: value for name, value in environment.items() if name not in names}
    return early, {name: environment[name] for name in names}


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    content = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("ascii")).hexdigest()


# -- the facts of this host ------------------------------------------------------------------------

PACKAGE = Path(gvisor_kernel.__file__).parent
GUEST_FOLDERS = ("link", "guest", "guest/modules")
"""Folders with the guest's code. Only files directly in them are listed: if one gets a subpackage,
a change there would not change the key, and kernels would be restored with the old code."""


def find_host_facts(package: Path = PACKAGE) -> HostFacts:
    """Return the current facts. Takes about a millisecond."""
    files = sorted(_find_files(package))
    return HostFacts(guest=[gvisor_kernel.__version__, *files], cpu=_find_processor())


def find_stale_parts(parts: Mapping[str, str], runsc: str = "") -> list[str]:
    """Return the parts of a snapshot's key that differ from this host now, whatever the kernel.
    ``runsc``: that setting of the kernel that it was made of."""
    host, runtime = find_host_facts(), get_runtime(DEFAULT_RUNTIME)
    own = runtime.describe_host(runsc) if isinstance(runtime, SnapshotRuntime) else {}
    facts = {**own, "guest": list(host.guest), "cpu": list(host.cpu)}
    return sorted(name for name, value in facts.items() if parts.get(name) != digest(value))


def _find_files(package: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and modification time of each file of the guest's code."""
    for folder in GUEST_FOLDERS:
        with os.scandir(package / folder) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    status = entry.stat()
                    yield f"{folder}/{entry.name}", status.st_size, status.st_mtime_ns
    status = (package / "__init__.py").stat()
    yield "__init__.py", status.st_size, status.st_mtime_ns


def _find_processor() -> list[str]:
    # Libraries start as many threads as there are CPUs when they are imported.
    return [*read_processor(), str(len(os.sched_getaffinity(0)))]
