"""Encrypts what is saved of a kernel, by the setting ``hibernate_key``.

    kernel.json         {"sealed": 1, "key": the setting, "salt": …, "text": …}
    image/NAME.sealed   a file of the image

Each is encrypted by AES-256-GCM in chunks of CHUNK bytes, with a key of its own: HKDF-SHA256 of the
person's key, a random salt, and what the file is. A nonce is the chunk's number and whether it is
the last one. So no chunk can be cut off, moved, or put into another file. The salt and the names
of an image are in kernel.json, whose own key also depends on the sandbox: nothing fits another
kernel, or another state of the same one.

The runtime writes and reads an image as plain files. They are in memory then (``memory_folder``),
and all of an image is compared before anything is started from it. The key is read whenever it is
needed, and kept nowhere.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

from gvisor_kernel.config.validators import HIBERNATE_KEY, MIB
from gvisor_kernel.errors import SecretError, SnapshotError
from gvisor_kernel.host.bounded import call_within
from gvisor_kernel.host.cgroups import own_groups, raised_limit
from gvisor_kernel.host.memory_folder import memory_folder
from gvisor_kernel.host.private_directories import read_file
from gvisor_kernel.host.secrets import read_secret
from gvisor_kernel.runtimes.state.listed import read_memory
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.runtimes.state.saved import MAX_NOTE, NOTE, SEALED
from gvisor_kernel.typed_json import read_json, write_json

# by path: below the state directory, whose parents only this user can change; or in memory

FORMAT, CHUNK, TAG = 1, 64 * 1024, 16
"""Bytes of an encrypted chunk: less than what the C library gives back to the system each time."""
KEY_SECONDS = 20.0
"""Seconds in which the key has to be read: a keyring may ask a person for its password."""
MAKE_KEY = (
    "put the key back, as nothing reads without it what it has saved. A first one is made"
    " by: openssl rand -hex 32"
)
SPARE = 64 * MIB
"""Bytes for which there is room beside what a sandbox's memory says."""


@dataclass(frozen=True)
class SealedNote:
    """kernel.json. ``sealed``: FORMAT. ``key``: the setting. ``text`` is in base64."""

    sealed: int
    key: str
    salt: str
    text: str


@dataclass(frozen=True)
class Seal:
    """The salt and the files of an image that is encrypted; both are empty if it is not."""

    salt: str = ""
    names: tuple[str, ...] = ()


PLAIN = Seal()


class Cipher:
    """Encrypts and decrypts what is saved by one key. All methods block.

    ``source``: of ``hibernate_key``. If that is empty, all is left as it is.
    """

    def __init__(self, source: str) -> None:
        """:raises SnapshotError: when the key cannot be read"""
        self._source = source
        self._key = _read_key(source) if source else b""

    def write_image(self, image: Path, record: Record, write: Callable[[Path], None]) -> Seal:
        """Fill the folder ``image`` with what ``write`` writes into a folder.

        ``record``: of the sandbox, whose processes write it.

        :raises SnapshotError: when there is no room, or what ``write`` raises
        """
        if not self._source:
            write(image)
            return PLAIN
        needed = (read_memory(record) or 0) * 5 // 4 + SPARE
        groups, salt = [Path(group) for group in record.cgroups], secrets.token_hex(32)
        # What the sandbox writes counts as its memory: above its limit it would be killed.
        with raised_limit(groups, needed), memory_folder(needed, groups or own_groups()) as plain:
            write(plain)
            paths = sorted(plain.iterdir())
            for path in paths:
                with path.open("rb") as read, (image / f"{path.name}{SEALED}").open("xb") as made:
                    made.writelines(self._seal(salt, path.name, read))
            return Seal(salt, tuple(path.name for path in paths))

    @contextmanager
    def opened(self, image: Path, seal: Seal) -> Iterator[Path]:
        """Yield a folder with the files of ``image`` as they were written.

        :raises SnapshotError: when they are not what they were, or there is no room
        """
        if not seal.salt:
            yield image
            return
        files = [image / f"{name}{SEALED}" for name in seal.names]
        size = sum(path.stat().st_size for path in files if path.exists())
        # The sandbox reads them into its own memory, which is not of the folder.
        with memory_folder(size, own_groups(), beside=size) as plain:
            try:
                for path, name in zip(files, seal.names, strict=True):
                    with path.open("rb") as read, (plain / name).open("xb") as made:
                        made.writelines(self._open(seal.salt, name, read, image))
            except OSError as error:
                raise SnapshotError(f"{image} cannot be decrypted: {error}.") from error
            yield plain

    def write_note(self, text: str, kernel: str) -> str:
        """Return the content of kernel.json. ``kernel``: the name of the sandbox's directory."""
        if not self._source:
            return text
        salt = secrets.token_hex(32)
        chunks = self._seal(salt, f"{kernel}/{NOTE}", BytesIO(text.encode()))
        found = base64.b64encode(b"".join(chunks)).decode()
        return write_json(SealedNote(FORMAT, self._source, salt, found))

    def read_note(self, note: SealedNote, kernel: str, path: Path) -> bytes:
        """Return what ``write_note`` was given."""
        text = BytesIO(base64.b64decode(note.text, validate=True))
        return b"".join(self._open(note.salt, f"{kernel}/{NOTE}", text, path))

    def _seal(self, salt: str, what: str, read: BufferedIOBase) -> Iterator[bytes]:
        cipher, _ = _make_cipher(self._key, salt, what)
        for number, chunk, is_last in _split(read, CHUNK - TAG):
            yield cipher.encrypt(_make_nonce(number, is_last), chunk, None)

    def _open(self, salt: str, what: str, read: BufferedIOBase, place: Path) -> Iterator[bytes]:
        cipher, failures = _make_cipher(self._key, salt, what)
        for number, chunk, is_last in _split(read, CHUNK):
            try:
                yield cipher.decrypt(_make_nonce(number, is_last), chunk, None)
            except failures as error:
                raise SnapshotError(
                    f"{place} is not what was saved of this kernel with the key {self._source}: the"
                    " key is another one, or a file was changed.",
                    "put the key back with which it was saved.",
                ) from error


