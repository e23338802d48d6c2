"""Items that a page may keep: keys, values, and the artifact of both. Pure functions.

Keys and values come from a page or a kernel. An error says which rule they break.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gvisor_kernel.errors import StorageError

MAX_KEY = 199
"""Characters of a key."""
MAX_VALUE = 5 * 1024 * 1024 - 1
"""Bytes of a value in UTF-8: of the text itself, or of its JSON."""
MAX_DEPTH = 100
"""Levels of lists and objects in a value."""

_NOT_IN_KEYS = re.compile(r"""[\s/\\'"]""")
_UNSEEN_CATEGORIES = ("Cc", "Cf", "Cs", "Co")
"""Control and format characters, halves of characters, characters for private use."""
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufdd0-\ufdef\ufe00-\ufe0f\uffa0"
    "\ufff0-\uffff\U000e0000-\U000e0fff]"
)
"""Other characters that nobody sees, and those that will never be any. Not all that are unassigned:
a later Unicode has letters there."""
_JOINED = re.compile(
    "(?<=[^\0-\x7f\u200c\u200d\ufe0e\ufe0f])"
    "(?:[\ufe0e\ufe0f]?[\u200c\u200d](?=[^\0-\x7f\u200c\u200d\ufe0e\ufe0f])|[\ufe0e\ufe0f])"
)
"""Characters that Persian words and families of emoji need: a joiner between two characters beyond
ASCII, and a mark of how an emoji looks."""

Scope = Literal["personal", "shared"]


@dataclass(frozen=True)
class Artifact:
    """A page that keeps data. Each page of an outputs folder is an artifact of its own."""

    id: str
    path: str
    """The page's path, for people. Nothing is opened by it."""

    @staticmethod
    def of_page(outputs: Path, path: str) -> Artifact:
        """Return the artifact of the page at ``path``, relative, below an outputs folder.

        The folder's real path and the page's name identify it. So its data are found again by
        another kernel and another server, and whoever moves the page begins anew. ``outputs`` is
        the path without links at which the folder was opened. It is not looked at again: a kernel
        that has put a link in its place since would make its page another one.
        """
        whole = str(Path(outputs, path))
        digest = hashlib.sha256(os.fsencode(whole)).hexdigest()
        return Artifact(digest[:32], whole)

    @staticmethod
    def of_notebooks(outputs: Path) -> Artifact:
        """Return the artifact of the notebooks that write to an outputs folder.

        No page can be it: it is told from a page at the same path. ``outputs`` as for pages.
        """
        whole = str(outputs)
        digest = hashlib.sha256(b"notebook:" + os.fsencode(whole)).hexdigest()
        return Artifact(digest[:32], whole)


def check_key(key: object) -> str:
    """Return a key.

    :raises StorageError: for one that is none
    """
    if not isinstance(key, str):
        raise StorageError("A key of the storage is a text.")
    if not key:
        raise StorageError("A key of the storage is empty.", "give it a name.")
    if len(key) > MAX_KEY:
        raise StorageError(
            f"A key of the storage has {len(key)} characters.", f"use {MAX_KEY} or fewer."
        )
    found = _NOT_IN_KEYS.search(key)
    if found:
        raise StorageError(
            f"A key of the storage has the character {found[0]!r}.",
            "use no whitespace, no / and no \\, and no quotes.",
        )
    unseen = _find_unseen(key)
    if unseen:
        raise StorageError(
            f"A key of the storage has the character U+{ord(unseen):04X}, which nobody sees.",
            "use no control characters and none that are invisible or turn others round.",
        )
    return key


def _find_unseen(key: str) -> str:
    """Return a character by which a key would look like another one; "" if there is none."""
    rest = _JOINED.sub("", key)
    return next(
        (
            letter
            for letter in rest
            if unicodedata.category(letter) in _UNSEEN_CATEGORIES
            or _UNSEEN.match(letter)
            or ord(letter) & 0xFFFE == 0xFFFE
        ),
        "",
    )


def check_prefix(prefix: object) -> str:
    """Return the beginning of keys, which may be empty.

    :raises StorageError: when no key begins so
    """
    return "" if prefix == "" else check_key(prefix)


def encode_value(value: Any) -> bytes:
    """Return a value as JSON in UTF-8.

    :raises StorageError: when it is too large, or no text or JSON
    """
    check_depth(value)
    try:
        encoded = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        size = len(value.encode()) if isinstance(value, str) else len(encoded)
    except UnicodeEncodeError as error:
        raise StorageError(
            "A value of the storage has half a character (a lone surrogate)."
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise no_json() from error
    check_size(size)
    return encoded


def encode_json(text: object) -> bytes:
    """Return a value that is JSON already, in UTF-8; ``Storage.set_json`` looks whether it is.

    :raises StorageError: when it is too large, or no text
    """
    if not isinstance(text, str):
        raise no_json()
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise no_json() from error
    # Of a text neither the quotes count nor what escapes its characters.
    escapes = content.count(b"\\") - content.count(b"\\\\") + 2
    check_size(len(content) - escapes * text.startswith('"'))
    return content


def check_size(size: int) -> None:
    """:raises StorageError: when a value of ``size`` bytes is too large"""
    if size > MAX_VALUE:
        raise StorageError(
            f"A value of the storage has {size:,} bytes.",
            f"keep it below {MAX_VALUE + 1:,}: split it, or write a file.",
        )


def no_json() -> StorageError:
    """Return the error for a value that is none."""
    return StorageError(
        "A value of the storage is neither a text nor JSON.",
        "use texts, numbers that are finite, true, false, null, lists and objects.",
    )


def check_depth(value: Any) -> None:
    """:raises StorageError: when a value has more than MAX_DEPTH levels"""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            part
            for whole in level
            if isinstance(whole, (dict, list, tuple))
            for part in (whole.values() if isinstance(whole, dict) else whole)
        ]
        if not level:
            return
    raise StorageError(f"A value of the storage has more than {MAX_DEPTH} levels.")
