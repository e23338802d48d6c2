"""Turns settings from Jupyter's configuration and a kernelspec into one frozen SandboxSpec.

This is the only module that reads settings. Variables that a client sends (``KERNEL_*``) are not
read.

Values are stored unchecked and validated in ``SandboxSettings.sandbox_spec()``, so that a wrong
value raises the same kind of error wherever it was written. Precedence: Jupyter's configuration
(the administrator), then the kernelspec, then the default. If both set a limit, the lower value
holds: a kernelspec may ask for less than it is allowed. Of the routes that the configuration names
in ``egress``, a kernelspec may choose some.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any as AnyValue

from traitlets import Any
from traitlets.config import Config, Configurable

from gvisor_kernel.config.egress import accept_egress, check_subset
from gvisor_kernel.config.kubernetes import accept_kubernetes
from gvisor_kernel.config.nodes import accept_slurm, accept_ssh, check_nodes
from gvisor_kernel.config.packages import accept_packages, check_packages
from gvisor_kernel.config.spec import (
    DEFAULTS,
    KERNEL_MODES,
    RESTARTS,
    RUNTIMES,
    SETTINGS,
    SNAPSHOTS,
    TRANSPORTS,
    ExtraMount,
    SandboxSpec,
)
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
    accept_outputs,
    accept_preload,
    accept_seconds,
    accept_size,
    accept_skills,
    accept_source,
    accept_target,
    accept_uploads,
    accept_whole,
    check_image,
    is_within,
    parse_value,
)
from gvisor_kernel.errors import SettingError, UnknownSetting

__all__ = [
    "CONSTRUCTOR",
    "DEFAULTS",
    "GIB",
    "HOST_IMAGE",
    "INSTALLED_SKILLS",
    "MIB",
    "RUNTIMES",
    "SETTINGS",
    "VALIDATORS",
    "ExtraMount",
    "SandboxSettings",
    "SandboxSpec",
]

MIN_MEMORY = 128 * MIB
"""An idle Python kernel holds 60 to 110 MiB."""
MIN_DISK = 16 * MIB
MIN_PIDS = 64
"""An idle sandbox with a Python kernel has about 26 host tasks; a few more threads must fit."""


LIMITS = frozenset({"memory_limit", "cpu_shares", "pids_limit", "disk_limit"})
"""If Jupyter's configuration sets one of these, a kernelspec can lower it but not raise it."""
CHOICES = frozenset({"egress"})
"""If Jupyter's configuration sets one of these, a kernelspec can choose a part of it."""
MERGED: Mapping[str, Callable[[str, object, object], AnyValue]] = {
    "slurm": accept_slurm,
    "ssh": accept_ssh,
    "kubernetes": accept_kubernetes,
}
"""Mappings of which Jupyter's configuration sets some keys, and a kernelspec others."""


class Setting(Any):
    """A trait that stores any value; ``sandbox_spec()`` validates it."""

    def __init__(self, default: object, help: str) -> None:
        super().__init__(default, help=inspect.cleandoc(help))
        self.tag(config=True)

    def from_string(self, s: str) -> AnyValue:
        """Parse a value from Jupyter's command line."""
        return parse_value(s)


class ListSetting(Setting):
    """A setting whose value is a list; each instance has its own, so that ``.append`` works."""

    def __init__(self, help: str) -> None:
        super().__init__([], help)

    def default(self, obj: AnyValue = None) -> list[AnyValue]:
        """Return a new empty list. Called by traitlets, once for each instance."""
        return []


