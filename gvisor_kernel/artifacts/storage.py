"""The data of pages: one SQLite file for a person, and one for what people of a server share.

Only this module opens these files. A call does not wait for the network; it may wait for another
writer, for at most BUSY_SECONDS. The last writer of a key wins.

A person's own file is in a private folder of this user; the one that people share may be in one
that an administrator has made.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvisor_kernel.artifacts.item import (
    Artifact,
    check_depth,
    check_key,
    check_prefix,
    encode_value,
    no_json,
)
from gvisor_kernel.errors import StorageError
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.private_directories import NotPrivate, make_directories, own_data
from gvisor_kernel.shown_text import describe_size

BUSY_SECONDS = 20.0
BUSY_PAUSE = 0.01
WORK_SECONDS = 30.0
"""Seconds that one call may take: the file may be one that others can write."""
VERSION = 1

_SCHEMA = """
create table if not exists artifacts (
    id text primary key, path text not null
) without rowid;
create table if not exists items (
    owner text not null, artifact text not null, key text not null,
    value blob not null, size integer not null, written real not null
);
create unique index if not exists item on items (owner, artifact, key);
create index if not exists item_sizes on items (owner, artifact, key, size);
"""


@dataclass(frozen=True)
class Item:
    """A value with its key."""

    key: str
    json: bytes
    """The value as JSON."""
    written: float
    """Unix time of the last write, in seconds."""

    @property
    def value(self) -> Any:
        """The value, parsed: of megabytes, that holds the interpreter lock for tenths of a second.

        :raises StorageError: when it has too many levels, or a number that Python cannot write: of
            a million digits, or 1e999
        """
        try:
            value = json.loads(self.json, parse_float=_parse_finite)
            check_depth(value)
        except (ValueError, RecursionError, StorageError) as error:
            raise StorageError(
                f"The value of {self.key!r} is too deep, or has too long a number or one above"
                " 1e308, to be exported.",
                "read it in a page or a kernel.",
            ) from error
        return value


@dataclass(frozen=True)
class Usage:
    """The amount of data that an artifact keeps for an owner."""

    owner: str
    artifact: Artifact
    keys: int
    bytes: int
    written: float


@dataclass(frozen=True)
class Quotas:
    """Keys, and bytes of keys with their values, that are kept."""

    page_keys: int = 10_000
    """Keys of one artifact for one person, or of those that all share."""
    page_bytes: int = 50 * 1024 * 1024
    owner_bytes: int = 500 * 1024 * 1024
    """Bytes of all artifacts of one person, or of all that is shared."""
    folder_keys: int = 20_000
    folder_bytes: int = 100 * 1024 * 1024
    """Of all pages of one outputs folder. Above it its kernels write none: a kernel can name any
    number of pages, and must not use up what all have together."""


QUOTAS = Quotas()


class Storage:
    """One file. ``owner`` is the name of a person, or SHARED; each has keys of their own."""

    SHARED = ""

    def __init__(self, path: Path, *, mode: int = 0o600, quotas: Quotas = QUOTAS) -> None:
        """Take the path of the file, which is made when something is first kept.

        ``mode`` is that of a new file: 0o660 in a folder that an administrator has made for a
        group. Its folder must exist.
        """
        self.path = path
        self._mode = mode
        self._quotas = quotas

    def set(
        self, owner: str, artifact: Artifact, key: object, value: Any, *, folder: str = ""
    ) -> None:
        """Keep a value; see ``set_json``."""
        self.set_json(owner, artifact, key, encode_value(value), folder=folder)

    def set_json(
        self, owner: str, artifact: Artifact, key: object, content: bytes, *, folder: str = ""
    ) -> None:
        """Keep a value that is JSON in UTF-8. ``folder``: the outputs folder of the kernel that
        asks, if one does.

        :raises StorageError: when key or value are not accepted, a quota is reached, or the file
            cannot be written
        """
        name = check_key(key)
        size = len(content) + len(name.encode())
        with self._transaction() as database:
            if not _is_json(database, content):
                raise no_json()
            self._check_quotas(database, owner, artifact, name, size)
            if folder:
                _check_folder(database, self._quotas, owner, folder, (artifact.id, name), size)
            database.execute(
                "insert or replace into artifacts values (?, ?)", (artifact.id, artifact.path)
            )
            _delete(database, owner, artifact, name)
            database.execute(
                "insert into items values (?, ?, ?, ?, ?, ?)",
                (owner, artifact.id, name, content, size, time.time()),
            )

    def get(self, owner: str, artifact: Artifact, key: object) -> Item | None:
        """Return what is kept under a key, or None.

        :raises StorageError: when the key is not accepted, or the file cannot be read
        """
        return self._read(owner, artifact, check_key(key))

    def _read(self, owner: str, artifact: Artifact, name: str) -> Item | None:
        with self._transaction(write=False) as database:
            row = database.execute(
                "select value, written from items where owner = ? and artifact = ? and key = ?",
                (owner, artifact.id, name),
            ).fetchone()
            # Checked before the end of the transaction, whose errors say what to do.
            if row is not None and not _is_json(database, row[0]):
                raise ValueError(f"the value of {name!r} is no JSON")
            return None if row is None else Item(name, row[0], row[1])

    def delete(self, owner: str, artifact: Artifact, key: object) -> bool:
        """Remove a key; return whether there was one.

        :raises StorageError: as for ``set``
        """
        name = check_key(key)
        with self._transaction() as database:
            deleted = _delete(database, owner, artifact, name)
            _forget(database, owner, artifact)
        return deleted

    def list_keys(self, owner: str, artifact: Artifact, prefix: object = "") -> list[str]:
        """Return the keys that begin with ``prefix``, in their order.

        :raises StorageError: as for ``get``
        """
        start = check_prefix(prefix)
        with self._transaction(write=False) as database:
            rows = database.execute(
                "select key from items where owner = ? and artifact = ?"
                " and substr(key, 1, ?) = ? order by key",
                (owner, artifact.id, len(start), start),
            ).fetchall()
        return [row[0] for row in rows]

    def usages(self) -> list[Usage]:
        """Return what each artifact keeps for each owner, the largest first.

        :raises StorageError: when the file cannot be read
        """
        with self._transaction(write=False) as database:
            rows = database.execute(
                "select owner, artifact, coalesce(path, ''), count(*), sum(size), max(written)"
                " from items left join artifacts on artifacts.id = artifact"
                " group by owner, artifact order by sum(size) desc"
            ).fetchall()
        return [
            Usage(owner, Artifact(identity, path), keys, count, written)
            for owner, identity, path, keys, count, written in rows
        ]

    def items(self, owner: str, artifact: Artifact) -> Iterator[Item]:
        """Yield all that an artifact keeps for an owner.

        :raises StorageError: when the file cannot be read
        """
        for key in self.list_keys(owner, artifact):
            # Whatever key is there: an older version kept some that are refused now.
            item = self._read(owner, artifact, key)
            if item is not None:
                yield item

    def remove(self, owner: str, artifact: Artifact) -> int:
        """Remove all that an artifact keeps for an owner; return how many keys that were.

        :raises StorageError: as for ``set``
        """
        with self._transaction() as database:
            removed = database.execute(
                "delete from items where owner = ? and artifact = ?", (owner, artifact.id)
            ).rowcount
            # Also what an older version has left.
            database.execute("delete from artifacts where id not in (select artifact from items)")
        return removed

    def _check_quotas(
        self, database: sqlite3.Connection, owner: str, artifact: Artifact, key: str, size: int
    ) -> None:
        quotas = self._quotas
        keys, count, replaced = database.execute(
            "select count(*), coalesce(sum(size), 0),"
            " coalesce(sum(size) filter (where key = ?), -1)"
            " from items where owner = ? and artifact = ?",
            (key, owner, artifact.id),
        ).fetchone()
        is_new = replaced < 0
        if is_new and keys >= quotas.page_keys:
            raise StorageError(
                f"This page keeps {keys:,} keys already.",
                "delete some, or keep more under one key.",
            )
        grown = size - max(replaced, 0)
        if count + grown > quotas.page_bytes:
            raise StorageError(
                f"This page keeps {describe_size(count)} of {describe_size(quotas.page_bytes)}.",
                "delete what it needs no more.",
            )
        (whole,) = database.execute(
            "select coalesce(sum(size), 0) from items where owner = ?", (owner,)
        ).fetchone()
        if whole + grown > quotas.owner_bytes:
            raise StorageError(
                f"All pages together keep {describe_size(whole)} of"
                f" {describe_size(quotas.owner_bytes)}.",
                "see which: gvisor-kernel storage list; remove some: gvisor-kernel storage remove.",
            )

    @contextmanager
    def _transaction(self, *, write: bool = True) -> Iterator[sqlite3.Connection]:
        """Open the file, with its write lock if wanted; on an exception nothing is changed."""
        try:
            with closing(self._connect()) as database:
                database.execute("begin immediate" if write else "begin")
                try:
                    yield database
                except BaseException:
                    database.execute("rollback")
                    raise
                database.execute("commit")
        except (sqlite3.Error, OSError, ValueError, RecursionError) as error:
            raise StorageError(
                f"The file {self.path}, in which pages keep data, cannot be used: {error}.",
                "check whether the disk is full; if the file is damaged, move it away: pages begin"
                " with an empty storage then.",
            ) from error

    def _connect(self) -> sqlite3.Connection:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        # by path: below a private store of this user; or a folder that an administrator has named
        with closing_fd(os.open(self.path, flags, self._mode)) as fd:
            status = os.fstat(fd)
            shared = self._mode & 0o077 != 0
            if not stat.S_ISREG(status.st_mode) or not (shared or status.st_uid == os.geteuid()):
                raise PermissionError("it is no file of this user")
            if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != self._mode:
                os.fchmod(fd, self._mode)
        # Opened for each call: no lock outlives it, and several servers of a person use the file.
        database = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        # A file that another program has made must not be trusted to run functions.
        database.execute("pragma trusted_schema = off")
        end = time.monotonic() + WORK_SECONDS
        database.set_progress_handler(lambda: time.monotonic() > end, 100_000)
        while (version := database.execute("pragma user_version").fetchone()[0]) < VERSION:
            try:
                database.execute("pragma journal_mode = wal")
                database.executescript(
                    f"begin immediate;{_SCHEMA}pragma user_version = {VERSION};commit;"
                )
            except sqlite3.OperationalError as error:
                # SQLite does not wait for others that change the mode at the same moment.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
                time.sleep(BUSY_PAUSE)
        if version > VERSION:
            raise ValueError(f"a newer gvisor-kernel has written it (format {version})")


def _check_folder(
    database: sqlite3.Connection,
    quotas: Quotas,
    owner: str,
    folder: str,
    item: tuple[str, str],
    size: int,
) -> None:
    """Check that the pages below a folder, and its notebooks, keep little enough beside ``item``,
    an artifact's key that is to be written."""
    below = f"{folder.rstrip('/')}/"
    keys, count = database.execute(
        "select count(*), coalesce(sum(size), 0) from items where owner = ? and artifact in"
        " (select id from artifacts where path = ? or substr(path, 1, ?) = ?)"
        " and not (artifact = ? and key = ?)",
        (owner, folder, len(below), below, *item),
    ).fetchone()
    if keys >= quotas.folder_keys or count + size > quotas.folder_bytes:
        raise StorageError(
            f"The pages and notebooks of {folder} keep {keys:,} keys and {describe_size(count)}: a"
            f" kernel may add no more to {quotas.folder_keys:,} keys or"
            f" {describe_size(quotas.folder_bytes)}.",
            "delete what is needed no more.",
        )


