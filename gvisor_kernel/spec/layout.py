"""The mounts of a sandbox, wherever it runs: the places of the file layout, the scratch, and the
setting ``mounts``, each described once.

A runtime makes its own of it: a bind, a volume's folder, a part of an archive. Mounts of the file
layout come first and in a fixed order, so that runsc's file descriptors for them are the same in
every sandbox. The other mounts follow, parents before children.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import MIB

CONTAINER_INFO = "/container_info.json"
SKILLS_PUBLIC = "/mnt/skills/public"
SKILLS_EXAMPLES = "/mnt/skills/examples"
OUTPUTS = "/mnt/user-data/outputs"
UPLOADS = "/mnt/user-data/uploads"
TRANSCRIPTS = "/mnt/transcripts"
SKILLS = {"public": SKILLS_PUBLIC, "examples": SKILLS_EXAMPLES}
"""Where the folders of a folder of skills are."""


@dataclass(frozen=True)
class Place:
    """A mount of the file layout.

    ``part``: its path among files that are copied to where the sandbox runs. ``description``: for a
    person. Outputs are the only place that a kernel can write, and come back.
    """

    part: str
    description: str = ""
    read_only: bool = True


LAYOUT: Mapping[str, Place] = MappingProxyType(
    {
        CONTAINER_INFO: Place("container_info.json"),
        SKILLS_PUBLIC: Place("skills/public", "skills of this user"),
        SKILLS_EXAMPLES: Place("skills/examples", "examples of skills"),
        OUTPUTS: Place("outputs", "outputs: what the kernel writes here is kept", read_only=False),
        UPLOADS: Place(
            "uploads",
            "the notebook's folder, which the kernel can only read; /workspace is a copy of it that"
            " ends with the sandbox",
        ),
        TRANSCRIPTS: Place("transcripts", "the transcript of this kernel"),
    }
)
"""The mounts of the file layout by their target, in the order of their file descriptors."""

WORKSPACE = "/workspace"
HOME = "/home/user"
RUN = "/run/gvisor-kernel"
WORKSPACE_UPPER = "/run/gvisor-kernel/workspace"
GUEST = "/opt/gvisor-kernel"
GUEST_PART = "guest"
"""The path of the guest's code among files that are copied."""
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


def mount_part(number: int) -> str:
    """Return the path of an entry of the setting ``mounts`` among files that are copied."""
    return f"mounts/{number}"


def list_parts(spec: SandboxSpec) -> dict[str, str]:
    """Return the targets of what is copied to where a sandbox runs and is read-only there, by its
    path among the copied files: the layout, the guest's code, the setting ``mounts``."""
    return {
        **{place.part: target for target, place in LAYOUT.items() if place.read_only},
        GUEST_PART: GUEST,
        **{mount_part(i): mount.target for i, mount in enumerate(spec.mounts)},
    }


def extra_binds(spec: SandboxSpec) -> tuple[Bind, ...]:
    """Return the binds of the setting ``mounts``. The validators have checked their targets."""
    return tuple(
        Bind(mount.source, mount.target, mount.read_only, foreign=True) for mount in spec.mounts
    )
