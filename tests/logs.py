"""Read the lines that were added to a sandbox's log since a given time."""

from __future__ import annotations

from pathlib import Path

from gvisor_kernel.host.log_files import EVENTS, INSIDE


class LogPosition:
    """Position in the log beside ``path`` at construction. Valid until a file is rotated."""

    def __init__(self, path: Path) -> None:
        self._paths = [path.with_name(name) for name in (EVENTS, INSIDE)]
        self._sizes = [p.stat().st_size if p.exists() else 0 for p in self._paths]

    def more(self) -> str:
        added = [
            path.read_bytes()[size:] if path.exists() else b""
            for path, size in zip(self._paths, self._sizes, strict=True)
        ]
        return b"".join(added).decode(
            errors="replace"
        )  # a truncated file may begin within a character
