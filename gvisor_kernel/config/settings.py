"""The settings of a sandbox, each declared once: an entry of SandboxSpec.

From an entry come the default, the trait of the provisioner (``jupyter_config.py``), what ``--set``
and programs may give, the form for another process (``write_spec``), the row of the reference page,
and whether the setting is in a snapshot's key. ``validators.py`` and the modules of single settings
have what is accepted. Nothing here reads a setting from anywhere.

This module needs no traitlets: the helper on a node, and the process that removes what a killed
server has left, start without them.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from gvisor_kernel.config import entry_points
from gvisor_kernel.config.egress import accept_egress
from gvisor_kernel.config.mounts import ExtraMount, accept_mounts
from gvisor_kernel.config.packages import Packages, accept_packages
from gvisor_kernel.config.validators import (
    GIB,
    HOST_IMAGE,
    INSTALLED_SKILLS,
    MIB,
    accept_choice,
    accept_command,
    accept_environment,
    accept_flag,
    accept_idle_seconds,
    accept_image,
    accept_outputs,
    accept_preload,
    accept_profile,
    accept_runsc,
    accept_seconds,
    accept_size,
    accept_skills,
    accept_uploads,
    accept_whole,
)
from gvisor_kernel.errors import RuntimeMissing, SettingError
from gvisor_kernel.strict_json import JsonError
from gvisor_kernel.typed_json import read_value

DEFAULT_RUNTIME = "runsc"
PRELOAD_LEARNED = "auto"
"""The value of ``preload`` for modules that kernels were seen to import."""

ASK, NEW_FILES, NEVER = "ask", "new files", "off"
"""The values of ``apply``."""
OWN, READ_ONLY, SHARED = "own", "read-only", "shared"
"""The values of ``branch_outputs``."""

MIN_MEMORY = 128 * MIB
"""An idle Python kernel holds 60 to 110 MiB."""
MIN_DISK = 16 * MIB
MIN_PIDS = 64
"""An idle sandbox with a Python kernel has about 26 host tasks; a few more threads must fit."""

D = TypeVar("D")
T = TypeVar("T")
Both = Literal["configuration", "lower", "choice"]


@dataclass(frozen=True)
class Setting:
    """Describes a setting, beside its name and its type.

    ``default``: in SandboxSpec. ``accept`` takes the setting's name and a value as it was written,
    and returns the value for SandboxSpec, or raises SettingError.
    ``both``: what holds if Jupyter's configuration and a kernelspec set it. "configuration": the
    former. "lower": the lower value, so that a kernelspec can ask for less than it is allowed, and
    not for more. "choice": the kernelspec's, if it is a part of the other.
    ``in_key``: a snapshot depends on it, and the description of its sandbox does not show it.
    ``kind``: the dataclass of the value, or of its items.
    """

    default: Any
    accept: Callable[..., Any]
    help: str
    both: Both = "configuration"
    in_key: bool = False
    kind: type | None = None

    def write_default(self) -> Any:
        """Return the default as a configuration writes it. A list or mapping is a new one."""
        if isinstance(self.default, tuple):
            return list(self.default)
        return {} if self.kind is not None and self.default is not None else self.default


def setting(
    default: D,
    accept: Callable[..., T],
    help: str,
    *,
    both: Both = "configuration",
    in_key: bool = False,
    kind: type | None = None,
) -> D | T:
    """Return the field of SandboxSpec for a Setting."""
    entry = Setting(default, accept, inspect.cleandoc(help), both, in_key, kind)
    return field(default=default, metadata={"setting": entry})


def accept_runtime(name: str, value: object) -> str:
    """Return the name of a runtime that is installed.

    :raises SettingError: when there is none of that name
    """
    names = entry_points.find_names()
    if value == DEFAULT_RUNTIME or (isinstance(value, str) and value in names):
        return str(value)
    known = ", ".join(f'"{name}"' for name in names)
    raise SettingError(name, value, f"{known}, or another runtime whose package is installed")


@dataclass(frozen=True)
class SandboxSpec:
    """The validated settings of a sandbox. It depends on nothing of the host.

    Sizes are in bytes. Folders are absolute or relative to the notebook's folder; None is none of
    the host.
    """

    runtime: str = setting(
        DEFAULT_RUNTIME,
        accept_runtime,
        """How sandboxes are started: "runsc", with the program runsc on this machine, or the name
        of another runtime. docs/settings.md has those that come with gvisor-kernel; other packages
        may add runtimes.""",
    )
    runsc: str = setting(
        "",
        accept_runsc,
        """Which gVisor makes the sandboxes of the runtimes "runsc", "ssh" and "slurm". Empty: the
        release that "gvisor-kernel runsc use" has chosen, or else the runsc on the PATH. "system":
        the one on the PATH. Otherwise the name of a release that "gvisor-kernel runsc install" has
        added, or the absolute path of a runsc; each on the machine where the kernel runs.""",
    )
    image: str = setting(
        HOST_IMAGE,
        accept_image,
        """The root file system. "host": the Python environment that the kernelspec names,
        read-only, with a small synthetic /etc and without any home directory. Otherwise the name
        of an image that "gvisor-kernel image import" has added; its own Python runs the kernel.""",
    )
    memory_limit: int = setting(
        4 * GIB,
        accept_size(MIN_MEMORY),
        """Memory of the whole sandbox, in bytes, or text such as "4G" or "512M" (powers of
        1024). A kernel that uses more is killed, and the running cell shows the reason.""",
        both="lower",
    )
    cpu_shares: int = setting(
        1024,
        accept_whole(2, 262144),
        """Weight of the sandbox when processes compete for CPUs, 2 to 262144; 1024 is the
        usual weight. Only enforced if cgroups can be written.""",
        both="lower",
    )
    pids_limit: int = setting(
        512,
        accept_whole(MIN_PIDS, 4194304),
        "The maximum number of processes and threads, 64 to 4194304.",
        both="lower",
    )
    disk_limit: int = setting(
        2 * GIB,
        accept_size(MIN_DISK),
        """Size of each writable file system of the sandbox (/workspace, /tmp and so on), in
        bytes, or text such as "2G". Files in them are in memory and count towards
        memory_limit.""",
        both="lower",
    )
    uploads: str | None = setting(
        ".",
        accept_uploads,
        """The folder that the kernel sees read-only at /mnt/user-data/uploads, and
        copy-on-write at /workspace: a path below the notebook's folder, an absolute path, or None
        for an empty folder. The default is the notebook's folder itself; if that is a home
        directory, or a folder above one, the kernel sees an empty folder. "project": the nearest
        folder around it with .git, pyproject.toml, environment.yml or .jupyter-project, without
        hidden files; the kernel works in the notebook's folder inside it.""",
    )
    outputs: str | None = setting(
        "outputs",
        accept_outputs,
        """The folder that the kernel can write, at /mnt/user-data/outputs: a path below the
        notebook's folder, an absolute path, or None for a folder that is removed with the sandbox.
        It is created if it does not exist, and removed at the end if it is still empty.""",
    )
    branch_outputs: str = setting(
        OWN,
        accept_choice((OWN, READ_ONLY, SHARED)),
        """What a branch of a kernel has as its outputs. "own": an empty folder in those of its
        source, branches/NAME. "read-only": those of its source. "shared": the same, and both write
        them.""",
    )
    apply: str = setting(
        ASK,
        accept_choice((ASK, NEW_FILES, NEVER)),
        """What becomes of files that the kernel has written in /workspace, its copy of the uploads.
        "ask": a person may apply them to the folder. "new files": so may a person, and when the
        kernel is shut down, files of data that the folder does not have are written to it, within
        limits. "off": nothing is ever written to it.""",
    )
    skills: str | None = setting(
        INSTALLED_SKILLS,
        accept_skills,
        """The skills that the kernel sees read-only at /mnt/skills. "installed": those that
        come with gvisor-kernel, and those that "gvisor-kernel skills install" has added. Otherwise
        the absolute path of a folder that contains "public" and "examples", or None for none.""",
    )
    transcripts: bool = setting(
        True,
        accept_flag,
        """Whether requests to the kernel, its replies and its outputs are recorded. The
        kernel sees the record read-only at /mnt/transcripts.""",
    )
    profile: str | None = setting(
        None,
        accept_profile,
        """The name of an IPython profile of this user, such as "default", or None. The kernel gets
        a copy of its configuration and startup files, and of this user's matplotlibrc; not of its
        history and keys. Kernels with startup files start without a snapshot.""",
        in_key=True,
    )
    mounts: tuple[ExtraMount, ...] = setting(
        (),
        accept_mounts,
        """More folders or files of the host that the kernel sees: a list of
        {"source": "/absolute/host/path", "target": "/path/inside", "read_only": true}.
        The default of read_only is true.""",
        kind=ExtraMount,
    )
    environment: tuple[str, ...] = setting(
        (),
        accept_environment,
        """Names of environment variables of the server that are passed to the kernel. No
        others are passed. KERNEL_* is not accepted, because clients set these variables.""",
    )
    start_timeout: float = setting(
        60.0,
        accept_seconds(3600),
        "The time limit for the start of a kernel: 1 to 3600 seconds.",
    )
    restart: str = setting(
        "kernel",
        accept_choice(("kernel", "sandbox")),
        """What a restart of the kernel replaces. "kernel": the process; files and installed
        packages in the sandbox stay. "sandbox": the whole sandbox, which takes less memory.""",
    )
    transport: str = setting(
        "auto",
        accept_choice(("auto", "ipc", "tcp")),
        """How clients on this machine connect to the kernel: "ipc" (Unix sockets in a private
        directory), "tcp" (127.0.0.1), or "auto": the transport that is configured for the kernel
        manager, otherwise ipc.""",
    )
    command: tuple[str, ...] = setting(
        (),
        accept_command,
        """The kernel's argv inside the sandbox, which contains "{connection_file}". Empty:
        ipykernel of the image's Python.""",
    )
    kernel_mode: str = setting(
        "auto",
        accept_choice(("auto", "relay", "tcp")),
        """How messages are passed to the kernel's process in the sandbox. "auto": directly if
        the kernel is based on ipykernel, otherwise through a relay. "relay": always through a
        relay, which works with any Jupyter kernel. "tcp": through a relay on ports of the
        sandbox's own loopback device, for kernels without Unix sockets, such as Java's.""",
        in_key=True,
    )
    snapshot: str = setting(
        "auto",
        accept_choice(("auto", "off")),
        """Whether kernels start from a snapshot, a saved kernel. "auto": yes; a snapshot is
        made in the background after a start without one. "off": never.""",
    )
    preload: tuple[str, ...] | str = setting(
        PRELOAD_LEARNED,
        accept_preload,
        """Python modules that are imported before the snapshot is made, so that a new kernel
        has them at once. Their memory is used in each kernel. "auto": those that the cells of such
        kernels import most often. "off": none. A list of names: these.""",
        in_key=True,
    )
    idle_stop: bool = setting(
        True,
        accept_flag,
        """Whether the sandbox of an idle kernel is paused until the next message, so that it
        uses no CPU. A kernel with a busy thread or a pending timer is not paused. A kernel of
        another language, and a child process, may have timers: with one of them the sandbox is
        paused for two seconds at a time.""",
    )
    hibernate_idle_timeout: float = setting(
        0.0,
        accept_idle_seconds,
        """Seconds without anything to do after which a kernel hibernates: its memory is written to
        the disk, and it goes on as it was at the next request. 0: never. A kernel with a busy
        thread, a pending timer or a child process does not.""",
    )
    checkpoints: str = setting(
        "off",
        accept_choice(("off", "agent", "cells")),
        """When a kernel gets checkpoints by itself, to which it can be rewound. "agent": before
        each run of a program or a model (API, MCP) but the first. "cells": after cells that have
        taken long, so that all of it takes at most a twentieth of the cells' own time.""",
    )
    checkpoints_kept: int = setting(
        10,
        accept_whole(1, 1000),
        """How many of these are kept; the oldest go first. Those that were given a name stay.""",
    )
    spare: bool = setting(
        True,
        accept_flag,
        """Whether, after the second start of the same kernel in the same folder, a sandbox is
        restored in advance for the next start. It is paused and uses the memory of an idle
        kernel.""",
    )
    egress: tuple[str, ...] = setting(
        (),
        accept_egress,
        """Names of the routes by which the kernel may reach the network, such as "packages".
        Empty: no network at all. Which routes exist is set in c.GVisorEgress.routes. If Jupyter's
        configuration sets this list, a kernelspec can choose only among its names.""",
        both="choice",
    )
    packages: Packages | None = setting(
        None,
        accept_packages,
        """Python packages that the kernel has from its start, beside those of its image.
        "gvisor-kernel install --with" installs them in a sandbox and writes this setting:
        {"requirements": ["polars"], "environment": "<digest>"}.""",
        kind=Packages,
    )
    own: Any = None
    """The value of the setting that only this runtime has, whose name is the runtime's; None if it
    has none."""


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {e.name: e.metadata["setting"] for e in fields(SandboxSpec) if "setting" in e.metadata}
)
DEFAULTS = SandboxSpec()


