"""Records of the requests of pages to the network: a folder of each page that has made any, with a
file of each server that has shown it.

The files are those of ``egress.audit``. Two servers of a person may show one page, and only one
process may write a file. When all of them together take more than MAX_BYTES, the oldest go.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.artifacts.item import Artifact
from gvisor_kernel.artifacts.places import artifacts_folder
from gvisor_kernel.egress.audit import Entry, read_entries
from gvisor_kernel.errors import StorageError
from gvisor_kernel.host.private_directories import (
    NotPrivate,
    make_directories,
    read_file,
    write_file,
)
from gvisor_kernel.strict_json import JsonError, parse_json

# by path: below a private store of this user

FOLDER = "requests"
PLACE = "page.json"
ENDING = ".jsonl"
MAX_BYTES = 256 * 1024 * 1024
MAX_PLACE = 64 * 1024


@dataclass(frozen=True)
class Record:
    """A record of a page's requests. ``path``: where the page lies; ``folder``: of the files."""

    id: str
    path: str
    folder: Path

    def read(self) -> list[Entry]:
        """Return the requests, the oldest first.

        :raises OSError: a file exists and cannot be read
        """
        files = sorted(self.folder.glob(f"*{ENDING}"))
        return sorted(
            (entry for file in files for entry in read_entries(file)), key=lambda entry: entry.time
        )


def open_record(artifact: Artifact, server: str) -> Path:
    """Return the file for the requests of a page that ``server`` shows, and make its folder.

    ``server``: letters and digits that no other server has.

    :raises StorageError: the folder cannot be made
    """
    root = artifacts_folder() / FOLDER
    folder = root / artifact.id
    try:
        make_directories(root.parent.parent, root.parent, root, folder)
        with suppress(FileExistsError):
            write_file(folder / PLACE, json.dumps({"page": artifact.path}))
        _remove_oldest(root, folder)
    except (NotPrivate, OSError) as error:
        raise StorageError(
            f"Requests of pages cannot be recorded: {error}",
            "check the disk, and that the folder is private to this user.",
        ) from error
    return folder / f"{server}{ENDING}"


def find_records() -> list[Record]:
    """Return the records of all pages that have made requests, by path.

    :raises OSError: they cannot be read
    """
    root = artifacts_folder() / FOLDER
    if not root.is_dir():
        return []
    found = []
    for folder in root.iterdir():
        with suppress(FileNotFoundError, NotADirectoryError, JsonError, TypeError, KeyError):
            content = parse_json(read_file(folder / PLACE, MAX_PLACE), MAX_PLACE)
            found.append(Record(folder.name, str(content["page"]), folder))
    return sorted(found, key=lambda record: record.path)


def _remove_oldest(root: Path, kept: Path) -> None:
    """Remove the files that were written longest ago, beyond MAX_BYTES, and folders without one.

    Another server may do so at the same time.
    """
    files = []
    for file in root.glob(f"*/*{ENDING}*"):
        with suppress(FileNotFoundError):
            status = file.lstat()
            files.append((status.st_mtime_ns, status.st_size, file))
    left = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if left <= MAX_BYTES:
            break
        file.unlink(missing_ok=True)
        left -= size
    for folder in root.iterdir():
        if folder != kept and os.listdir(folder) == [PLACE]:  # noqa: PTH208
            with suppress(OSError):
                (folder / PLACE).unlink()
                folder.rmdir()
