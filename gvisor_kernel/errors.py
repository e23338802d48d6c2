"""The exceptions of the package. Nothing else lives here.

GvisorKernelError
├── SettingError          a setting has a value that is not accepted
│   └── UnknownSetting    there is no setting of that name
├── SandboxError          a sandbox could not be started or used, or ended unexpectedly
│   ├── RuntimeMissing    the program that makes sandboxes is missing or unusable
│   ├── LaunchError       a sandbox or its kernel did not start
│   │   ├── StartStopped  its kernel was shut down or started again meanwhile
│   │   └── StartTimedOut it did not begin in time, and had got nothing of a client
│   ├── SnapshotError     a snapshot could not be made or used
│   │   └── NoSnapshot    no snapshot fits the kernel
│   └── IsolationError    a sandbox is not isolated as required; it was ended
├── EgressError           a route to the network could not be used
│   ├── EgressRefused     a rule or a limit of the route refuses this request
│   └── SecretError       the secret of a route cannot be read
├── KernelspecError       a kernelspec could not be installed, found or removed
├── OutputsError          a file of outputs cannot be shown
├── PackagesError         packages of a kernelspec could not be installed, found or used
├── ReleaseError          a release of runsc could not be installed, found, chosen or removed
├── RootImageError        an image could not be imported, found, used or removed
│   └── ArchiveError      an archive or a directory is not accepted
├── SkillError            a skill is invalid, or could not be installed, found or removed
├── StateError            the directories of this user's sandboxes cannot be used
└── StorageError          what pages keep cannot be read or written

Each error has a fact with its values and a hint about what to do. ``str(error)`` contains both, as
Jupyter shows it to the user.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GvisorKernelError(Exception):
    """Base class: what went wrong (``fact``), what to do (``hint``), evidence (``detail``).

    Hint and detail may be empty.
    """

    def __init__(self, fact: str, hint: str = "", detail: str = "") -> None:
        self.fact = fact
        self.hint = hint
        self.detail = detail.strip()
        super().__init__(fact)

    def __str__(self) -> str:
        parts = [self.fact]
        if self.hint:
            parts.append(f"What to do: {self.hint}")
        if self.detail:
            parts.append(self.detail)
        return "\n".join(parts)


class SettingError(GvisorKernelError):
    """A setting has a value that is not accepted."""

    def __init__(self, setting: str, value: object, accepted: str) -> None:
        self.setting = setting
        self.value = value
        try:
            self.shown = repr(value)
        except (ValueError, RecursionError):  # a number with too many digits, or deep nesting
            self.shown = f"a {type(value).__name__} too large to be shown"
        if len(self.shown) > 200:
            self.shown = self.shown[:200] + "…"
        super().__init__(f"The setting {setting} is {self.shown}.", f"set it to {accepted}.")


class UnknownSetting(SettingError):
    """A kernelspec or Jupyter's configuration names a setting that does not exist."""

    def __init__(self, setting: str, value: object, known: Iterable[str]) -> None:
        known = sorted(known)
        super().__init__(setting, value, "nothing")
        self.fact = f"There is no setting {setting!r} (its value is {self.shown})."
        close = difflib.get_close_matches(setting, known, 1)
        first = f"use {close[0]!r} if that was meant, or " if close else "use "
        self.hint = f"{first}one of these settings: {', '.join(known)}."


class SandboxError(GvisorKernelError):
    """A sandbox could not be started or used, or ended unexpectedly."""


class NotIdle(SandboxError):
    """The kernel has something to do, so it cannot be saved now."""


class RuntimeMissing(SandboxError):
    """The program that makes sandboxes is missing or unusable."""


class LaunchError(SandboxError):
    """A sandbox or its kernel did not start; ``detail`` has the last lines that it wrote."""


class StartStopped(LaunchError):
    """A start was ended by another call for the same kernel: a shutdown, or a start."""


class StartTimedOut(LaunchError):
    """A sandbox or its kernel did not begin within its time. Nothing of a client has run in it, so
    that another one may be tried."""


class SnapshotError(SandboxError):
    """A snapshot could not be made or used. A cold start may succeed."""


class NoCheckpoint(SnapshotError):
    """The kernel has no checkpoint of that name."""


class NoSnapshot(SnapshotError):
    """No snapshot fits the kernel; ``fact`` says why. A cold start may succeed."""


class IsolationError(SandboxError):
    """A sandbox is not isolated as required. It was ended before this is raised."""


class EgressError(GvisorKernelError):
    """A route to the network could not be used. Its text never contains a secret."""


class EgressRefused(EgressError):
    """A rule or a limit of a route refuses a request: ``rule`` says which one.

    The text goes into the sandbox, so it names nothing of the host but what the request and the
    route's own limits say.
    """

    @property
    def rule(self) -> str:
        """The rule that refuses the request, with its values."""
        return self.fact


class SecretError(EgressError):
    """The secret of a route cannot be read, or cannot be sent in a header."""


class KernelspecError(GvisorKernelError):
    """A kernelspec could not be installed, found or removed."""


class OutputsError(GvisorKernelError):
    """A file of outputs cannot be shown, or is not there."""


class PackagesError(GvisorKernelError):
    """Packages of a kernelspec could not be installed, found or used; ``detail`` has pip's last
    lines."""


class ReleaseError(GvisorKernelError):
    """A release of runsc could not be installed, found, chosen or removed."""


class RootImageError(GvisorKernelError):
    """An image (root file system) could not be imported, found, used or removed."""


class ArchiveError(RootImageError):
    """An archive or a directory is not accepted.

    ``fact`` is a clause without a full stop: "the archive is truncated". The caller says which
    import failed.
    """


class SkillError(GvisorKernelError):
    """A skill is invalid, or could not be installed, found or removed."""


class StateError(GvisorKernelError):
    """The directories of this user's sandboxes cannot be used."""


class StorageError(GvisorKernelError):
    """Data of pages cannot be read or written. The text goes into the page: it names no folder but
    that of the user's own file."""
