"""Why something is not imported, said where it is found. ``importing`` says of what."""

from __future__ import annotations

from gvisor_kernel.errors import RootImageError


class Refused(RootImageError):
    """The fact goes on a sentence about the archive: "it is cut off"."""