@dataclass(frozen=True)
class RuntimeEntry:
    """The target of a runtime's entry point: all that is known of it before it is imported.

    Its module is imported for each kernel with this runtime whose settings are read, so it imports
    little; each function here imports what it needs. All but ``make`` may be left out.
    """

    make: Callable[[], Any]
    """Makes the runtime, a ``runtimes.base.Runtime``. Called once for a process."""
    setting: Setting | None = None
    """A setting that no other runtime has. Its name is the runtime's, and its value a mapping:
    ``accept`` gets the setting's name, what Jupyter's configuration has, and what the kernelspec
    has. The accepted value, a frozen dataclass (``kind``), is ``SandboxSpec.own``."""
    check: Callable[[SandboxSpec], None] = lambda spec: None
    """Raises SettingError when a kernel of this runtime cannot have these settings."""
    images: str = ""
    """Where its images are, for a person, such as "the Docker engine": the setting ``image`` then
    names one of those. Empty: images are those of this user's store and "host", the Python of the
    machine on which the kernel runs."""
    shows_profile: bool = False
    """Whether its kernels can have the setting ``profile``."""
    variables: tuple[str, ...] = ()
    """The variables of the server's environment by which ``remove`` reaches its sandboxes. It may
    run in another process, when the server has been killed."""
    remove: Callable[[Path, Any, float | None], bool] | None = None
    """Removes what a sandbox has beside its state directory, processes and cgroups, and returns
    whether nothing of it is left; then it is not tried again. It gets the directory, the
    ``Record``, and for how many seconds outputs may be copied (None: as long as at an end). Never
    raises, and may be called twice. None: there is nothing else."""
    save: Callable[[Path, Any], bool] | None = None
    """Saves the kernel of a sandbox whose owner has died, as if that had let it hibernate, and
    returns whether it did. It gets the directory and the ``Record``. Never raises."""
    measure: Callable[[Any], int | None] | None = None
    """Returns how many bytes of memory the sandbox of a ``Record`` holds, for ``list``; None if
    that is not known."""


