"""Files of a closed server: those of its folder, by descriptors, without links and hidden ones.

A sandbox may write a part of the folder meanwhile, so what is read, written or moved is opened
below the folder and used by its descriptor (changes/folder.py). Files that programs run by
themselves (changes/autorun.py) are shown, and not written.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from jupyter_core.paths import jupyter_runtime_dir
from jupyter_server.files.handlers import FilesHandler
from jupyter_server.services.contents.filecheckpoints import AsyncGenericFileCheckpoints
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from tornado.web import HTTPError
from traitlets import default

from gvisor_kernel.changes.autorun import find_kind
from gvisor_kernel.changes.folder import look, name_of, open_file, open_parent, put
from gvisor_kernel.host.folders import Opened, open_below, open_real

MAX_READ = 256 * 1024 * 1024
"""Bytes of a file that is read, which takes six times as much memory. A sparse one of any size
takes a kernel nothing."""
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ODD = (None, errno.ENOENT, errno.ENOTDIR)  # of errors that a request's own fields cause
_HIDDEN = re.compile(r"(?:^|/)\.[^/]")


class FolderContents(AsyncLargeFileManager):
    """Contents of one folder."""

    use_atomic_writing = False  # it restores what a kernel may have put beside a file; see below

    @default("checkpoints_class")
    def _default_checkpoints_class(self) -> type[AsyncGenericFileCheckpoints]:
        return PrivateCheckpoints

    @default("files_handler_class")
    def _default_files_handler_class(self) -> type[FilesHandler]:
        return FilesHandler  # asks this manager; the usual one opens paths by itself

    def _get_os_path(self, path: str) -> str:
        """Return the path of a file. Called for whatever is done with one.

        :raises HTTPError: 404 for a hidden file, a link, and what lies behind one
        """
        os_path = str(super()._get_os_path(path))  # type: ignore[no-untyped-call]
        below = self._below(os_path)
        if _HIDDEN.search(below):
            raise HTTPError(404, f"{path} is hidden.")
        try:
            with self._open_root() as root:
                found = look(root, below)
        except OSError as error:
            raise HTTPError(404, f"{path} cannot be opened: {error.strerror}.") from error
        if found is not None and found.type == "other":
            raise HTTPError(404, f"{path} is a link, or no file.")
        return os_path

    def _below(self, os_path: str) -> str:
        return os.path.relpath(os_path, os.path.abspath(self.root_dir))  # noqa: PTH100 - text

    def _open_root(self) -> Opened:
        return open_real(os.path.realpath(self.root_dir))

    @contextmanager
    def _parent(self, os_path: str) -> Iterator[tuple[Opened, str]]:
        """Open the folder that a file is in; yield it and the file's name."""
        below = self._below(os_path)
        with self._open_root() as root, open_parent(root, below) as parent:
            yield parent, name_of(below)

    # -- reading -----------------------------------------------------------------------------------

    @contextmanager
    def open(self, os_path: str, *arguments: Any, **more: Any) -> Iterator[IO[bytes]]:
        """Open a file for reading. Called by the server's own ``_read_file``."""
        with self.perm_to_403(os_path), self._open_root() as root:
            file = open_file(root, self._below(os_path))
        with file:
            content = file.read(MAX_READ + 1)
        if len(content) > MAX_READ:
            raise HTTPError(413, f"It has more than {MAX_READ:,} bytes. Copy it in a terminal.")
        yield io.BytesIO(content)

    async def _dir_model(self, path: str, content: bool = True) -> dict[str, Any]:
        """Return a folder. Links, hidden and special files are left out."""
        model: dict[str, Any] = await super()._dir_model(path, content=False)  # type: ignore[no-untyped-call]
        if content:
            with self._open_root() as root, open_below(root, path.strip("/") or ".") as folder:
                names = os.listdir(f"/proc/self/fd/{folder.fd}")  # noqa: PTH208
            model |= {"content": [], "format": "json"}
            for name in filter(self.should_list, names):
                with suppress(HTTPError, OSError):
                    entry = await self.get(f"{path}/{name}", content=False)  # type: ignore[no-untyped-call]
                    model["content"].append(entry)
        return model

    # -- writing -----------------------------------------------------------------------------------

    async def save(self, model: dict[str, Any], path: str = "") -> Any:
        """Save a file. Called for uploads, new files and copies, too."""
        refuse_autorun(path, is_folder=model.get("type") == "directory")
        try:
            return await super().save(model, path)  # type: ignore[no-untyped-call]
        except HTTPError as error:
            if error.status_code == 500 and getattr(error.__cause__, "errno", None) in _ODD:
                raise HTTPError(400, error.log_message) from error
            raise

    @contextmanager
    def atomic_writing(
        self, os_path: str, text: bool = True, **more: Any
    ) -> Iterator[io.StringIO | io.BytesIO]:
        """Write a file anew and put it in the place of the old one."""
        new = io.StringIO() if text else io.BytesIO()
        yield new
        content = new.getvalue()
        data = io.BytesIO(content.encode() if isinstance(content, str) else content)
        below = self._below(os_path)
        with self.perm_to_403(os_path), self._open_root() as root:
            put(root, below, data, expected=look(root, below))

    async def _save_large_file(self, os_path: str, content: str, format: str) -> None:
        """Add a part of a large file, whose first part was saved as any file."""
        data = content.encode() if format == "text" else base64.b64decode(content.encode("ascii"))
        with (
            self.perm_to_403(os_path),
            self._parent(os_path) as (folder, name),
            os.fdopen(os.open(name, _APPEND, dir_fd=folder.fd), "ab") as file,
        ):
            file.write(data)

    async def _save_directory(self, os_path: str, model: Any, path: str = "") -> None:
        """Make a folder, unless there is one."""
        with self.perm_to_403(), self._parent(os_path) as (folder, name), suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder.fd)

    async def rename_file(self, old_path: str, new_path: str) -> None:
        """Move a file or a folder, if it does not run by itself at its new place."""
        old, new = (self._get_os_path(path.strip("/")) for path in (old_path, new_path))
        if old == new:
            return
        with self._open_root() as root:
            found, other = (look(root, self._below(path)) for path in (old, new))
        if found is None:
            raise HTTPError(404, f"File or directory does not exist: {old_path}")
        refuse_autorun(new_path, is_folder=found.type == "folder")
        if other is not None:
            raise HTTPError(409, f"File already exists: {new_path}")
        with self.perm_to_403(), self._parent(old) as above, self._parent(new) as below:
            os.rename(above[1], below[1], src_dir_fd=above[0].fd, dst_dir_fd=below[0].fd)

    async def delete_file(self, path: str) -> None:
        """Move a file or a folder to the trash, but not this one, which has hidden files."""
        if self._below(self._get_os_path(path)) == ".":
            raise HTTPError(
                400, "This folder is not deleted here. Delete it in a terminal of yours."
            )
        await super().delete_file(path)  # type: ignore[no-untyped-call]

    async def check_folder_size(self, path: str) -> None:
        """Refuse to copy a folder: a copy would follow links that a kernel has put into it."""
        raise HTTPError(403, "Folders are not copied here. Copy it in a terminal of yours.")


