"""Settings, from Jupyter's configuration and a kernelspec, become one frozen SandboxSpec.

This is the only module that reads settings. What a client sends (``KERNEL_*``) is not read.

Values are kept as they came and judged in ``SandboxSettings.sandbox_spec()``, so that a wrong
one is one kind of error, in words, wherever it was written. Who wins, first one first: Jupyter's
configuration (the administrator), the kernelspec, the default. Of a limit that is in both, the
lower value holds: a kernelspec may ask for less than it is allowed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any as AnyValue

from traitlets import Any
from traitlets.config import Config, Configurable

from gvisor_kernel.config.validators import (
    GIB,
    HOST_IMAGE,
    INSTALLED_SKILLS,
    MIB,
    accept_choice,
    accept_command,
    accept_environment,
    accept_flag,
    accept_image,
    accept_modules,
    accept_outputs,
    accept_seconds,
    accept_size,
    accept_skills,
    accept_source,
    accept_target,
    accept_uploads,
    accept_whole,
    check_image,
    is_within,
    value_of,
)
from gvisor_kernel.errors import SettingError, UnknownSetting

__all__ = [
    "ACCEPT",
    "DEFAULTS",
    "GIB",
    "HOST_IMAGE",
    "INSTALLED_SKILLS",
    "MIB",
    "RUNTIMES",
    "SETTINGS",
    "ExtraMount",
    "SandboxSettings",
    "SandboxSpec",
]

RUNTIMES = ("runsc", "docker")
RESTARTS = ("kernel", "sandbox")
TRANSPORTS = ("auto", "ipc", "tcp")
KERNEL_MODES = ("auto", "relay", "tcp")
SNAPSHOTS = ("auto", "off")

MIN_MEMORY = 128 * MIB
"""An idle Python kernel holds 60 to 110 MiB."""
MIN_DISK = 16 * MIB
MIN_PIDS = 64
"""An idle sandbox with a Python kernel has about 26 host tasks; a few threads must fit as well."""


@dataclass(frozen=True)
class ExtraMount:
    """A folder or file of the host that a kernel sees at ``target``."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class SandboxSpec:
    """What was asked of a sandbox: validated, without any state of the host.

    ``uploads``, ``outputs``: an absolute path, a path relative to the notebook's folder, or
    None for "nothing of the host". ``skills``: a directory with ``public`` and ``examples``, None,
    or INSTALLED_SKILLS for this user's.
    ``command``: the kernel's argv with ``{connection_file}``, empty for ipykernel.
    ``preload``: modules that are imported before an image of the kernel is taken.
    """

    runtime: str = "runsc"
    image: str = HOST_IMAGE
    memory_limit: int = 4 * GIB
    cpu_shares: int = 1024
    pids_limit: int = 512
    disk_limit: int = 2 * GIB
    uploads: str | None = "."
    outputs: str | None = "outputs"
    skills: str | None = INSTALLED_SKILLS
    transcripts: bool = True
    mounts: tuple[ExtraMount, ...] = ()
    environment: tuple[str, ...] = ()
    start_timeout: float = 60.0
    restart: str = "kernel"
    transport: str = "auto"
    command: tuple[str, ...] = ()
    kernel_mode: str = "auto"
    snapshot: str = "auto"
    preload: tuple[str, ...] = ()
    idle_stop: bool = True
    spare: bool = True


DEFAULTS = SandboxSpec()
SETTINGS = tuple(field.name for field in fields(SandboxSpec))
LIMITS = frozenset({"memory_limit", "cpu_shares", "pids_limit", "disk_limit"})
"""Where Jupyter's configuration has one of these, a kernelspec can lower it, and nothing else."""


class Setting(Any):
    """A trait that takes what it is given; ``sandbox_spec()`` says whether it is accepted."""

    def __init__(self, default: object, help: str) -> None:
        super().__init__(default, help=inspect.cleandoc(help))
        self.tag(config=True)

    def from_string(self, s: str) -> AnyValue:
        """A value from Jupyter's command line."""
        return value_of(s)


class ListSetting(Setting):
    """A setting with a list in it, new for each instance, so that ``.append`` works on it."""

    def __init__(self, help: str) -> None:
        super().__init__([], help)

    def default(self, obj: AnyValue = None) -> list[AnyValue]:
        return []


