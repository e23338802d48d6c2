"""The runtimes' entries, and their settings ``slurm`` and ``ssh``: on which machines kernels run.

Which further arguments of ``srun`` a kernelspec may name is Jupyter's configuration's alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gvisor_kernel.config.keys import accept_mapping, key
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import (
    accept_absolute,
    accept_choice,
    accept_seconds,
    accept_strings,
    accept_text,
)
from gvisor_kernel.errors import SettingError
from gvisor_kernel.runtimes.clients import HOST

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:,=@/+-]{0,199}")
ARGUMENT = re.compile(r"--[a-z][a-z0-9-]*(=[A-Za-z0-9_.:,=@/+*&|\[\]()-]{1,200})?")
NEVER = frozenset(
    {
        *("--account", "--partition", "--qos", "--time", "--gres", "--mem", "--cpus-per-task"),
        *("--nodes", "--ntasks", "--chdir", "--export", "--export-file", "--input", "--output"),
        *("--error", "--pty", "--unbuffered", "--label", "--multi-prog", "--prolog", "--epilog"),
        *("--task-prolog", "--task-epilog", "--bcast", "--get-user-env", "--uid", "--gid"),
        *("--jobid", "--overlap", "--no-kill", "--open-mode", "--quiet", "--verbose", "--help"),
        *("--mem-per-cpu", "--mem-per-gpu", "--immediate", "--job-name", "--container"),
        *("--propagate", "--x11", "--no-shell", "--disable-status", "--slurmd-debug"),
        *("--container-id", "--clusters", "--kill-on-bad-exit", "--mpi", "--preserve-env"),
        *("--ntasks-per-node", "--tasks-per-node", "--test-only", "--usage", "--version"),
        *("--ntasks-per-core", "--ntasks-per-gpu", "--ntasks-per-socket", "--cpus-per-gpu"),
        *("--tres-per-task", "--acctg-freq"),
    }
)
"""Arguments that would change the limits of a kernel, or what is run, or its streams. The first
ones are settings."""
FILES = ("shared", "copy")
"""How files come to a node: by a file system that it shares with the server, or as copies."""
MAX_HOSTS = 1000
MAX_WAIT = 7 * 24 * 3600


def accept_arguments(name: str, value: object) -> tuple[str, ...]:
    """Return further arguments of ``srun``, which leave a kernel's limits and streams alone.

    :raises SettingError: when one does not
    """
    arguments = accept_strings(name, value, 'a list of arguments such as "--constraint=avx512"')
    for argument in arguments:
        if not ARGUMENT.fullmatch(argument):
            raise SettingError(name, argument, "arguments of the form --name or --name=value")
        word = argument.partition("=")[0]
        if any(never.startswith(word) for never in NEVER):  # srun takes abbreviations
            raise SettingError(
                name, argument, "arguments that leave the kernel's limits and streams alone"
            )
    return arguments


def accept_hosts(name: str, value: object) -> tuple[str, ...]:
    """Return names of hosts, each once.

    :raises SettingError: when one is no name, or they are too many
    """
    rule = f'a list of hosts, such as ["node1", "me@node2"], at most {MAX_HOSTS}'
    hosts = accept_strings(name, value, rule)
    for host in hosts:
        if not HOST.fullmatch(host):
            raise SettingError(name, host, rule)
    if len(hosts) > MAX_HOSTS:
        raise SettingError(name, value, rule)
    return tuple(dict.fromkeys(hosts))


accept_word = accept_text(WORD, "a word without spaces")


@dataclass(frozen=True)
class Slurm:
    """Values that are asked of Slurm for a kernel. Empty texts leave the choice to the cluster.

    ``wait``: seconds that a kernel may wait for resources. ``python``: the Python on the nodes that
    has this package, if it is not this one. ``state``: the folder of each node for what is being
    run there. ``files``: one of FILES.
    """

    partition: str = key("", accept_word)
    account: str = key("", accept_word)
    qos: str = key("", accept_word)
    time: str = key("", accept_word)
    gres: str = key("", accept_word)
    arguments: tuple[str, ...] = key((), accept_arguments)
    wait: float = key(300.0, accept_seconds(MAX_WAIT))
    python: str = key("", accept_absolute)
    state: str = key("", accept_absolute)
    files: str = key("shared", accept_choice(FILES))


@dataclass(frozen=True)
class Ssh:
    """The hosts on which kernels may run, as OpenSSH names them; ``config`` is a file of its
    configuration in place of the user's. ``python``, ``state`` and ``files`` are as in
    ``Slurm``."""

    hosts: tuple[str, ...] = key((), accept_hosts)
    config: str = key("", accept_absolute)
    python: str = key("", accept_absolute)
    state: str = key("", accept_absolute)
    files: str = key("shared", accept_choice(FILES))


DEFAULT_SLURM = Slurm()
DEFAULT_SSH = Ssh()


def accept_slurm(name: str, configured: object, asked: object = None) -> Slurm:
    """Return the settings in two mappings, of Jupyter's configuration and of a kernelspec.

    :raises SettingError: when one is not accepted
    """
    allowed: tuple[str, ...] = ()
    if isinstance(configured, Mapping) and "allowed_arguments" in configured:
        configured = dict(configured)
        allowed = accept_strings(
            f"{name}.allowed_arguments",
            configured.pop("allowed_arguments"),
            'a list of patterns such as "--constraint=*"',
        )
    if isinstance(asked, Mapping) and "allowed_arguments" in asked:
        raise SettingError(
            f"{name}.allowed_arguments",
            asked["allowed_arguments"],
            "nothing in a kernelspec: only Jupyter's configuration may set it"
            " (c.GVisorProvisioner.slurm)",
        )
    found = accept_mapping(Slurm, name, configured, asked)
    if isinstance(configured, Mapping) and "arguments" in configured:
        return found
    for argument in found.arguments:
        if not any(fnmatchcase(argument, pattern) for pattern in allowed):
            shown = ", ".join(allowed) or "none"
            raise SettingError(
                f"{name}.arguments",
                argument,
                f"arguments that the administrator allows ({shown}):"
                " c.GVisorProvisioner.slurm = {'allowed_arguments': [...]}",
            )
    return found


def accept_ssh(name: str, configured: object, asked: object = None) -> Ssh:
    """Return the settings in two mappings, of Jupyter's configuration and of a kernelspec.

    :raises SettingError: when one is not accepted
    """
    return accept_mapping(Ssh, name, configured, asked)


def find_slurm(spec: SandboxSpec) -> Slurm:
    """Return the value of the setting ``slurm``."""
    return spec.own if isinstance(spec.own, Slurm) else DEFAULT_SLURM


def find_ssh(spec: SandboxSpec) -> Ssh:
    """Return the value of the setting ``ssh``."""
    return spec.own if isinstance(spec.own, Ssh) else DEFAULT_SSH


def check_node(spec: SandboxSpec) -> None:
    """:raises SettingError: when the node would have on its disk what is to be encrypted"""
    if spec.hibernate_key:
        accepted = '"" for a kernel on a node, which writes its image unencrypted'
        raise SettingError("hibernate_key", spec.hibernate_key, accepted)


def check_hosts(spec: SandboxSpec) -> None:
    """:raises SettingError: as ``check_node``, or when no host is named"""
    check_node(spec)
    if not find_ssh(spec).hosts:
        raise SettingError("ssh.hosts", [], 'a list of hosts, such as ["node1"]')
