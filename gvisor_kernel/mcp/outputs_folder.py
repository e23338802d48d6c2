"""The folder of ``--outputs``: each sandbox gets a folder of its own in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ulid import ULID

from gvisor_kernel.errors import SandboxError
from gvisor_kernel.host.folders import Opened, reopen


@dataclass(frozen=True)
class OutputsFolder:
    """The folder. It stays open while a server runs: no other one can be taken for it."""

    opened: Opened

    def name_new(self) -> Path:
        """Return a path in the folder that nothing has yet.

        :raises SandboxError: the folder was removed, or its name leads to another one now
        """
        try:
            reopen(self.opened.path, self.opened.identity).close()
        except OSError as error:
            raise SandboxError(
                "The folder for outputs was moved or replaced while this server runs.",
                "ask the user to restart the server.",
            ) from error
        return Path(self.opened.path) / str(ULID()).lower()
