"""The places of pages' data: a person's own file, and the one that people share.

Makes the folders. What is in the files is decided by ``storage``.
"""

from __future__ import annotations

import stat
from pathlib import Path

from platformdirs import user_data_path

from gvisor_kernel.artifacts.storage import Storage
from gvisor_kernel.errors import StorageError
from gvisor_kernel.host.private_directories import NotPrivate, make_directories

FILE = "storage.sqlite3"
SHARED_FILE = "shared.sqlite3"


def artifacts_folder() -> Path:
    """Return the folder of this user's pages' data, which no sandbox is shown."""
    return user_data_path("gvisor-kernel") / "artifacts"


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
