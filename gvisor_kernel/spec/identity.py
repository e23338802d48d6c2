"""The identity of a sandbox: ``container_<ULID>--<name>--<hash>``.

The ULID orders sandboxes by creation and, in lower case, is the runtime's id of the container.
The name is the kernelspec's, reduced to what is safe in a file name. The hash says which
configuration the sandbox has: two sandboxes with the same hash were asked for alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass

from ulid import ULID

from gvisor_kernel.config.settings import SandboxSpec

_IDENTITY = re.compile(r"container_([0-9A-HJKMNP-TV-Z]{26})--([a-z0-9._-]+)--([0-9a-f]{12})")
NAME_LIMIT = 40  # keeps the identity, and paths that hold it, far below 255 bytes


@dataclass(frozen=True)
class Identity:
    """Who a sandbox is, on the host and inside."""

    ulid: str
    name: str
    hash: str

    def __str__(self) -> str:
        return f"container_{self.ulid}--{self.name}--{self.hash}"

    @property
    def container_id(self) -> str:
        """The id that the runtime knows the container by: never used twice."""
        return self.ulid.lower()


def finalize_name(kernel_name: str) -> str:
    """``kernel_name`` in lower case, with everything but letters, digits, ``._-`` replaced."""
    name = re.sub(r"[^a-z0-9._-]+", "-", kernel_name.lower())
    name = re.sub(r"-{2,}", "-", name).strip("-.")
    return name[:NAME_LIMIT].rstrip("-.") or "kernel"


def hash_spec(spec: SandboxSpec, *facts: str) -> str:
    """Twelve hexadecimal digits that are equal exactly where settings and ``facts`` are."""
    content = json.dumps([dataclasses.asdict(spec), *facts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def new_identity(kernel_name: str, spec: SandboxSpec, *facts: str) -> Identity:
    """A fresh identity; the only impure line of this package is its clock and random number."""
    return Identity(str(ULID()), finalize_name(kernel_name), hash_spec(spec, *facts))


def parse_identity(text: str) -> Identity | None:
    """The identity that ``text`` spells, or None."""
    match = _IDENTITY.fullmatch(text)
    return Identity(*match.groups()) if match else None
