"""The exceptions of the package. Nothing else lives here.

GvisorKernelError
├── SettingError          a setting has a value that is not accepted
│   └── UnknownSetting    there is no setting of that name
├── SandboxError          a sandbox could not be had, or ended by itself
│   ├── RuntimeMissing    the program that makes sandboxes is absent or unusable
│   ├── LaunchError       a sandbox did not start
│   ├── SnapshotError     a snapshot could not be made, or not be used
│   │   └── NoSnapshot    none fits what is to be started
│   └── IsolationError    a sandbox started, but is not what was demanded; it was ended
├── KernelspecError       a kernelspec could not be installed, found or removed
├── RootImageError        an image cannot be imported, found, used or removed
├── SkillError            a skill's folder or package is not one, or cannot be had
└── StateError            the directories of this user's sandboxes cannot be used

Every error is a fact with its values, and a hint: what the reader can do about it. Jupyter
shows ``str(error)`` to a person, so it holds both.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GvisorKernelError(Exception):
    """What went wrong (``fact``), what to do (``hint``), evidence (``detail``, may be empty)."""

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
        except (ValueError, RecursionError):  # a number of many thousand digits, a deep nest
            self.shown = f"a {type(value).__name__} too large to be shown"
        if len(self.shown) > 200:
            self.shown = self.shown[:200] + "…"
        super().__init__(f"The setting {setting} is {self.shown}.", f"set it to {accepted}.")


class UnknownSetting(SettingError):
    """A kernelspec or Jupyter's configuration names a setting that does not exist."""

    def __init__(self, setting: str, value: object, known: Iterable[str]) -> None:
        known = sorted(known)
        super().__init__(setting, value, "nothing")
        self.fact = f"There is no setting {setting!r} (it has the value {self.shown})."
        close = difflib.get_close_matches(setting, known, 1)
        ask = f"did you mean {close[0]!r}? " if close else ""
        self.hint = f"{ask}The settings are {', '.join(known)}."


class SandboxError(GvisorKernelError):
    """A sandbox could not be had, or ended by itself."""


class RuntimeMissing(SandboxError):
    """The program that makes sandboxes is absent or unusable."""


class LaunchError(SandboxError):
    """A sandbox did not start; ``detail`` has the last lines that it wrote."""


class SnapshotError(SandboxError):
    """An image of a sandbox could not be made or used. A start without one may well succeed."""


class NoSnapshot(SnapshotError):
    """No kernel of this kind can be restored now; ``fact`` says why. A cold start may succeed."""


class IsolationError(SandboxError):
    """A sandbox is not what was demanded. It has been ended before this is raised."""


class KernelspecError(GvisorKernelError):
    """A kernelspec could not be installed, found or removed."""


class RootImageError(GvisorKernelError):
    """An image of a root file system could not be imported, found, used or removed."""


class SkillError(GvisorKernelError):
    """A skill's folder or package is not one, or could not be installed, found or removed."""


class StateError(GvisorKernelError):
    """The directories that hold this user's sandboxes cannot be used."""
