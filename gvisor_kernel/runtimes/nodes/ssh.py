"""SSH: the helper runs on a host of a list, started by OpenSSH's own client."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.runtimes.clients import CONNECT_SECONDS, Trouble, client_argv, explain
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.settings import find_ssh


class Ssh(Engine):
    """The hosts that the setting names."""

    name = "ssh"
    program = "ssh"
    package = "OpenSSH's client (the package openssh-client of Debian)"
    wait = float(CONNECT_SECONDS + 30)

    def __init__(self, spec: SandboxSpec, control: str, load: Mapping[str, int]) -> None:
        """``control``: the private folder for sockets of masters. ``load``: kernels on a host."""
        self._asked = find_ssh(spec)
        self._control = control
        self._load = load
        self.python, self.state = self._asked.python, self._asked.state

    def hosts(self) -> Sequence[str]:
        return sorted(self._asked.hosts, key=lambda host: self._load.get(host, 0))

    def start_argv(self, host: str, command: Sequence[str]) -> list[str]:
        return [*self._client(host), host, "--", shlex.join(command)]

    def ask_argv(self, host: str, command: Sequence[str]) -> list[str]:
        return self.start_argv(host, command)

    def end_argv(self, job: str) -> list[str]:
        return []

    def end_master_argv(self, host: str) -> list[str]:
        """Return the command line that ends the master of ``host`` now."""
        return [*self._client(host), "-O", "exit", host]

    def _client(self, host: str) -> list[str]:
        # Another name of the same machine may have other keys.
        config = self._asked.config
        return client_argv(f"{config}\0{host}", self._control, config)

    def explain(self, words: Sequence[str], status: int, host: str) -> Trouble:
        return explain("\n".join(words), status, host)
