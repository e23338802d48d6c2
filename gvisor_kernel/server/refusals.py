"""Reads from the record of a sandbox's requests which were refused since the last look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.cli.logs import Follower
from gvisor_kernel.egress.audit import FILE, Entry, parse_entry


@dataclass(frozen=True)
class Refused:
    """The last refused request, and how many there were with it."""

    entry: Entry
    count: int


class Refusals:
    """Follows the record of one sandbox, until ``close``. One thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._follower = Follower(directory / FILE)

    def read(self) -> Refused | None:
        """Return what was refused since the last call; None if nothing was. Blocks."""
        last, count = None, 0
        for line in self._follower.read():
            entry = parse_entry(line)
            if entry is not None and is_refused(entry):
                last, count = entry, count + 1 + entry.more
        return None if last is None else Refused(last, count)

    def close(self) -> None:
        """Close the file."""
        self._follower.close()


def is_refused(entry: Entry) -> bool:
    """Return whether nothing of a request was sent, because no rule allows it."""
    return bool(entry.reason) and not (entry.is_open or entry.id or entry.up or entry.down)
