"""The specification of a sandbox as a container of a Docker engine, for the engine's API; and what
its image declares. Pure.

All files of a sandbox come from two volumes: ``files``, which is filled before the start and is
read-only inside, and ``outputs``, whose content is copied back. The engine may be on another
machine, so no path of this machine is used here. What an image declares is checked, as a stranger
may have written it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.spec import etc
from gvisor_kernel.spec.layout import OUTPUTS, WORKSPACE, Tmpfs, list_parts, scratch_mounts
from gvisor_kernel.spec.limits import guest_rlimits, host_limits
from gvisor_kernel.spec.oci import CAPABILITIES, SETFCAP

RUNTIME = "runsc"
"""The name of gVisor among the engine's runtimes."""
MIN_API = "1.45"
"""Docker 26: the first version that can mount a subdirectory of a volume."""

LABEL = "org.gvisor-kernel."
STORE = "/gvisor-kernel"
"""Where the store container, which is never started, has the volumes, to be filled and read."""
MOUNT_POINT_SIZE = 65536
"""Bytes of a tmpfs that is only a mount point: the root file system is read-only."""


@dataclass(frozen=True)
class Names:
    """The names of a sandbox's containers and volumes in the engine. They are never reused."""

    container_id: str

    @property
    def container(self) -> str:
        """The container of the kernel."""
        return f"gvisor-kernel-{self.container_id}"

    @property
    def store(self) -> str:
        """The container that is never started."""
        return f"{self.container}-store"

    @property
    def files(self) -> str:
        """The volume of the files that are copied in."""
        return f"{self.container}-files"

    @property
    def outputs(self) -> str:
        """The volume of outputs."""
        return f"{self.container}-outputs"


def file_mounts(spec: SandboxSpec, names: Names) -> list[dict[str, Any]]:
    """Return the mounts of all parts of the volume ``files``, read-only."""
    replaced = {f"etc/{name}": f"/etc/{name}" for name in etc.REPLACED}
    return [
        {
            "Type": "volume",
            "Source": names.files,
            "Target": target,
            "ReadOnly": True,
            "VolumeOptions": {"NoCopy": True, "Subpath": part},
        }
        for part, target in {**list_parts(spec), **replaced}.items()
    ]