class PrivateCheckpoints(AsyncGenericFileCheckpoints):
    """Checkpoints in a private folder that ends with the server.

    Beside the files, where Jupyter keeps them, a kernel could put a link in their place.
    """

    @default("root_dir")
    def _default_root_dir(self) -> str:
        server = getattr(self.parent, "parent", None)
        above = getattr(server, "runtime_dir", None) or jupyter_runtime_dir()
        self._folder = tempfile.TemporaryDirectory(prefix="gvisor-checkpoints-", dir=above)
        return self._folder.name

    def checkpoint_path(self, checkpoint_id: str, path: str) -> str:
        """Return the place of a checkpoint, which is below no folder of the files' names."""
        name = hashlib.sha256(path.strip("/").encode()).hexdigest()
        return os.path.join(self.root_dir, f"{name}-{checkpoint_id}")  # noqa: PTH118


def refuse_autorun(path: str, *, is_folder: bool = False) -> None:
    """:raises HTTPError: 403 for the path of a file that may run without being opened, or hidden"""
    path = path.strip("/")
    if any(part.startswith(".") for part in path.split("/")):
        raise HTTPError(403, f"{path} is hidden, and not written here.")
    for name in (path, f"{path}/__init__.py") if is_folder else (path,):
        if kind := find_kind(name):
            raise HTTPError(
                403, f"{path} is not written here: {kind.reason}. Write it with a program of yours."
            )
