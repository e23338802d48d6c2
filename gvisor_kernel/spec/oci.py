"""The OCI runtime specification (``config.json``) of a sandbox, for root and for users.

PID 1 is uid 0 inside, with just the capabilities that it needs to mount the workspace and to
start the kernel as somebody else. Started by root, the sandbox has a user namespace of its own,
so that no process of it is the host's root, and uids for both; an ordinary user's sandbox is in
one already, and has one uid.
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
"""The uid and gid, inside a sandbox that root starts, of the kernel and of all that it may write,
but where ``runtimes.kernel_id`` says 0; see ``guest.identity``."""

CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_KILL")

SETFCAP = "CAP_SETFCAP"
"""PID 1 needs it besides where gVisor, as Linux since 5.12, asks for it to map uid 0: what is
root of the new namespace could else give files capabilities that count outside of it."""

_NAMESPACES = ("pid", "network", "ipc", "uts", "mount")


def guest_argv(python: str, ahead: Sequence[str] = (), kernel_id: int = 0) -> tuple[str, ...]:
    """PID 1: the guest, by the image's own interpreter.

    Isolated from its environment, unless it is to become kernels itself: then it is the
    interpreter that they would be started with, and imports what is in ``ahead``. ``kernel_id``:
    the uid and gid of a kernel, as the sandbox counts them; PID 1 reads files with them.
    """
    flags = ("-Xfrozen_modules=off",) if ahead else ("-I",)
    become = f"import os; os.setegid({kernel_id}); os.seteuid({kernel_id}); " if kernel_id else ""
    # The first entry of the path would be the working directory.
    return (
        python,
        *flags,
        "-c",
        f"{become}import sys; sys.path{'[:1]' if ahead else '[:0]'} = ['{GUEST}']; "
        f"from gvisor_kernel.guest.main import main; main({', '.join(map(repr, ahead))})",
    )


def describe_mount(mount: Mount) -> dict[str, Any]:
    """One entry of ``mounts``."""
    match mount:
        case Bind():
            access = "ro" if mount.read_only else "rw"
            # Private: what the host mounts below the source later is not for the sandbox.
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
    """The kernel's own file systems, which take no file descriptor of the host."""
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=0755"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
    ]


def finalize_config(
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
    """The content of ``config.json``.

    The sources of ``mounts`` are paths as the runtime reaches them. ``map_users``: root starts
    the sandbox. ``file_size``: the runtime's RLIMIT_FSIZE, if it has one. ``environment`` and
    ``capabilities``: PID 1's.
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