def make_container_request(
    spec: SandboxSpec,
    names: Names,
    *,
    argv: Sequence[str],
    environment: Mapping[str, str],
    labels: Mapping[str, str],
    keeps_outputs: bool,
    volumes: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the request to create the container. ``argv`` and ``environment`` are PID 1's.

    ``volumes``: the paths that the image declares as volumes. Each gets a tmpfs; otherwise the
    engine would create a volume without a size limit on its disk.
    """
    limits = host_limits(spec)
    # CAP_SETFCAP is added even if the engine's gVisor does not need it: finding that out would take
    # another container. The sandbox's process is root of the engine's machine anyway, as Docker
    # starts gVisor, and could make set-uid files without this capability.
    # PID 1 mounts /workspace over this mount point.
    scratch = [*scratch_mounts(spec), Tmpfs(WORKSPACE, MOUNT_POINT_SIZE)]
    mounts = file_mounts(spec, names)
    if keeps_outputs:
        mounts.append(_volume(names.outputs, OUTPUTS))
    else:
        scratch.append(Tmpfs(OUTPUTS, spec.disk_limit))
    targets = {mount["Target"] for mount in mounts}
    wanted = [Tmpfs(path, spec.disk_limit) for path in volumes if path not in targets]
    tmpfs = {mount.target: mount for mount in (*wanted, *scratch)}
    return {
        "Image": spec.image,
        "Entrypoint": list(argv),
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "User": "0:0",
        "WorkingDir": "/",
        "Hostname": etc.HOSTNAME,
        "NetworkDisabled": True,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": dict(labels),
        "HostConfig": {
            "Runtime": RUNTIME,
            "NetworkMode": "none",
            "IpcMode": "none",
            "Init": False,
            "Privileged": False,
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "CapAdd": [name.removeprefix("CAP_") for name in (*CAPABILITIES, SETFCAP)],
            "SecurityOpt": ["no-new-privileges"],
            "Memory": limits.memory,
            "MemorySwap": limits.memory,
            "CpuShares": limits.cpu_shares,
            "PidsLimit": limits.pids,
            "Ulimits": [
                {
                    "Name": str(limit["type"]).removeprefix("RLIMIT_").lower(),
                    "Soft": limit["soft"],
                    "Hard": limit["hard"],
                }
                for limit in guest_rlimits(spec, None)
            ],
            "LogConfig": {"Type": "none", "Config": {}},
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
            "Tmpfs": {
                mount.target: f"rw,exec,nosuid,nodev,size={mount.size},mode={mount.mode:04o}"
                for mount in tmpfs.values()
            },
            "Mounts": mounts,
        },
    }


def make_store_request(
    spec: SandboxSpec, names: Names, *, labels: Mapping[str, str], keeps_outputs: bool
) -> dict[str, Any]:
    """Return the request to create the store container, through which the volumes are filled."""
    mounts = [_volume(names.files, f"{STORE}/files")]
    if keeps_outputs:
        mounts.append(_volume(names.outputs, f"{STORE}/outputs"))
    return {
        "Image": spec.image,
        "Entrypoint": ["never-started"],
        "Cmd": [],
        "Labels": dict(labels),
        "NetworkDisabled": True,
        "HostConfig": {"Runtime": RUNTIME, "NetworkMode": "none", "Mounts": mounts},
    }


def _volume(name: str, target: str) -> dict[str, Any]:
    return {
        "Type": "volume",
        "Source": name,
        "Target": target,
        "ReadOnly": False,
        "VolumeOptions": {"NoCopy": True},
    }


_COMPARED = (
    *("Runtime", "NetworkMode", "IpcMode", "Privileged", "ReadonlyRootfs"),
    *("Memory", "MemorySwap", "CpuShares", "PidsLimit"),
)
_EMPTY = ("Binds", "Devices", "DeviceRequests", "VolumesFrom", "PidMode", "UsernsMode", "UTSMode")


def find_faults(asked: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    """Compare the request ``asked`` with the engine's description ``made``; return differences."""
    wanted, got = asked["HostConfig"], made.get("HostConfig", {})
    faults = [
        f"{name} is {got.get(name)!r}, not {wanted[name]!r}"
        for name in _COMPARED
        if got.get(name) != wanted[name]
    ]
    faults += [f"{name} is {got[name]!r}" for name in _EMPTY if got.get(name)]
    added = {str(name).removeprefix("CAP_") for name in got.get("CapAdd") or ()}
    if added != set(wanted["CapAdd"]) or "ALL" not in (got.get("CapDrop") or ()):
        faults.append(
            f"its capabilities are not as requested: CapDrop is {got.get('CapDrop')}, CapAdd is"
            f" {sorted(added)}"
        )
    if not any("no-new-privileges" in option for option in got.get("SecurityOpt") or ()):
        faults.append("its processes may gain privileges")
    writable = {m["Target"] for m in wanted["Mounts"] if not m["ReadOnly"]}
    for mount in made.get("Mounts", ()):
        target = mount.get("Destination")
        if mount.get("Type") not in ("volume", "tmpfs"):
            faults.append(f"{target} is a {mount.get('Type')} mount of the engine's machine")
        elif mount.get("Type") == "volume" and mount.get("RW") and target not in writable:
            faults.append(f"{target} is writable")
    return faults


def is_gvisor(runtime: Mapping[str, Any]) -> bool:
    """Return whether an entry of the engine's list of runtimes is gVisor, by its program."""
    program = str(runtime.get("path") or runtime.get("runtimeType") or runtime.get("type") or "")
    return "runsc" in program.rpartition("/")[2]


VARIABLES_SIZE = 64 * 1024
"""Bytes of the environment variables that an image may have."""
MAX_VOLUMES = 20
"""Each is one more tmpfs in the sandbox."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class EngineImage:
    """``environment``: its variables. ``volumes``: folders to make writable."""

    digest: str
    environment: Mapping[str, str]
    volumes: tuple[str, ...]


def read_image(found: Mapping[str, Any], name: str) -> EngineImage:
    """Read what the engine knows of an image.

    :raises LaunchError: when its variables or volumes cannot be used
    """
    config = found.get("Config") or {}
    variables: dict[str, str] = {}
    for entry in config.get("Env") or ():
        key, equals, value = str(entry).partition("=")
        if equals and _NAME.fullmatch(key) and "\0" not in value:
            variables[key] = value
    volumes = [str(volume) for volume in config.get("Volumes") or ()]
    if sum(len(k) + len(v) for k, v in variables.items()) > VARIABLES_SIZE:
        raise _unusable(name, "its environment variables have more than 64 KiB")
    if len(volumes) > MAX_VOLUMES or not all(map(_is_plain, volumes)):
        raise _unusable(name, f"it has more than {MAX_VOLUMES} volumes, or one with an odd path")
    return EngineImage(str(found.get("Id", "")), variables, tuple(volumes))


def _is_plain(path: str) -> bool:
    return path.startswith("/") and ".." not in path.split("/") and path.isprintable()


def _unusable(name: str, why: str) -> LaunchError:
    return LaunchError(f"The image {name} cannot be used: {why}.", "build it without them.")
