"""A page that was read, the ticket by which it asks, and the record of its requests to the network.

The server gives the ticket with the page, and takes it with each call. A page says nothing of
itself that is believed. The ticket names the file that was read and the folder that it may read
from, as they were when it was opened: a kernel that moves folders later does not make one page
another. It is good for the person to whom it was given.

The records are a folder of each page that has made requests, with a file of each server that has
shown it: two servers of a person may show one page, and only one process may write a file. The
files are those of ``egress.audit``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gvisor_kernel.artifacts.item import Artifact
from gvisor_kernel.artifacts.storage import artifacts_folder
from gvisor_kernel.egress.audit import Entry, read_entries
from gvisor_kernel.errors import OutputsError, StorageError
from gvisor_kernel.host.folders import Identity, Opened, reopen
from gvisor_kernel.host.private_directories import (
    NotPrivate,
    make_directories,
    read_file,
    write_file,
)
from gvisor_kernel.strict_json import JsonError, parse_json

# by path: below a private store of this user

MAX_TICKET = 50_000


@dataclass(frozen=True)
class Page:
    """A page that was read. ``root``: the real path of the folder that it may read files of;
    ``folder``: where it lies below that; ``of_contents``: it was found among the server's contents,
    not among a kernel's outputs."""

    artifact: Artifact
    root: str
    identity: Identity
    folder: str
    of_contents: bool = False

    @staticmethod
    def read_from(root: Opened, path: str, *, of_contents: bool = False) -> Page:
        """Return the page at ``path``, already checked, below an open folder."""
        folder = path.rpartition("/")[0]
        artifact = Artifact.of_page(Path(root.path), path)
        return Page(artifact, root.path, root.identity, folder, of_contents)

    def open_root(self) -> Opened:
        """Open the folder again.

        :raises OutputsError: when another folder is there now
        """
        try:
            return reopen(self.root, self.identity)
        except OSError as error:
            raise OutputsError("The folder of this page is not there any more.") from error


class Tickets:
    """Makes and checks tickets. They hold as long as this object: until the server's end."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def seal(self, page: Page, owner: str) -> str:
        """Return a ticket of ASCII letters for a page that ``owner``, a person, has opened."""
        fields = json.dumps(msgspec.to_builtins(page))  # a path may have bytes that are no UTF-8
        content = base64.urlsafe_b64encode(fields.encode())
        return f"{content.decode()}.{self._sign(content, owner)}"

    def read(self, ticket: object, owner: str) -> Page:
        """Return the page of a ticket that ``owner`` has sent.

        :raises OutputsError: when this server has not given it to them
        """
        content, _, signature = str(ticket)[:MAX_TICKET].partition(".")
        expected = self._sign(content.encode(errors="replace"), owner)
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            raise OutputsError("The page was opened with another server: open it again.")
        return msgspec.convert(json.loads(base64.urlsafe_b64decode(content)), Page)

    def _sign(self, content: bytes, owner: str) -> str:
        # Base64 has no NUL: no name of a person is taken for a part of the content.
        whole = content + b"\0" + owner.encode(errors="surrogatepass")
        return hmac.new(self._secret, whole, hashlib.sha256).hexdigest()


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
