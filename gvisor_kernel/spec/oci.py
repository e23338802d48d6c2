"""The OCI runtime specification (``config.json``) of a sandbox, for root and for ordinary users.

PID 1 is uid 0 inside, with only the capabilities that it needs to mount the workspace and to start
the kernel as another user. A sandbox that root starts gets a user namespace of its own, so that
none of its processes is the host's root, with different uids for PID 1 and the kernel. A sandbox of
an ordinary user is already in a user namespace, and has only one uid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.host.processes import SUBUID_BASE, SUBUID_COUNT
from gvisor_kernel.spec.environment import INIT_ENVIRONMENT
from gvisor_kernel.spec.etc import HOSTNAME
from gvisor_kernel.spec.layout import GUEST, LAYOUT, Bind, Mount, Tmpfs, order_mounts
from gvisor_kernel.spec.limits import guest_rlimits

KERNEL_ID = 1
"""The uid and gid of the kernel, and of the files that it may write, in a sandbox that root starts.
``runtimes/runsc/description.py`` says when it is 0 instead; see also ``guest.identity``."""

CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_KILL")

SETFCAP = "CAP_SETFCAP"
"""PID 1 needs it as well if gVisor, like Linux since 5.12, requires it for mapping uid 0 into a new
user namespace: without this check, root of that namespace could give files capabilities that are
valid outside of it."""

_NAMESPACES = ("pid", "network", "ipc", "uts", "mount")


def guest_argv(python: str, ahead: Sequence[str] = (), kernel_id: int = 0) -> tuple[str, ...]:
    """Return the argv of PID 1: the guest, run by the image's own interpreter.

    ``ahead``: modules that PID 1 imports because kernels are forked from it. Then it runs with the
    flags of a kernel, otherwise isolated from its environment (-I). ``kernel_id``: the kernel's
    uid and gid inside the sandbox; PID 1 reads files with them.
    """
    flags = ("-Xfrozen_modules=off",) if ahead else ("-I",)
    become = f"import os; os.setegid({kernel_id}); os.seteuid({kernel_id}); " if kernel_id else ""
    # Without -I, the first entry of sys.path is the working directory, which is replaced.
    return (
        python,
        *flags,
        "-c",
        f"{become}import sys; sys.path{'[:1]' if ahead else '[:0]'} = ['{GUEST}']; "
        f"from gvisor_kernel.guest.begin import begin; begin({', '.join(map(repr, ahead))})",
    )


def describe_mount(mount: Mount) -> dict[str, Any]:
    """Return an entry of ``mounts``."""
    match mount:
        case Bind():
            access = "ro" if mount.read_only else "rw"
            # rprivate: the sandbox must not see later mounts of the host below the source.
            options = ["rbind", access, "nosuid", "nodev", "rprivate"]
            return {
                "destination": mount.target,
                "type": "bind",
                "source": mount.source,
                "options": options,
            }
        case Tmpfs():
            return {
                "destination": mount.target,
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "nodev", f"size={mount.size}", f"mode={mount.mode:04o}"],
            }


def system_mounts() -> list[dict[str, Any]]:
    """Return the mounts of gVisor's own file systems, which need no file of the host."""
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=0755"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
    ]


def make_config(
    spec: SandboxSpec,
    *,
    args: Sequence[str],
    environment: Mapping[str, str] | None = None,
    rootfs: str,
    mounts: Iterable[Mount],
    map_users: bool,
    file_size: int | None,
    capabilities: Sequence[str] = CAPABILITIES,
) -> dict[str, Any]:
    """Return the content of ``config.json``.

    ``mounts``: their sources are paths in the runtime's mount namespace. ``map_users``: whether
    root starts the sandbox. ``file_size``: the runtime's RLIMIT_FSIZE in bytes, if it has one.
    ``args``, ``environment`` and ``capabilities`` are those of PID 1.
    """
    namespaces = [{"type": name} for name in _NAMESPACES]
    linux: dict[str, Any] = {
        "namespaces": namespaces,
        "resources": {"memory": {"limit": spec.memory_limit}},
    }
    if map_users:
        mapping = [{"containerID": 0, "hostID": SUBUID_BASE, "size": SUBUID_COUNT}]
        namespaces.append({"type": "user"})
        linux["uidMappings"] = mapping
        linux["gidMappings"] = mapping
    ordered = order_mounts(mounts)
    layout = [mount for mount in ordered if mount.target in LAYOUT]
    others = [mount for mount in ordered if mount.target not in LAYOUT]
    return {
        "ociVersion": "1.0.0",
        "hostname": HOSTNAME,
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": list(INIT_ENVIRONMENT)
            if environment is None
            else [f"{name}={value}" for name, value in environment.items()],
            "cwd": "/",
            "capabilities": {
                kind: list(capabilities) for kind in ("bounding", "effective", "permitted")
            },
            "noNewPrivileges": True,
            "rlimits": guest_rlimits(spec, file_size),
        },
        "root": {"path": rootfs, "readonly": True},
        "mounts": [
            *map(describe_mount, layout),
            *system_mounts(),
            *map(describe_mount, others),
        ],
        "linux": linux,
    }
