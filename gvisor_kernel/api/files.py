"""Files in a sandbox: read, written and listed by its kernel."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from gvisor_kernel.api.programs import (
    change,
    list_folder,
    make_code,
    read_part,
    write_part,
)
from gvisor_kernel.api.shell import Answers, require_python
from gvisor_kernel.errors import SandboxError

if TYPE_CHECKING:
    from gvisor_kernel.api.async_sandbox import AsyncSandbox

PART = 1024 * 1024
"""Bytes of a file in one message."""
MAX_READ = 256 * 1024 * 1024
"""Bytes of a file that ``read`` returns, unless a program says more: a sandbox decides its size."""
MAX_ENTRIES = 10_000
FILE_SECONDS = 60.0
"""How long one part may take, after earlier runs of the kernel have ended."""
KINDS = ("file", "folder", "link", "other")


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


class AsyncFiles:
    """``sandbox.files``. Paths that are not absolute are below the kernel's folder, /workspace."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        self._sandbox = sandbox

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
        answer = await self._ask(read_part, f"read {path}", path=path, offset=offset, size=size)
        try:
            data, total = base64.b64decode(answer["data"], validate=True), answer["total"]
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise FileFailed(f"The sandbox did not answer as it should about {path}.") from error
        if len(data) > size or not isinstance(total, int) or isinstance(total, bool) or total < 0:
            raise FileFailed(f"The sandbox did not answer as it should about {path}.")
        return data, total

    async def _read_parts(self, path: str, limit: int) -> Any:
        size = 0
        while True:
            data, _ = await self.read_range(path, size, PART)
            size += len(data)
            if size > limit:
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
            text = base64.b64encode(part).decode()
            await self._ask(write_part, f"write {path}", path=path, data=text, first=first)
            first = False

    async def upload(self, source: str | Path, path: str) -> None:
        """Copy a file of the host into the sandbox.

        :raises FileFailed: it cannot be written
        :raises OSError: the host's file cannot be read
        """
        with Path(source).open("rb") as file:
            parts = iter(lambda: file.read(PART), b"")
            first = next(parts, b"")
            await self._write_parts(path, _chain(first, parts))

    async def download(self, path: str, target: str | Path, *, limit: int = MAX_READ) -> None:
        """Copy a file of the sandbox to ``target`` on the host, which must not exist yet.

        :raises FileFailed: it cannot be read, or has more than ``limit`` bytes
        :raises OSError: the host's file cannot be written
        """
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
        answer = await self._ask(list_folder, f"list {path}", path=path, limit=MAX_ENTRIES)
        entries, folder = answer.get("entries"), answer.get("path")
        if answer.get("more"):
            raise FileFailed(f"The folder {path} has more than {MAX_ENTRIES} entries.")
        if not isinstance(entries, list) or not isinstance(folder, str):
            raise FileFailed(f"The sandbox did not answer as it should about {path}.")
        return sorted((_read_entry(folder, entry) for entry in entries), key=lambda e: e.name)

    async def exists(self, path: str) -> bool:
        """Return whether there is a file or folder of that path."""
        answer = await self._ask(change, f"look at {path}", path=path, action="exists", target="")
        return answer.get("exists") is True

    async def make_dir(self, path: str) -> None:
        """Make a folder and those above it; no error if it exists.

        :raises FileFailed: it cannot be made
        """
        await self._ask(change, f"make {path}", path=path, action="make", target="")

    async def rename(self, path: str, target: str) -> None:
        """Give a file or folder another path, also on another file system, such as outputs.

        :raises FileFailed: it cannot be renamed
        """
        await self._ask(change, f"rename {path}", path=path, action="rename", target=target)

    async def remove(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it.

        :raises FileFailed: it cannot be removed
        """
        await self._ask(change, f"remove {path}", path=path, action="remove", target="")

    async def _ask(self, program: Any, what: str, **arguments: Any) -> dict[str, Any]:
        """Run a program of ``programs.py`` in the kernel, and return its answer.

        :raises FileFailed: it fails
        """
        require_python(self._sandbox, "files")
        answers = Answers()
        execution = await self._sandbox._execute(
            make_code(program), FILE_SECONDS, answers.take, 0, arguments=arguments
        )
        if execution.error is not None:
            raise FileFailed(f"The sandbox could not {what}: {execution.error}.")
        answer = answers.last
        if not isinstance(answer, dict):
            raise FileFailed(f"The sandbox could not {what}: it gave no answer.")
        if "error" in answer:
            raise FileFailed(f"The sandbox could not {what}: {str(answer['error'])[:300]}.")
        return answer


def _chain(first: bytes, rest: Iterable[bytes]) -> Iterable[bytes]:
    yield first
    yield from rest


def _read_entry(folder: str, content: object) -> Entry:
    """Return an entry of a sandbox's answer. Its name never leads out of the folder.

    :raises FileFailed: it is none
    """
    match content:
        case [str(name), str(kind), int(size), int() | float() as modified] if kind in KINDS:
            if name not in ("", ".", "..") and not {"/", "\0"} & set(name):
                path = f"{folder.rstrip('/')}/{name}"
                with suppress(OverflowError):
                    return Entry(name, path, kind, size, float(modified))
    raise FileFailed("The sandbox did not answer as it should about a folder.")
