"""The identity of a sandbox: ``container_<ULID>--<name>--<hash>``.

ULIDs sort by creation time. In lower case the ULID is the container id, which the runtime uses and
``gvisor-kernel list`` shows. The name is that of the kernelspec, reduced to characters that are
safe in a file name. The hash identifies the configuration: sandboxes with the same settings and
facts have the same hash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass

from ulid import ULID

from gvisor_kernel.config.settings import SandboxSpec

NAME_LIMIT = 40  # keeps the identity, and paths that hold it, far below 255 bytes


@dataclass(frozen=True)
class Identity:
    """The identity of a sandbox, on the host and inside."""

    ulid: str
    name: str
    hash: str

    def __str__(self) -> str:
        return f"container_{self.ulid}--{self.name}--{self.hash}"

    @property
    def container_id(self) -> str:
        """The container id for the runtime. It is never reused."""
        return self.ulid.lower()


def make_name_safe(kernel_name: str) -> str:
    """Convert to lower case, and replace everything but letters, digits and ``._-``."""
    name = re.sub(r"[^a-z0-9._-]+", "-", kernel_name.lower())
    name = re.sub(r"-{2,}", "-", name).strip("-.")
    return name[:NAME_LIMIT].rstrip("-.") or "kernel"


def hash_spec(spec: SandboxSpec, *facts: str) -> str:
    """Return twelve hexadecimal digits, which depend on the settings and ``facts`` only."""
    content = json.dumps([dataclasses.asdict(spec), *facts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def new_identity(kernel_name: str, spec: SandboxSpec, *facts: str) -> Identity:
    """Return a new identity. This is the only impure function here: it reads clock and random."""
    return Identity(str(ULID()), make_name_safe(kernel_name), hash_spec(spec, *facts))
