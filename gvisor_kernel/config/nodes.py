"""The settings ``slurm`` and ``ssh``: on which machines kernels run, and what is asked for them.

A kernelspec and Jupyter's configuration may both set one of them: what the configuration names
holds. Which further arguments of ``srun`` a kernelspec may name is the configuration's alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from gvisor_kernel.config.validators import accept_strings, is_plain_path
from gvisor_kernel.errors import SettingError

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:,=@/+-]{0,199}")
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,199}")
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
MAX_WAIT = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Slurm:
    """What is asked of Slurm for a kernel. Empty texts leave the choice to the cluster.

    ``wait``: seconds that a kernel may wait for resources. ``python``: the Python on the nodes that
    has this package, if it is not this one. ``state``: the folder of each node for what is being
    run there. ``files``: one of FILES.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    gres: str = ""
    arguments: tuple[str, ...] = ()
    wait: float = 300.0
    python: str = ""
    state: str = ""
    files: str = "shared"


@dataclass(frozen=True)
class Ssh:
    """The hosts on which kernels may run, as OpenSSH names them; ``config`` is a file of its
    configuration in place of the user's. ``python``, ``state`` and ``files`` are as in
    ``Slurm``."""

    hosts: tuple[str, ...] = ()
    config: str = ""
    python: str = ""
    state: str = ""
    files: str = "shared"


DEFAULT_SLURM = Slurm()
DEFAULT_SSH = Ssh()
Found = TypeVar("Found", Slurm, Ssh)


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
    values = _merge(name, configured, asked, Slurm)
    for key in ("partition", "account", "qos", "time", "gres"):
        _check_text(f"{name}.{key}", values[key], WORD, "a word without spaces")
    values["arguments"] = _accept_arguments(
        f"{name}.arguments", values["arguments"], allowed, _is_from(configured, "arguments")
    )
    wait = values["wait"]
    if not isinstance(wait, int | float) or isinstance(wait, bool) or not 1 <= wait <= MAX_WAIT:
        raise SettingError(f"{name}.wait", wait, "a number of seconds from 1 to 604800")
    _check_paths(name, values, ("python", "state"))
    _check_files(name, values["files"])
    return Slurm(**{**values, "wait": float(wait)})


def accept_ssh(name: str, configured: object, asked: object = None) -> Ssh:
    """Return the settings in two mappings, of Jupyter's configuration and of a kernelspec.

    :raises SettingError: when one is not accepted
    """
    values = _merge(name, configured, asked, Ssh)
    rule = 'a list of hosts, such as ["node1", "me@node2"]'
    hosts = accept_strings(f"{name}.hosts", values["hosts"], rule)
    for host in hosts:
        _check_text(f"{name}.hosts", host, HOST, rule)
    if len(hosts) > MAX_HOSTS or "" in hosts:
        raise SettingError(f"{name}.hosts", values["hosts"], f"{rule}, at most {MAX_HOSTS}")
    _check_paths(name, values, ("config", "python", "state"))
    _check_files(name, values["files"])
    return Ssh(**{**values, "hosts": tuple(dict.fromkeys(hosts))})


def check_nodes(runtime: str, ssh: Ssh) -> None:
    """:raises SettingError: when kernels are to run over SSH, and no host is named"""
    if runtime == "ssh" and not ssh.hosts:
        raise SettingError("ssh.hosts", [], 'a list of hosts, such as ["node1"]')


def _merge(name: str, configured: object, asked: object, kind: type[Found]) -> dict[str, Any]:
    defaults = kind()
    known = set(vars(defaults))
    values: dict[str, Any] = dict(vars(defaults))
    for mapping in (asked, configured):
        if mapping is None:
            continue
        if isinstance(mapping, kind):
            values.update(vars(mapping))
            continue
        if not isinstance(mapping, Mapping) or not set(mapping) <= known:
            raise SettingError(name, mapping, f"a mapping with any of: {', '.join(sorted(known))}")
        values.update(mapping)
    return values


def _is_from(configured: object, key: str) -> bool:
    return isinstance(configured, Mapping) and key in configured


def _accept_arguments(
    name: str, value: object, allowed: tuple[str, ...], trusted: bool
) -> tuple[str, ...]:
    """``trusted``: Jupyter's configuration has named them itself."""
    arguments = accept_strings(name, value, 'a list of arguments such as "--constraint=avx512"')
    for argument in arguments:
        if not ARGUMENT.fullmatch(argument):
            raise SettingError(name, argument, "arguments of the form --name or --name=value")
        word = argument.partition("=")[0]
        if any(name.startswith(word) for name in NEVER):  # srun takes abbreviations
            raise SettingError(
                name, argument, "arguments that leave the kernel's limits and streams alone"
            )
        if not trusted and not any(fnmatchcase(argument, pattern) for pattern in allowed):
            shown = ", ".join(allowed) or "none"
            raise SettingError(
                name,
                argument,
                f"arguments that the administrator allows ({shown}):"
                " c.GVisorProvisioner.slurm = {'allowed_arguments': [...]}",
            )
    return tuple(arguments)


def _check_text(name: str, value: object, pattern: re.Pattern[str], rule: str) -> None:
    if not isinstance(value, str) or (value and not pattern.fullmatch(value)):
        raise SettingError(name, value, rule)


def _check_files(name: str, value: object) -> None:
    if value not in FILES:
        accepted = " or ".join(f'"{choice}"' for choice in FILES)
        raise SettingError(f"{name}.files", value, accepted)


def _check_paths(name: str, values: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        value = values[key]
        if value and not (is_plain_path(value) and value.startswith("/")):
            raise SettingError(f"{name}.{key}", value, "an absolute path")
        if not isinstance(value, str):
            raise SettingError(f"{name}.{key}", value, "an absolute path")
