"""``/container_info.json``: facts about the sandbox for its kernel. No path or name of the host."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.spec.etc import UID, USER
from gvisor_kernel.spec.identity import Identity
from gvisor_kernel.spec.layout import LAYOUT, WORKSPACE, Bind, Mount


def format_info(
    identity: Identity,
    spec: SandboxSpec,
    *,
    kernel_name: str,
    created: float,
    versions: Mapping[str, str],
    mounts: Iterable[Mount],
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
        "workdir": WORKSPACE,
        "layout": layout,
        "mounts": extra,
    }
    return json.dumps(content, indent=2) + "\n"