def find_entry(runtime: str) -> RuntimeEntry:
    """Return the entry of a runtime.

    :raises RuntimeMissing: when it is not installed, or cannot be imported
    """
    found = entry_points.load(runtime)
    if not isinstance(found, RuntimeEntry):
        raise RuntimeMissing(
            f"The entry point of the runtime {runtime} leads to no RuntimeEntry: {found!r:.100}.",
            "ask its author; see CONTRIBUTING, A runtime.",
        )
    return found


def find_own_settings() -> dict[str, Setting]:
    """Return the settings that only one runtime has, of all that can be imported."""
    found = {}
    for name in entry_points.find_names():
        with suppress(RuntimeMissing):
            setting = find_entry(name).setting
            if setting is not None:
                found[name] = setting
    return found


def write_spec(spec: SandboxSpec) -> dict[str, Any]:
    """Return ``spec`` as values that JSON has, for another process of the same user: here, or on
    another machine."""
    return dataclasses.asdict(spec)


def write_key_settings(spec: SandboxSpec) -> dict[str, Any]:
    """Return the settings that are in a snapshot's key, as values that JSON has."""
    return {name: getattr(spec, name) for name, entry in SETTINGS.items() if entry.in_key}


def read_spec(content: object) -> SandboxSpec:
    """Return the spec that ``write_spec`` wrote.

    :raises JsonError: when something else has written it, such as another release
    :raises RuntimeMissing: when its runtime has a setting of its own, and is not installed
    """
    if not isinstance(content, dict) or content.keys() != {*SETTINGS, "own"}:
        raise JsonError("it has not the settings of this release")
    own = content["own"]
    if own is not None:
        setting = find_entry(str(content["runtime"])).setting
        if setting is None or setting.kind is None:
            raise JsonError("its runtime has no setting of its own")
        own = read_value(own, setting.kind)
    return read_value({**content, "own": own}, SandboxSpec)