class SandboxSettings(Configurable):
    """Every setting of a sandbox, for a provisioner class to inherit.

    A kernelspec's ``config`` arrives as keyword arguments (jupyter_client's provisioner factory
    passes them on); ``c.GVisorProvisioner.*`` is loaded over them. Constructing never fails for
    a wrong value or name: ``sandbox_spec()`` raises, where a person is shown the reason.
    """

    runtime = Setting(
        DEFAULTS.runtime,
        help="""What makes the sandbox. "runsc": the program of that name, on this machine.
        "docker": a Docker engine that has runsc as a runtime, on this machine or another; "image"
        is then the name of an image in that engine.""",
    )
    image = Setting(
        DEFAULTS.image,
        help="""The root file system. "host": the Python environment that Jupyter's kernelspec
        names, read-only, with a small synthetic /etc and nothing of anyone's home. Or the name of
        an image that "gvisor-kernel image import" has added, whose own Python runs the kernel.""",
    )
    memory_limit = Setting(
        DEFAULTS.memory_limit,
        help="""Memory of the whole sandbox, in bytes or such as "4G" or "512M" (powers of
        1024). Beyond it the kernel is killed, and the cell that ran says so.""",
    )
    cpu_shares = Setting(
        DEFAULTS.cpu_shares,
        help="""Weight when CPUs are contended, 2 to 262144; 1024 is one ordinary share. Holds
        where cgroups can be written.""",
    )
    pids_limit = Setting(DEFAULTS.pids_limit, help="The most processes and threads, 64 or more.")
    disk_limit = Setting(
        DEFAULTS.disk_limit,
        help="""Size of each of the sandbox's own writable file systems (/workspace, /tmp and
        the like), in bytes or such as "2G". They live in memory and count towards
        memory_limit as they fill.""",
    )
    uploads = Setting(
        DEFAULTS.uploads,
        help="""The folder seen read-only at /mnt/user-data/uploads, and copy-on-write at
        /workspace: a path below the notebook's folder, an absolute path, or None for an empty
        one. The default, the notebook's folder itself, shows nothing when that folder is the
        home directory, or above it.""",
    )
    outputs = Setting(
        DEFAULTS.outputs,
        help="""The folder that the kernel may write, seen at /mnt/user-data/outputs: a path
        below the notebook's folder, an absolute path, or None for one that is gone
        afterwards. It is made when missing, and removed at the end if still empty.""",
    )
    skills = Setting(
        DEFAULTS.skills,
        help="""The skills seen read-only at /mnt/skills. "installed": those that come with
        gvisor-kernel, and those that "gvisor-kernel skills install" has added. Or the absolute
        path of a folder with "public" and "examples" in it, or None for none.""",
    )
    transcripts = Setting(
        DEFAULTS.transcripts,
        help="""Whether what a kernel is asked and answers is recorded, and seen read-only at
        /mnt/transcripts.""",
    )
    mounts = ListSetting(
        help="""More folders or files of the host: a list of
        {"source": "/absolute/host/path", "target": "/path/inside", "read_only": true}.
        read_only may be left out, and is then true.""",
    )
    environment = ListSetting(
        help="""Names of the server's environment variables that the kernel gets as well. No
        others are passed. KERNEL_* cannot be named: clients set those.""",
    )
    start_timeout = Setting(
        DEFAULTS.start_timeout, help="Seconds that a sandbox may take to start, 1 to 3600."
    )
    restart = Setting(
        DEFAULTS.restart,
        help="""What a kernel restart renews: "kernel", a new process in the same sandbox, so
        that files and installed packages stay; or "sandbox", everything.""",
    )
    transport = Setting(
        DEFAULTS.transport,
        help="""How clients on this machine reach the kernel: "ipc" (Unix sockets in a private
        directory), "tcp" (127.0.0.1), or "auto": what the kernel manager asks for explicitly,
        else ipc.""",
    )
    command = ListSetting(
        help="""The kernel's argv inside the sandbox, with "{connection_file}" in it; empty:
        ipykernel of the image's Python.""",
    )
    kernel_mode = Setting(
        DEFAULTS.kernel_mode,
        help="""How messages reach the kernel's process inside. "auto": straight, where it is a
        kernel of the ipykernel family; else, and with "relay" always, over a relay that any
        Jupyter kernel understands. "tcp": a relay by ports of the sandbox's own loopback, for
        kernels that know no Unix sockets, such as Java's.""",
    )
    snapshot = Setting(
        DEFAULTS.snapshot,
        help="""Whether kernels start from an image of one that ran before. "auto": yes; the
        image is made in the background after a start without one. "off": never.""",
    )
    preload = ListSetting(
        help="""Names of Python modules that are imported before the image is taken, so that
        importing them costs a new kernel nothing. They cost their memory in each kernel.""",
    )
    idle_stop = Setting(
        DEFAULTS.idle_stop,
        help="""Whether the sandbox of an idle kernel is stopped, so that it uses no CPU at all,
        until it is asked something. One with a busy thread or a timer of its own is not.""",
    )

    spare = Setting(
        DEFAULTS.spare,
        help="""Whether, after the second start of the same kernel in the same folder, a sandbox is
        restored ahead for the next one. It is stopped, and holds what an idle kernel holds.""",
    )

    _unknown: dict[str, object]
    _lower: dict[str, object]
    """Limits of the kernelspec, where the configuration has them as well."""

    def __init__(self, **kwargs: AnyValue) -> None:
        stanza = {name: kwargs.pop(name) for name in set(kwargs) - _CONSTRUCTOR}
        if not isinstance(kwargs.get("config"), Config | None):
            stanza["config"] = kwargs.pop("config")
        super().__init__(**kwargs)
        configured = self._find_my_config(self.config)
        known = self.trait_names(config=True)
        self._unknown = {
            name: value
            for name, value in (*stanza.items(), *configured.items())
            if name not in known and not isinstance(value, Config)
        }
        self._lower = {name: stanza[name] for name in LIMITS & set(stanza) & set(configured)}
        for name in set(stanza) & set(known) - set(configured):
            setattr(self, name, stanza[name])

    def sandbox_spec(self) -> SandboxSpec:
        """The settings as they stand now; raises SettingError for the first wrong one."""
        for name, value in self._unknown.items():
            raise UnknownSetting(name, value, SETTINGS)
        values = {name: ACCEPT[name](name, getattr(self, name)) for name in SETTINGS}
        for name, value in self._lower.items():
            values[name] = min(values[name], ACCEPT[name](name, value))
        check_image(values["runtime"], values["image"])
        return SandboxSpec(**values)


