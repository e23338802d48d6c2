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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from ulid import ULID

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.spec.etc import UID, USER
from gvisor_kernel.spec.layout import LAYOUT, WORKSPACE, Bind, Mount

NAME_LIMIT = 40  # keeps the identity, and paths that hold it, far below 255 bytes


@dataclass(frozen=True)
class Identity:
    """The identity of a sandbox, on the host and inside."""

    ulid: str
    name: str
    hash: str

    def __str__(self) -> str:
        return f"container_{self.ulid}--{self.name}--{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Identity:
        """Return the identity whose text is ``text``.

        :raises ValueError: when it is none
        """
        prefix, _, rest = text.partition("_")
        name, _, digits = rest.rpartition("--")
        ulid, separator, name = name.partition("--")
        if prefix != "container" or not separator:
            raise ValueError(f"{text!r} is no identity")
        return cls(ulid, name, digits)

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


def format_info(
    identity: Identity,
    spec: SandboxSpec,
    *,
    kernel_name: str,
    created: float,
    versions: Mapping[str, str],
    mounts: Iterable[Mount],
    workdir: str = WORKSPACE,
) -> str:
    """Return the content of the file. ``created``: Unix time; ``versions``: by program."""
    by_target = {mount.target: mount for mount in mounts}
    layout = []
    for target in LAYOUT:
        mount = by_target.get(target)
        if mount is not None:
            read_only = isinstance(mount, Bind) and mount.read_only
            kept = isinstance(mount, Bind) and not mount.read_only
            layout.append({"target": target, "access": "ro" if read_only else "rw", "kept": kept})
    extra = [
        {"target": mount.target, "access": "ro" if mount.read_only else "rw"}
        for mount in spec.mounts
    ]
    content = {
        "identity": str(identity),
        "kernel": kernel_name,
        "image": spec.image,
        "runtime": spec.runtime,
        "created": datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds"),
        "versions": dict(versions),
        "limits": {
            "memory_bytes": spec.memory_limit,
            "cpu_shares": spec.cpu_shares,
            "pids": spec.pids_limit,
            "disk_bytes": spec.disk_limit,
        },
        "network": "none",
        "user": {"name": USER, "uid": UID, "gid": UID},
        "workdir": workdir,
        "layout": layout,
        "mounts": extra,
    }
    return json.dumps(content, indent=2) + "\n"
