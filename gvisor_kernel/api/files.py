"""Files in a sandbox, beside its kernel, in any language, and those that it has left in outputs.

A sandbox may leave a link to any file of the host there. No function follows one.
"""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, overload

from gvisor_kernel.api.collector import clean_name
from gvisor_kernel.artifacts import outputs
from gvisor_kernel.artifacts.outputs import Listing
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import OutputsError, SandboxError
from gvisor_kernel.host.folders import Opened, open_path
from gvisor_kernel.kernel.sandbox_call import SandboxCall
from gvisor_kernel.link.service_messages import MAX_DATA
from gvisor_kernel.runtimes.mounts.written_folders import read_written
from gvisor_kernel.shown_text import describe_size

PART = MAX_DATA
"""Bytes of a file in one message."""
MAX_READ = 256 * 1024 * 1024
"""Bytes of a file that ``read`` returns, unless a program says more: a sandbox decides its size."""
MAX_ENTRIES = 10_000
MAX_PATH, MAX_NAME, MAX_SIZE = 4096, 255, 2**63
"""Limits of a sandbox's answers: characters of a folder's path and of a name, and a size."""
FILE_SECONDS = 60.0
"""Seconds that one part may take."""
MOVE_SECONDS = 600.0
"""Seconds that a move may take, which copies between file systems."""
KINDS = ("file", "folder", "link", "other")

OpenCall: TypeAlias = Callable[[Mapping[str, object], bytes], Awaitable[SandboxCall]]
"""Asks a sandbox something; see ``AsyncSandbox.open_call``."""


class FileFailed(SandboxError):
    """A file of a sandbox cannot be read or written."""


@dataclass(frozen=True)
class Entry:
    """A file or folder. ``kind``: "file", "folder", "link" or "other". ``modified``: Unix time."""

    name: str
    path: str
    kind: str
    size: int
    modified: float


@dataclass(frozen=True)
class Moved:
    """The result of a move.

    ``is_copied``: the source is still there. ``is_replaced``: a file was. ``is_folder``: it is one.
    """

    is_copied: bool
    is_replaced: bool
    is_folder: bool = False


