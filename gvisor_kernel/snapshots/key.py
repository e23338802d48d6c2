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
        *("HOME", "PATH", "IS_SANDBOX", "TZ", "LANG", "LANGUAGE", "TMPDIR", "SHELL", "TERM"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "SOURCE_DATE_EPOCH"),
    }
)
EARLY_PREFIXES = (
    *("PYTHON", "IPYTHON", "JUPYTER", "LD_", "LC_", "XDG_", "MALLOC_", "GLIBC_", "GOMP_", "KMP_"),
    *("OMP_", "MKL_", "OPENBLAS_", "BLIS_", "GOTO_", "NUMEXPR_", "NUMBA_", "VECLIB_", "MPL"),
    *("CUDA_", "NVIDIA_", "TF_", "TORCH_", "PYTORCH_", "JAX_", "XLA_", "ARROW_", "POLARS_"),
)
"""Variables that interpreters and libraries read once, as they start or are imported."""


@dataclass(frozen=True)
class ImageKey:
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


def make_key(sandbox: Mapping[str, Any], kernel: KernelFacts, host: HostFacts) -> ImageKey:
    """The key for a ``kernel`` in a ``sandbox`` as ``Runtime.describe`` tells it."""
    facts = dict(sandbox)
    facts["config"] = normalize_config(sandbox["config"])
    facts["guest"] = list(host.guest)
    facts["cpu"] = list(host.cpu)
    facts["kernel"] = [list(kernel.argv), kernel.workdir, kernel.kernel_mode]
    facts["preload"] = list(kernel.preload)
    facts["environment"] = dict(kernel.environment)
    return ImageKey({name: digest(value) for name, value in facts.items()})


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
    environment: Mapping[str, str], later: Collection[str], *, sets_later: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """What is in the image of a kernel, and what it gets when it is restored.

    ``later``: names whose values the image had better not hold, those that a setting passes on
    from the server. They come later unless something reads them early, or nothing in the kernel
    can set them then (``sets_later``).
    """
    names = {
        name
        for name in later
        if sets_later
        and name in environment
        and name not in EARLY
        and not name.startswith(EARLY_PREFIXES)
    }
    early = {name: value for name, value in environment.items() if name not in names}
    return early, {name: environment[name] for name in names}


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its names."""
    content = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("ascii")).hexdigest()
