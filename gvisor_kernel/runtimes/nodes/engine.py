"""The interface of what runs a command on a node: its command line, and the meaning of its words.

Pure but for the look at PATH. Implemented in ``slurm`` and ``ssh``.
"""

from __future__ import annotations

import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.runtimes.clients import Trouble
from gvisor_kernel.runtimes.nodes.variables import client_variables


class Engine(ABC):
    """Runs commands on nodes by a program of this machine, which passes on stdio."""

    name: str
    program: str
    package: str
    """The package that has the program, for a person."""
    python: str
    """The Python on the nodes that has this package; empty for this one."""
    state: str
    wait: float
    """Seconds until the helper must run: a queue may be before it."""

    @abstractmethod
    def hosts(self) -> Sequence[str]:
        """Return the hosts to choose from. One empty text: the engine chooses."""

    @abstractmethod
    def start_argv(self, host: str, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a kernel's helper on ``host``."""

    @abstractmethod
    def ask_argv(self, host: str, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a short command on the node ``host``."""

    def build_argv(self, host: str, command: Sequence[str]) -> list[str]:
        """Return the command line that makes a snapshot on the node ``host``, where kernels of the
        same settings run. It is never urgent."""
        return self.start_argv(host, command)

    def step_argv(self, job: str, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a short command in the running ``job``; empty where
        ``ask_argv`` does it at once."""
        return []

    @abstractmethod
    def end_argv(self, job: str) -> list[str]:
        """Return the command line that ends ``job``; empty where the client's end does."""

    @abstractmethod
    def explain(self, words: Sequence[str], status: int, host: str) -> Trouble:
        """Return what the end of a client means.

        :param words: its last lines on stderr
        :param status: as of ``subprocess``
        """

    def describe_wait(self, words: Sequence[str], environment: Mapping[str, str]) -> str:
        """Return what a start waits for, by the client's words; empty if for nothing known.

        May ask the engine, with the client's ``environment``.
        """
        return ""

    def explain_wait(
        self, words: Sequence[str], within: str, environment: Mapping[str, str]
    ) -> Trouble | None:
        """Return why a start that waits is given up, ``within`` a time; None if it does not."""
        return None

    def environment(self, server: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of the client, from the server's. The node gets none of them."""
        return client_variables(self.name, server)

    def helper(self, command: str) -> list[str]:
        """Return the command line of the helper, on a node."""
        state = ["--state", self.state] if self.state else []
        return [self.python or sys.executable, "-P", "-m", "gvisor_kernel.node", *state, command]

    def check(self) -> None:
        """:raises RuntimeMissing: when this machine has no client of the engine"""
        if shutil.which(self.program) is None:
            raise RuntimeMissing(
                f"The program {self.program} is not on PATH.",
                f"install {self.package}, or choose another runtime.",
            )