def read_note(path: Path, kernel: str) -> tuple[bytes, str]:
    """Return the text of a kernel.json, and the setting ``hibernate_key`` of it.

    ``kernel``: the name of the sandbox's directory.

    :raises OSError, ValueError: when it cannot be read
    :raises SnapshotError: when it cannot be decrypted
    """
    content = read_file(path, 2 * MAX_NOTE)
    if not content.startswith(b'{"sealed"'):
        return content, ""
    note = read_json(content, SealedNote, 2 * MAX_NOTE)
    if note.sealed != FORMAT or not HIBERNATE_KEY.fullmatch(note.key):
        raise ValueError(f"{path} is of another release")
    return Cipher(note.key).read_note(note, kernel, path), note.key


def _read_key(source: str) -> bytes:
    try:
        text = call_within(KEY_SECONDS, lambda: read_secret(source))
    except SecretError as error:
        is_gone = source.startswith("file:") and not os.path.lexists(source.removeprefix("file:"))
        hint = MAKE_KEY if is_gone else error.hint
        raise SnapshotError(
            f"The key of saved kernels cannot be read. {error.fact}", hint
        ) from error
    except TimeoutError as error:
        raise SnapshotError(
            f"The key of saved kernels, {source}, was not read within {KEY_SECONDS:g} s.",
            "unlock the keyring, and try again.",
        ) from error
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise SnapshotError(
            f"The key of saved kernels, {source}, has {len(text)} characters that are not 64"
            " hexadecimal digits.",
            MAKE_KEY,
        )
    return bytes.fromhex(text)


def _make_cipher(key: bytes, salt: str, what: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """Return AES-GCM for one file, and what it raises if that was changed."""
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise SnapshotError(
            "The setting hibernate_key needs the package cryptography, which is not installed"
            " here; nothing is saved without it.",
            "pip install 'gvisor-kernel[encrypt]'",
        ) from None
    info = f"gvisor-kernel saved kernel 1\n{what}".encode()
    own = HKDF(SHA256(), 32, bytes.fromhex(salt), info).derive(key)
    return AESGCM(own), (InvalidTag, ValueError)


def _make_nonce(number: int, is_last: bool) -> bytes:
    return number.to_bytes(11) + bytes([is_last])


def _split(read: BufferedIOBase, size: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield the number of each chunk, the chunk, and whether it is the last one: at least one."""
    number, chunk = 0, read.read(size)
    while following := read.read(size):
        yield number, chunk, False
        number, chunk = number + 1, following
    yield number, chunk, True
