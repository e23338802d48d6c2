"""Paths inside a sandbox, and the order in which they are mounted.

The six mounts of the file layout come first and in a fixed order, so that the runtime's file
descriptors for them are the same in every sandbox. The other mounts follow, parents before
children.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import MIB

CONTAINER_INFO = "/container_info.json"
SKILLS_PUBLIC = "/mnt/skills/public"
SKILLS_EXAMPLES = "/mnt/skills/examples"
OUTPUTS = "/mnt/user-data/outputs"
UPLOADS = "/mnt/user-data/uploads"
TRANSCRIPTS = "/mnt/transcripts"
LAYOUT = (CONTAINER_INFO, SKILLS_PUBLIC, SKILLS_EXAMPLES, OUTPUTS, UPLOADS, TRANSCRIPTS)
"""The mounts of the file layout, in the order of their file descriptors."""

WORKSPACE = "/workspace"
HOME = "/home/user"
RUN = "/run/gvisor-kernel"
WORKSPACE_UPPER = "/run/gvisor-kernel/workspace"
GUEST = "/opt/gvisor-kernel"
ENVIRONMENT = "/opt/gvisor-kernel/python-packages"
"""The packages of the setting ``packages``. No module can have this name."""

SYSTEM_DIRECTORIES = (
    *("/dev", "/proc", "/sys", "/etc", "/tmp"),  # noqa: S108 - inside the sandbox
    *("/run", "/mnt", "/home", "/root", "/opt", "/var/tmp"),  # noqa: S108
)
"""Directories that exist in every sandbox, whether something is mounted on them or not."""

SCRATCH = ("/tmp", "/var/tmp", "/dev/shm", HOME, "/run")  # noqa: S108 - inside the sandbox
"""Directories that are empty at the start of a sandbox: those of the host are not visible, except
for mounts below them."""

RUN_SIZE = 64 * MIB
RUN_KERNEL_SIZE = 16 * MIB


@dataclass(frozen=True)
class Bind:
    """A path of the host that is mounted at ``target``.

    ``foreign``: its files belong to a person and appear as the kernel's own inside. Otherwise
    owners without a uid in the sandbox appear as nobody.
    """

    source: str
    target: str
    read_only: bool = True
    foreign: bool = False

    def describe(self) -> str:
        """Describe the mount in one line, for the log."""
        return f"{self.source} -> {self.target} ({'ro' if self.read_only else 'rw'})"


@dataclass(frozen=True)
class Tmpfs:
    """An empty directory in the sandbox's memory. ``size``: its limit in bytes."""

    target: str
    size: int
    mode: int = 0o755

    def describe(self) -> str:
        """Describe the mount in one line, for the log."""
        return f"tmpfs -> {self.target} ({self.size} bytes)"


Mount = Bind | Tmpfs


def order_mounts(mounts: Iterable[Mount]) -> tuple[Mount, ...]:
    """Return the mounts of LAYOUT in its order, then the others, parents before children.

    If two mounts have the same target, the later one is used.
    """
    by_target = {mount.target: mount for mount in mounts}
    first = [by_target.pop(target) for target in LAYOUT if target in by_target]
    rest = sorted(by_target.values(), key=lambda mount: PurePosixPath(mount.target).parts)
    return (*first, *rest)


def scratch_mounts(spec: SandboxSpec) -> tuple[Tmpfs, ...]:
    """Return the directories that a kernel may fill, each with a size limit."""
    shared_memory = min(spec.disk_limit, spec.memory_limit // 2)
    return (
        Tmpfs("/tmp", spec.disk_limit, 0o1777),  # noqa: S108 - inside the sandbox
        Tmpfs("/var/tmp", spec.disk_limit, 0o1777),  # noqa: S108 - inside the sandbox
        Tmpfs("/dev/shm", shared_memory, 0o1777),  # noqa: S108 - inside the sandbox
        Tmpfs(HOME, spec.disk_limit),
        Tmpfs("/run", RUN_SIZE),
        Tmpfs(RUN, RUN_KERNEL_SIZE),
        Tmpfs(WORKSPACE_UPPER, spec.disk_limit, 0o700),
    )


def extra_binds(spec: SandboxSpec) -> tuple[Bind, ...]:
    """Return the binds of the setting ``mounts``. The validators have checked their targets."""
    return tuple(
        Bind(mount.source, mount.target, mount.read_only, foreign=True) for mount in spec.mounts
    )
