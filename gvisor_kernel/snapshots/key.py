"""The key of an image: what it was made of, reduced to a name. Pure: facts in, digests out.

Two starts have one key where a kernel that was imaged in the one may go on in the other. So all
that shapes a sandbox or its kernel is in it, but for what a restore replaces: the sources of a
session's own mounts, the memory limit, and variables that the guest sets afterwards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gvisor_kernel.spec.layout import LAYOUT

KEY_DIGITS = 32

EARLY = frozenset(
    {
        # The interpreter: what `python --help-env` and the documentation of CPython list.
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
        # The loader and the C library below it.
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT", "LD_BIND_NOW", "LD_DEBUG", "GCONV_PATH"),
        *("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_ARENA_TEST", "MALLOC_MMAP_MAX_"),
        *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_", "LOCPATH"),
        *("LANG", "LC_ALL", "LC_ADDRESS", "LC_COLLATE", "LC_CTYPE", "LC_IDENTIFICATION"),
        *("LC_MEASUREMENT", "LC_MESSAGES", "LC_MONETARY", "LC_NAME", "LC_NUMERIC", "LC_PAPER"),
        *("LC_TELEPHONE", "LC_TIME"),
        # ipykernel, which looks for its configuration as it starts.
        *("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_CONFIG_PATH", "JUPYTER_NO_CONFIG"),
    }
)
"""Variables that a kernel's interpreter reads once, as it starts. A closed list of exact names: a
value that a setting passes on is in an image only under one of these. Nothing that is meant to hold
a secret is called so, while any prefix (JUPYTER, NVIDIA_, TF_) has tokens among its names."""

IMPORTED = frozenset(
    {
        *("OMP_NUM_THREADS", "OMP_DYNAMIC", "OMP_PLACES", "OMP_PROC_BIND", "OMP_SCHEDULE"),
        *("OMP_STACKSIZE", "OMP_THREAD_LIMIT", "OMP_WAIT_POLICY", "OMP_MAX_ACTIVE_LEVELS"),
        *("GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME"),
        *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "MKL_NUM_THREADS", "MKL_DYNAMIC"),
        *("MKL_THREADING_LAYER", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE"),
        *("GOTO_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS"),
        *("NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "NUMBA_NUM_THREADS", "NUMBA_CACHE_DIR"),
        *("NUMBA_DISABLE_JIT", "POLARS_MAX_THREADS", "ARROW_DEFAULT_MEMORY_POOL"),
        *("ARROW_IO_THREADS", "MPLBACKEND", "MPLCONFIGDIR", "MATPLOTLIBRC", "QT_API"),
        *("CUDA_VISIBLE_DEVICES", "TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"),
        *("TF_NUM_INTEROP_THREADS", "TF_NUM_INTRAOP_THREADS", "TORCH_HOME", "PYTORCH_JIT"),
        *("JAX_PLATFORMS", "JAX_ENABLE_X64", "XLA_FLAGS", "HF_HOME", "TOKENIZERS_PARALLELISM"),
    }
)
"""Variables that libraries read once, as they are imported: too late for a kernel that has them
imported already. None of them is in an image; such a kernel starts without one."""


@dataclass(frozen=True)
class SnapshotKey:
    """``parts``: a digest for each kind of fact, so that it can be told which one has changed."""

    parts: Mapping[str, str]

    @property
    def name(self) -> str:
        """Hexadecimal digits: the image's name in the store."""
        return digest(dict(self.parts))[:KEY_DIGITS]

    def differences(self, other: Mapping[str, str]) -> list[str]:
        """The kinds of facts that ``other`` has otherwise, or lacks, or has besides."""
        names = sorted({*self.parts, *other})
        return [name for name in names if self.parts.get(name) != other.get(name)]


@dataclass(frozen=True)
class KernelFacts:
    """What is started in a sandbox. ``argv`` as the guest gets it; ``environment``: what is in
    the image of it; ``kernel_mode``, ``preload`` as the settings have them.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    workdir: str
    kernel_mode: str
    preload: Sequence[str]


@dataclass(frozen=True)
class HostFacts:
    """What an image depends on besides its sandbox: see ``facts.find_host_facts``."""

    guest: Sequence[Any]
    """This package's version, and each file of the code that runs inside."""
    cpu: Sequence[str]
    """What the processors can do, and how many there are for a sandbox."""


def make_key(sandbox: Mapping[str, Any], kernel: KernelFacts, host: HostFacts) -> SnapshotKey:
    """The key for a ``kernel`` in a ``sandbox`` as ``Runtime.describe`` tells it."""
    facts = dict(sandbox)
    facts["config"] = normalize_config(sandbox["config"])
    facts["guest"] = list(host.guest)
    facts["cpu"] = list(host.cpu)
    facts["kernel"] = [list(kernel.argv), kernel.workdir, kernel.kernel_mode]
    facts["preload"] = list(kernel.preload)
    facts["environment"] = dict(kernel.environment)
    return SnapshotKey({name: digest(value) for name, value in facts.items()})


def normalize_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` without what the bundle of a restore decides.

    Of the mounts of the layout the source: another session has another one. The memory limit. The
    place of the root file system, which is written anew for each sandbox.
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
    """What is in the image of a kernel, and what it is told when it is restored.

    ``passed``: names whose values a setting passes on from the server. They come later unless
    they are on the list of what an interpreter reads as it starts.
    """
    names = {name for name in passed if name in environment and name not in EARLY}
    early = {name: value for name, value in environment.items() if name not in names}
    return early, {name: environment[name] for name in names}


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its names."""
    content = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("ascii")).hexdigest()