def _parse_finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(text)
    return number


def _is_json(database: sqlite3.Connection, content: object) -> bool:
    """Return whether ``content`` is JSON in UTF-8, of at most 1,000 levels.

    SQLite looks, without the interpreter lock: to parse a hostile value of five megabytes would
    stop all threads of this process for a third of a second.
    """
    try:
        if not isinstance(content, bytes) or "\0" in content.decode():
            return False
    except UnicodeDecodeError:
        return False
    (valid,) = database.execute("select json_valid(cast(? as text))", (content,)).fetchone()
    return bool(valid)


def _delete(database: sqlite3.Connection, owner: str, artifact: Artifact, key: str) -> bool:
    found = database.execute(
        "delete from items where owner = ? and artifact = ? and key = ?", (owner, artifact.id, key)
    )
    return found.rowcount > 0


def _forget(database: sqlite3.Connection, owner: str, artifact: Artifact) -> None:
    """Remove the path of an artifact that keeps nothing any more: no quota counts paths, and a
    kernel can name any number of pages."""
    of_owner = "select 1 from items where owner = ? and artifact = ?"
    if database.execute(of_owner, (owner, artifact.id)).fetchone() is None:
        database.execute(
            "delete from artifacts where id = ?1"
            " and not exists (select 1 from items where artifact = ?1)",
            (artifact.id,),
        )