class SandboxSettings(Configurable):
    """All settings of a sandbox; the provisioner class inherits them.

    A kernelspec's ``config`` arrives as keyword arguments (jupyter_client's provisioner factory
    passes them); ``c.GVisorProvisioner.*`` overrides them. The constructor accepts wrong names and
    values: ``sandbox_spec()`` raises for them, at a point where Jupyter shows the error to a
    person.
    """

    runtime = Setting(
        DEFAULTS.runtime,
        help="""How sandboxes are started. "runsc": with the program runsc on this machine.
        "docker": by a Docker engine that has the runtime runsc, on this machine or another; the
        setting "image" is then the name of an image in that engine. "slurm": with runsc on a node
        of a Slurm cluster (setting "slurm"). "ssh": with runsc on another machine (setting
        "ssh"). "kubernetes": as a pod of a cluster whose nodes have gVisor (setting "kubernetes");
        the setting "image" is then the name of an image that the nodes can pull.""",
    )
    image = Setting(
        DEFAULTS.image,
        help="""The root file system. "host": the Python environment that the kernelspec names,
        read-only, with a small synthetic /etc and without any home directory. Otherwise the name
        of an image that "gvisor-kernel image import" has added; its own Python runs the kernel.""",
    )
    memory_limit = Setting(
        DEFAULTS.memory_limit,
        help="""Memory of the whole sandbox, in bytes, or text such as "4G" or "512M" (powers of
        1024). A kernel that uses more is killed, and the running cell shows the reason.""",
    )
    cpu_shares = Setting(
        DEFAULTS.cpu_shares,
        help="""Weight of the sandbox when processes compete for CPUs, 2 to 262144; 1024 is the
        usual weight. Only enforced if cgroups can be written.""",
    )
    pids_limit = Setting(
        DEFAULTS.pids_limit, help="The maximum number of processes and threads, 64 to 4194304."
    )
    disk_limit = Setting(
        DEFAULTS.disk_limit,
        help="""Size of each writable file system of the sandbox (/workspace, /tmp and so on), in
        bytes, or text such as "2G". Files in them are in memory and count towards
        memory_limit.""",
    )
    uploads = Setting(
        DEFAULTS.uploads,
        help="""The folder that the kernel sees read-only at /mnt/user-data/uploads, and
        copy-on-write at /workspace: a path below the notebook's folder, an absolute path, or None
        for an empty folder. The default is the notebook's folder itself; if that is a home
        directory, or a folder above one, the kernel sees an empty folder.""",
    )
    outputs = Setting(
        DEFAULTS.outputs,
        help="""The folder that the kernel can write, at /mnt/user-data/outputs: a path below the
        notebook's folder, an absolute path, or None for a folder that is removed with the sandbox.
        It is created if it does not exist, and removed at the end if it is still empty.""",
    )
    skills = Setting(
        DEFAULTS.skills,
        help="""The skills that the kernel sees read-only at /mnt/skills. "installed": those that
        come with gvisor-kernel, and those that "gvisor-kernel skills install" has added. Otherwise
        the absolute path of a folder that contains "public" and "examples", or None for none.""",
    )
    transcripts = Setting(
        DEFAULTS.transcripts,
        help="""Whether requests to the kernel, its replies and its outputs are recorded. The
        kernel sees the record read-only at /mnt/transcripts.""",
    )
    mounts = ListSetting(
        help="""More folders or files of the host that the kernel sees: a list of
        {"source": "/absolute/host/path", "target": "/path/inside", "read_only": true}.
        The default of read_only is true.""",
    )
    environment = ListSetting(
        help="""Names of environment variables of the server that are passed to the kernel. No
        others are passed. KERNEL_* is not accepted, because clients set these variables.""",
    )
    start_timeout = Setting(
        DEFAULTS.start_timeout, help="The time limit for the start of a kernel: 1 to 3600 seconds."
    )
    restart = Setting(
        DEFAULTS.restart,
        help="""What a restart of the kernel replaces. "kernel": the process; files and installed
        packages in the sandbox stay. "sandbox": the whole sandbox, which takes less memory.""",
    )
    transport = Setting(
        DEFAULTS.transport,
        help="""How clients on this machine connect to the kernel: "ipc" (Unix sockets in a private
        directory), "tcp" (127.0.0.1), or "auto": the transport that is configured for the kernel
        manager, otherwise ipc.""",
    )
    command = ListSetting(
        help="""The kernel's argv inside the sandbox, which contains "{connection_file}". Empty:
        ipykernel of the image's Python.""",
    )
    kernel_mode = Setting(
        DEFAULTS.kernel_mode,
        help="""How messages are passed to the kernel's process in the sandbox. "auto": directly if
        the kernel is based on ipykernel, otherwise through a relay. "relay": always through a
        relay, which works with any Jupyter kernel. "tcp": through a relay on ports of the
        sandbox's own loopback device, for kernels without Unix sockets, such as Java's.""",
    )
    snapshot = Setting(
        DEFAULTS.snapshot,
        help="""Whether kernels start from a snapshot, a saved kernel. "auto": yes; a snapshot is
        made in the background after a start without one. "off": never.""",
    )
    preload = Setting(
        DEFAULTS.preload,
        help="""Python modules that are imported before the snapshot is made, so that a new kernel
        has them at once. Their memory is used in each kernel. "auto": those that the cells of such
        kernels import most often. "off": none. A list of names: these.""",
    )
    idle_stop = Setting(
        DEFAULTS.idle_stop,
        help="""Whether the sandbox of an idle kernel is paused until the next message, so that it
        uses no CPU. A kernel with a busy thread or a pending timer is not paused. A kernel of
        another language, and a child process, may have timers: with one of them the sandbox is
        paused for two seconds at a time.""",
    )
    spare = Setting(
        DEFAULTS.spare,
        help="""Whether, after the second start of the same kernel in the same folder, a sandbox is
        restored in advance for the next start. It is paused and uses the memory of an idle
        kernel.""",
    )
    egress = ListSetting(
        help="""Names of the routes by which the kernel may reach the network, such as "packages".
        Empty: no network at all. Which routes exist is set in c.GVisorEgress.routes. If Jupyter's
        configuration sets this list, a kernelspec can choose only among its names.""",
    )
    packages = Setting(
        DEFAULTS.packages,
        help="""Python packages that the kernel has from its start, beside those of its image.
        "gvisor-kernel install --with" installs them in a sandbox and writes this setting:
        {"requirements": ["polars"], "environment": "<digest>"}.""",
    )
    slurm = Setting(
        {},
        help="""For the runtime "slurm", a mapping: "partition", "account", "qos", "time", "gres",
        "arguments" (more arguments of srun), "wait" (seconds that a kernel may wait for resources,
        by default 300), "python" (the Python on the nodes that has this package; by default the
        server's), "state" (a folder of each node for what runs there), "files" ("shared": by a
        file system that the nodes share with the server, the default; "copy": copied to the node
        and back). Jupyter's configuration may also set "allowed_arguments": patterns of the
        arguments that kernelspecs may name.""",
    )
    ssh = Setting(
        {},
        help="""For the runtime "ssh", a mapping: "hosts" (a list, as OpenSSH knows them), "config"
        (a configuration file of OpenSSH in place of the user's), "python", "state" and "files" as
        in the setting "slurm".""",
    )
    kubernetes = Setting(
        {},
        help="""For the runtime "kubernetes", a mapping: "config" and "context" (a kubeconfig, and a
        context in it; by default the usual ones, or the cluster that the server runs in),
        "namespace", "runtime_class" (gVisor's RuntimeClass, by default "gvisor"), "handlers" (what
        its handler may be called), "cpu" (by default "1"), "log_limit" (for what kernels print, by
        default "4Gi"), "pull" (the imagePullPolicy), "pull_secrets", "priority_class",
        "uploads_claim" and "outputs_claim" (a PersistentVolumeClaim, and a folder in it, in place
        of copies), "labels", "node_selector", "tolerations".""",
    )

    _unknown: dict[str, object]
    _lower: dict[str, object]
    """Limits of the kernelspec that Jupyter's configuration sets as well."""
    _subset: dict[str, object]
    """The kernelspec's choice of what Jupyter's configuration allows."""
    _merged: dict[str, object]
    """What the kernelspec sets of the mappings that it shares with Jupyter's configuration."""

    def __init__(self, **kwargs: AnyValue) -> None:
        stanza = {name: kwargs.pop(name) for name in set(kwargs) - CONSTRUCTOR}
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
        self._subset = {name: stanza[name] for name in CHOICES & set(stanza) & set(configured)}
        self._merged = {name: stanza[name] for name in set(MERGED) & set(stanza)}
        for name in set(stanza) & set(known) - set(configured) - set(MERGED):
            setattr(self, name, stanza[name])

    def sandbox_spec(self) -> SandboxSpec:
        """Return the validated settings.

        :raises SettingError: for the first setting with a wrong value
        :raises UnknownSetting: for the first name that is no setting
        """
        for name, value in self._unknown.items():
            raise UnknownSetting(name, value, SETTINGS)
        values = {name: accept(name, getattr(self, name)) for name, accept in VALIDATORS.items()}
        for name, accept_both in MERGED.items():
            values[name] = accept_both(name, getattr(self, name), self._merged.get(name))
        for name, value in self._lower.items():
            values[name] = min(values[name], VALIDATORS[name](name, value))
        for name, value in self._subset.items():
            chosen = VALIDATORS[name](name, value)
            check_subset(name, chosen, values[name])
            values[name] = chosen
        check_image(values["runtime"], values["image"])
        check_packages(values["packages"], values["command"])
        check_nodes(values["runtime"], values["ssh"])
        return SandboxSpec(**values)