_CONSTRUCTOR = frozenset({"config", "connection_info", "kernel_id", "kernel_spec", "log", "parent"})
"""What jupyter_client passes to a provisioner besides the kernelspec's own keys."""


def accept_mounts(name: str, value: object) -> tuple[ExtraMount, ...]:
    if not isinstance(value, list | tuple):
        raise SettingError(
            name, value, 'a list of {"source": …, "target": …, "read_only": true or false}'
        )
    mounts: list[ExtraMount] = []
    for i, item in enumerate(value):
        mount = accept_mount(f"{name}[{i}]", item)
        for other in mounts:
            if is_within(mount.target, other.target) or is_within(other.target, mount.target):
                raise SettingError(
                    f"{name}[{i}].target",
                    mount.target,
                    f"a path that is not at, below or above {other.target}, which is also mounted",
                )
        mounts.append(mount)
    return tuple(mounts)


def accept_mount(name: str, item: object) -> ExtraMount:
    keys = {"source", "target", "read_only"}
    if not isinstance(item, Mapping) or not {"source", "target"} <= set(item) <= keys:
        raise SettingError(
            name, item, 'a mapping with "source", "target" and, if need be, "read_only"'
        )
    read_only = accept_flag(f"{name}.read_only", item.get("read_only", True))
    return ExtraMount(
        accept_source(f"{name}.source", item["source"], read_only),
        accept_target(f"{name}.target", item["target"]),
        read_only,
    )


ACCEPT: Mapping[str, Callable[[str, object], AnyValue]] = {
    "runtime": accept_choice(RUNTIMES),
    "image": accept_image,
    "memory_limit": accept_size(MIN_MEMORY),
    "cpu_shares": accept_whole(2, 262144),
    "pids_limit": accept_whole(MIN_PIDS, 4194304),
    "disk_limit": accept_size(MIN_DISK),
    "uploads": accept_uploads,
    "outputs": accept_outputs,
    "skills": accept_skills,
    "transcripts": accept_flag,
    "mounts": accept_mounts,
    "environment": accept_environment,
    "start_timeout": accept_seconds,
    "restart": accept_choice(RESTARTS),
    "transport": accept_choice(TRANSPORTS),
    "command": accept_command,
    "kernel_mode": accept_choice(KERNEL_MODES),
    "snapshot": accept_choice(SNAPSHOTS),
    "preload": accept_modules,
    "idle_stop": accept_flag,
    "spare": accept_flag,
}
