"""What was added to a sandbox's log since a test began to look: its files, one after the other."""

from __future__ import annotations

from pathlib import Path

from gvisor_kernel.host.log_files import EVENTS, INSIDE


class LogMark:
    """Of the log beside ``path``, at the time of construction; for less than a file holds."""

    def __init__(self, path: Path) -> None:
        self._paths = [path.with_name(name) for name in (EVENTS, INSIDE)]
        self._sizes = [p.stat().st_size if p.exists() else 0 for p in self._paths]

    def more(self) -> str:
        added = [
            path.read_bytes()[size:] if path.exists() else b""
            for path, size in zip(self._paths, self._sizes, strict=True)
        ]
        return b"".join(added).decode(errors="replace")  # a file that was cut may begin anywhere