CONSTRUCTOR = frozenset({"config", "connection_info", "kernel_id", "kernel_spec", "log", "parent"})
"""Arguments that jupyter_client passes to a provisioner besides the keys of the kernelspec."""


def accept_mounts(name: str, value: object) -> tuple[ExtraMount, ...]:
    """Return the extra mounts in a list of mappings.

    :raises SettingError: when one is not accepted, or the target of one is in another's
    """
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
                    f"a path that is not at, below or above {other.target}, another mount's target",
                )
        mounts.append(mount)
    return tuple(mounts)


def accept_mount(name: str, item: object) -> ExtraMount:
    """Return the extra mount in a mapping. ``read_only`` is true if it is missing.

    :raises SettingError: when a key is unknown or missing, or a value is not accepted
    """
    keys = {"source", "target", "read_only"}
    if not isinstance(item, Mapping) or not {"source", "target"} <= set(item) <= keys:
        raise SettingError(
            name, item, 'a mapping with "source", "target" and, optionally, "read_only"'
        )
    read_only = accept_flag(f"{name}.read_only", item.get("read_only", True))
    return ExtraMount(
        accept_source(f"{name}.source", item["source"], read_only),
        accept_target(f"{name}.target", item["target"]),
        read_only,
    )


VALIDATORS: Mapping[str, Callable[[str, object], AnyValue]] = {
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
    "preload": accept_preload,
    "idle_stop": accept_flag,
    "spare": accept_flag,
    "egress": accept_egress,
    "packages": accept_packages,
}
