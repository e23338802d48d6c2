"""Files of a closed server: those of its folder, by descriptors, without links and hidden ones.

A sandbox may write a part of the folder meanwhile, so what is read, written or moved is opened
below the folder and used by its descriptor (host/folders.py). Files that programs run by themselves
(changes/autorun.py) are shown, and not written.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import stat
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
from gvisor_kernel.host.folders import Opened, open_below, open_real

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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
        parts = self._relative(os_path).split("/")
        if parts != ["."] and any(part.startswith(".") for part in parts):
            raise HTTPError(404, f"{path} is hidden.")
        try:
            with self._open_root() as root:
                try:
                    open_below(root, "/".join(parts)).close()
                except FileNotFoundError:  # it may be made there
                    open_below(root, "/".join(parts[:-1]) or ".").close()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            pass  # said by whoever opens it
        except OSError as error:
            raise HTTPError(404, f"{path} is a link, or lies behind one.") from error
        return os_path

    def _relative(self, os_path: str) -> str:
        return os.path.relpath(os_path, os.path.abspath(self.root_dir))  # noqa: PTH100 - text

    def _open_root(self) -> Opened:
        return open_real(os.path.realpath(self.root_dir))

    def _open_parent(self, os_path: str) -> Opened:
        """Open the folder that a file is in; :raises OSError: when there is a link on the way."""
        with self._open_root() as root:
            return open_below(root, os.path.dirname(self._relative(os_path)) or ".")  # noqa: PTH120

    # -- reading -----------------------------------------------------------------------------------

    @contextmanager
    def open(self, os_path: str, *arguments: Any, **more: Any) -> Iterator[IO[bytes]]:
        """Open a file for reading. Called by the server's own ``_read_file``."""
        with (
            self.perm_to_403(os_path),
            self._by_descriptor(os_path, _READ) as fd,
            os.fdopen(os.dup(fd), "rb") as file,
        ):
            yield file

    @contextmanager
    def _by_descriptor(self, os_path: str, flags: int) -> Iterator[int]:
        with self._open_parent(os_path) as folder:
            fd = os.open(os.path.basename(os_path), flags, dir_fd=folder.fd)  # noqa: PTH119
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise HTTPError(400, "This is no regular file.")
            yield fd
        finally:
            os.close(fd)

    async def _dir_model(self, path: str, content: bool = True) -> dict[str, Any]:
        """Return a folder. Links, hidden and special files are left out."""
        model: dict[str, Any] = await super()._dir_model(path, content=False)  # type: ignore[no-untyped-call]
        if content:
            below = path.strip("/") or "."
            with self._open_root() as root, open_below(root, below) as folder:
                fd = folder.read()
            try:
                names = os.listdir(fd)  # noqa: PTH208
            finally:
                os.close(fd)
            model["content"], model["format"] = [], "json"
            for name in filter(self.should_list, names):
                with suppress(HTTPError, OSError):
                    entry = await self.get(f"{path}/{name}", content=False)  # type: ignore[no-untyped-call]
                    model["content"].append(entry)
        return model

    # -- writing -----------------------------------------------------------------------------------

    async def save(self, model: dict[str, Any], path: str = "") -> Any:
        """Save a file. Called for uploads, new files and copies, too."""
        refuse_autorun(path, is_folder=model.get("type") == "directory")
        return await super().save(model, path)  # type: ignore[no-untyped-call]

    @contextmanager
    def atomic_writing(self, os_path: str, *arguments: Any, **more: Any) -> Iterator[IO[Any]]:
        """Write a file anew and put it in the place of the old one."""
        name = os.path.basename(os_path)  # noqa: PTH119
        new = f".~{secrets.token_hex(8)}"
        with self.perm_to_403(os_path), self._open_parent(os_path) as folder:
            old = None
            with suppress(FileNotFoundError):
                old = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            fd = os.open(new, _NEW, 0o666, dir_fd=folder.fd)
            is_text = more.get("text", True)
            try:
                with os.fdopen(
                    fd, "w" if is_text else "wb", encoding="utf-8" if is_text else None
                ) as file:
                    yield file
                    file.flush()
                    if old is not None and stat.S_ISREG(old.st_mode):
                        with suppress(PermissionError):
                            os.fchown(fd, old.st_uid, old.st_gid)
                        os.fchmod(fd, old.st_mode & 0o777)
                    os.fsync(fd)
                os.replace(new, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
            except BaseException:
                with suppress(OSError):
                    os.unlink(new, dir_fd=folder.fd)
                raise

    async def _save_large_file(self, os_path: str, content: str, format: str) -> None:
        """Add a part of a large file, whose first part was saved as any file."""
        data = content.encode() if format == "text" else base64.b64decode(content.encode("ascii"))
        with (
            self.perm_to_403(os_path),
            self._by_descriptor(os_path, _APPEND) as fd,
            os.fdopen(os.dup(fd), "ab") as file,
        ):
            file.write(data)

    async def _save_directory(self, os_path: str, model: Any, path: str = "") -> None:
        """Make a folder, unless there is one."""
        name = os.path.basename(os_path)  # noqa: PTH119
        with self.perm_to_403(), self._open_parent(os_path) as folder, suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder.fd)

    async def rename_file(self, old_path: str, new_path: str) -> None:
        """Move a file or a folder, if it does not run by itself at its new place."""
        old_path, new_path = old_path.strip("/"), new_path.strip("/")
        if old_path == new_path:
            return
        old, new = self._get_os_path(old_path), self._get_os_path(new_path)
        names = os.path.basename(old), os.path.basename(new)  # noqa: PTH119
        with self.perm_to_403(), self._open_parent(old) as above, self._open_parent(new) as below:
            try:
                status = os.stat(names[0], dir_fd=above.fd, follow_symlinks=False)
            except FileNotFoundError:
                raise HTTPError(404, f"File or directory does not exist: {old_path}") from None
            refuse_autorun(new_path, is_folder=stat.S_ISDIR(status.st_mode))
            with suppress(FileNotFoundError):
                os.stat(names[1], dir_fd=below.fd, follow_symlinks=False)
                raise HTTPError(409, f"File already exists: {new_path}")
            os.rename(*names, src_dir_fd=above.fd, dst_dir_fd=below.fd)

    async def check_folder_size(self, path: str) -> None:
        """Refuse to copy a folder: a copy would follow links that a kernel has put into it."""
        raise HTTPError(403, "Folders are not copied here. Copy it in a terminal of yours.")


class PrivateCheckpoints(AsyncGenericFileCheckpoints):
    """Checkpoints in a private folder that ends with the server.

    Beside the files, where Jupyter keeps them, a kernel could put a link in their place.
    """

    _folder: tempfile.TemporaryDirectory[str] | None = None

    @default("root_dir")
    def _default_root_dir(self) -> str:
        application = getattr(self.parent, "parent", None)
        above = getattr(application, "runtime_dir", None) or jupyter_runtime_dir()
        folder = tempfile.TemporaryDirectory(prefix="gvisor-checkpoints-", dir=above)
        self._folder = folder
        return folder.name

    def checkpoint_path(self, checkpoint_id: str, path: str) -> str:
        """Return the place of a checkpoint."""
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
