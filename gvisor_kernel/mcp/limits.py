"""What the clients of one server may use, and the folders that their sandboxes see.

Only data. The command line fills it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


MIB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """``sessions``: of one client; ``all_sessions``: of all clients together.

    ``run_seconds``: for a run that names no timeout; ``max_run_seconds``: what a run may name.
    ``idle_seconds``: without a call, after which a session ends. ``left_seconds``: after a client
    of HTTP has closed its stream, until its sessions end.
    """

    sessions: int = 8
    all_sessions: int = 50
    run_seconds: float = 120.0
    max_run_seconds: float = 3600.0
    idle_seconds: float = 1800.0
    left_seconds: float = 60.0
    calls: int = 16
    """Calls of one client at once; further ones are refused."""
    shown: int = 20_000
    """Characters of each stream in one result. ``sandbox_read_output`` reads on."""
    images: int = 4
    image_bytes: int = MIB
    """Images in one result, and the size of each."""
    upload_bytes: int = 256 * MIB
    """The size of one file that is copied from the host."""
    resource_bytes: int = 8 * MIB
    """The size of one resource."""


@dataclass(frozen=True)
class ServerSettings:
    """The settings of one server.

    ``sandbox``: settings of every sandbox, as a kernelspec has them. ``upload_roots``: folders of
    the host from which a client may copy files. ``outputs``: a folder of the host; each sandbox
    writes to a folder of its own in it. None: outputs stay in the sandbox and end with it.
    ``routes``: the routes to the network that each sandbox has, by name.
    """

    limits: Limits = field(default_factory=Limits)
    sandbox: Mapping[str, Any] = field(default_factory=dict)
    upload_roots: tuple[Path, ...] = ()
    outputs: OutputsFolder | None = None
    routes: tuple[str, ...] = ()