FILE = "storage.sqlite3"
SHARED_FILE = "shared.sqlite3"


def artifacts_folder() -> Path:
    """Return the folder of this user's pages' data, which no sandbox is shown."""
    return own_data() / "artifacts"


def open_personal() -> Storage:
    """Return the storage of this user, and make its private folder.

    :raises StorageError: when the folder cannot be made, or is not this user's alone
    """
    folder = artifacts_folder()
    try:
        make_directories(folder.parent, folder)
    except NotPrivate as error:
        raise StorageError(
            f"Pages cannot keep data: {error}", f"make {error.folder} private to this user."
        ) from error
    return Storage(folder / FILE)


def open_shared(folder: Path | None) -> Storage:
    """Return the storage that people share.

    ``folder``: what an administrator has made for the servers of several users, which all may
    write. Without one, what is shared is in this user's own folder.

    :raises StorageError: when the folder is missing, or everybody may write it
    """
    if folder is None:
        return Storage(open_personal().path.with_name(SHARED_FILE))
    try:
        status = folder.lstat()
    except OSError as error:
        raise StorageError(
            f"The folder for data that people share, {folder}, cannot be used: {error.strerror}.",
            "an administrator makes it, for a group: c.GVisorServer.shared_storage.",
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_IWOTH:
        raise StorageError(
            f"{folder} is no folder, or everybody may write it.",
            "give it to a group: chmod 2770.",
        )
    return Storage(folder / SHARED_FILE, mode=0o660)


def find_storages(folder: Path | None) -> list[Storage]:
    """Return this user's storage and the shared one, as far as they have been used.

    :raises StorageError: as for ``open_personal`` and ``open_shared``
    """
    both = (open_personal(), open_shared(folder))
    return [storage for storage in both if storage.path.exists()]
