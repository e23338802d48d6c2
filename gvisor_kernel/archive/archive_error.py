"""The exception for input that is not accepted, raised where the reason is found."""

from __future__ import annotations

from gvisor_kernel.errors import RootImageError


class ArchiveError(RootImageError):
    """An archive or a directory is not accepted.

    ``fact`` is a clause without a full stop: "the archive is truncated". The caller says which
    import failed.
    """