class AsyncFiles:
    """``sandbox.files``. Paths that are not absolute are below the kernel's folder, /workspace."""

    def __init__(self, open_call: OpenCall) -> None:
        self._open_call = open_call

    @overload
    async def read(
        self, path: str, format: Literal["text"] = "text", *, limit: int = ...
    ) -> str: ...

    @overload
    async def read(self, path: str, format: Literal["bytes"], *, limit: int = ...) -> bytes: ...

    async def read(
        self, path: str, format: Literal["text", "bytes"] = "text", *, limit: int = MAX_READ
    ) -> str | bytes:
        """Return a file's content: text (UTF-8) or bytes.

        :raises FileFailed: it cannot be read, has more than ``limit`` bytes, or is not such text
        """
        parts = [part async for part in self._read_parts(path, limit)]
        content = b"".join(parts)
        if format == "bytes":
            return content
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise FileFailed(
                f"The file {path} is not text in UTF-8.", 'read it with format="bytes".'
            ) from error

    async def read_range(self, path: str, offset: int, size: int) -> tuple[bytes, int]:
        """Return at most ``size`` bytes of a file from ``offset`` on, and the size of the file.

        ``size`` is at most PART.

        :raises FileFailed: it cannot be read
        """
        size = min(size, PART)
        question = {"do": "read", "path": path, "offset": offset, "size": size}
        answer, data = await self._ask(question, f"read {path}")
        total = answer.get("total")
        if type(total) is not int or not 0 <= total < MAX_SIZE or len(data) > size:
            raise FileFailed(f"The sandbox did not answer as it should about {path}.")
        return data, total

    async def _read_parts(self, path: str, limit: int) -> Any:
        size = 0
        while True:
            data, total = await self.read_range(path, size, PART)
            size += len(data)
            if max(size, total) > limit:
                raise FileFailed(
                    f"The file {path} has more than {limit} bytes.", "read it with a larger limit=."
                )
            if not data:
                return
            yield data
            if len(data) < PART:
                return

    async def write(self, path: str, data: str | bytes) -> None:
        """Write a file; folders above it are made, an older file is replaced.

        :raises FileFailed: it cannot be written
        """
        content = data.encode() if isinstance(data, str) else data
        await self._write_parts(
            path, (content[at : at + PART] for at in range(0, max(1, len(content)), PART))
        )

    async def _write_parts(self, path: str, parts: Iterable[bytes]) -> None:
        first = True
        for part in parts:
            question = {"do": "write", "path": path, "first": first}
            await self._ask(question, f"write {path}", part)
            first = False

    async def upload(self, source: str | Path, path: str) -> None:
        """Copy a file of the host into the sandbox.

        :raises FileFailed: it cannot be written
        :raises OSError: the host's file cannot be read
        """
        with Path(source).open("rb") as file:  # by path: a file that the calling program names
            parts = iter(lambda: file.read(PART), b"")
            first = next(parts, b"")
            await self._write_parts(path, _chain(first, parts))

    async def download(self, path: str, target: str | Path, *, limit: int = MAX_READ) -> None:
        """Copy a file of the sandbox to ``target`` on the host, which must not exist yet.

        :raises FileFailed: it cannot be read, or has more than ``limit`` bytes
        :raises OSError: the host's file cannot be written
        """
        # by path: a file that the calling program names; it must not exist
        with Path(target).open("xb") as file:
            try:
                async for part in self._read_parts(path, limit):
                    file.write(part)
            except BaseException:
                Path(target).unlink(missing_ok=True)
                raise

    async def list(self, path: str = ".") -> list[Entry]:
        """Return what is in a folder, by name; at most MAX_ENTRIES.

        :raises FileFailed: it cannot be read, or has more entries
        """
        question = {"do": "list", "path": path, "limit": MAX_ENTRIES}
        answer, _ = await self._ask(question, f"list {path}")
        entries, folder = answer.get("entries"), answer.get("path")
        if answer.get("more"):
            raise FileFailed(f"The folder {path} has more than {MAX_ENTRIES} entries.")
        if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
            raise FileFailed(f"The sandbox did not answer as it should about {path}.")
        if not isinstance(folder, str) or len(folder) > MAX_PATH:
            raise FileFailed(f"The sandbox did not answer as it should about {path}.")
        return sorted((_read_entry(folder, entry) for entry in entries), key=lambda e: e.name)

    async def exists(self, path: str) -> bool:
        """Return whether there is a file or folder of that path."""
        answer, _ = await self._ask({"do": "exists", "path": path}, f"look at {path}")
        return answer.get("exists") is True

    async def make_dir(self, path: str) -> None:
        """Make a folder and those above it; no error if it exists.

        :raises FileFailed: it cannot be made
        """
        await self._ask({"do": "make", "path": path}, f"make {path}")

    async def rename(self, path: str, target: str) -> None:
        """Give a file or folder another path, also on another file system, such as outputs.

        :raises FileFailed: it cannot be renamed
        """
        question = {"do": "rename", "path": path, "target": target}
        await self._ask(question, f"rename {path}")

    async def move(self, path: str, target: str) -> Moved:
        """Move a file or folder, also to another file system, and make folders above the target.

        What cannot be removed from its place, such as uploads, is copied. A file of that name is
        replaced, a folder is not. A move that fails leaves nothing at the target.

        :raises FileFailed: it cannot be moved
        """
        question = {"do": "move", "path": path, "target": target}
        answer, _ = await self._ask(question, f"move {path} to {target}", seconds=MOVE_SECONDS)
        result, size, free = (answer.get(name) for name in ("result", "size", "free"))
        if result == "exists":
            raise FileFailed(
                f"{path} was not moved: there is {target} already, and folders are not replaced.",
                "give another name, or remove that one first.",
            )
        if result == "full" and type(size) is int and type(free) is int:
            room = f"it takes {describe_size(min(size, MAX_SIZE))} or more, and"
            room += f" {describe_size(max(0, min(free, MAX_SIZE)))} are free at {target}"
            raise FileFailed(
                f"{path} was not moved: {room}.", "move a part of it, or make room first."
            )
        if result not in ("moved", "copied"):
            raise FileFailed(f"The sandbox did not answer as it should about {path}.")
        is_replaced, is_folder = (answer.get(name) is True for name in ("replaced", "folder"))
        return Moved(result == "copied", is_replaced, is_folder)

    async def remove(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it.

        :raises FileFailed: it cannot be removed
        """
        await self._ask({"do": "remove", "path": path}, f"remove {path}")

    async def _ask(
        self,
        question: Mapping[str, object],
        what: str,
        data: bytes = b"",
        seconds: float = FILE_SECONDS,
    ) -> tuple[dict[str, Any], bytes]:
        """Ask the sandbox, and return its answer.

        :raises FileFailed: it cannot be done
        :raises SandboxError: the kernel does not run
        """
        call = await self._open_call(question, data)
        try:
            try:
                async with asyncio.timeout(seconds):
                    if question["do"] == "list":
                        answer = await call.receive_list(MAX_ENTRIES)
                    else:
                        answer = await call.receive()
            except (TimeoutError, asyncio.CancelledError):
                with suppress(SandboxError):
                    # no timeout: a step of the bridge's loop
                    await asyncio.shield(call.send({"signal": int(signal.SIGKILL)}))
                raise
        except TimeoutError:
            raise FileFailed(f"The sandbox could not {what} within {seconds:g} s.") from None
        except SandboxError as error:
            raise FileFailed(f"The sandbox could not {what}: {error.fact}") from error
        finally:
            await asyncio.shield(call.close())  # no timeout: a step of the bridge's loop
        if "error" in answer.content:
            reason = clean_name(str(answer.content["error"])[:300])
            raise FileFailed(f"The sandbox could not {what}: {reason}.")
        return answer.content, answer.data


def _chain(first: bytes, rest: Iterable[bytes]) -> Iterable[bytes]:
    yield first
    yield from rest


def _read_entry(folder: str, content: object) -> Entry:
    """Return an entry of a sandbox's answer. Its name never leads out of the folder.

    :raises FileFailed: it is none
    """
    match content:
        case [str(name), str(kind), int(size), int() | float() as modified] if kind in KINDS:
            is_name = 0 < len(name) <= MAX_NAME and name not in (".", "..")
            if is_name and not {"/", "\0"} & set(name) and 0 <= size < MAX_SIZE:
                path = f"{folder.rstrip('/')}/{name}"
                with suppress(OverflowError):
                    if math.isfinite(float(modified)):
                        return Entry(name, path, kind, size, float(modified))
    raise FileFailed("The sandbox did not answer as it should about a folder.")


def list_outputs(folder: str | Path) -> Listing:
    """Return what lies in a folder of outputs: files, and apart from them links and special files.

    :raises OutputsError: when the folder cannot be read
    """
    try:
        with _open(folder) as root:
            return outputs.list_outputs(root, hidden=True)
    except OSError as error:
        raise OutputsError(f"The folder {folder} cannot be read: {error.strerror}.") from error


@contextmanager
def open_output(folder: str | Path, path: str) -> Iterator[IO[bytes]]:
    """Open the regular file at ``path`` in a folder of outputs, for reading.

    ``path`` may come from anybody: it never leads out of the folder.

    :raises OutputsError: when there is none, or a part of the path is a link
    """
    try:
        root = _open(folder)
    except OSError as error:
        raise OutputsError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    with root, outputs.open_output(root, path, hidden=True) as (file, _):
        yield file


def _open(folder: str | Path) -> Opened:
    path = str(Path(folder).expanduser().absolute())
    return open_path(path, read_written(SandboxSpec()).has)
