"""Matches paths and hosts with patterns. Pure functions on raw text; nothing is normalised.

A server that receives a path may read it in another way than this module does: it decodes twice,
joins ``//``, cuts at ``;``, turns a backslash into a slash. So a path that has more than one
meaning is refused instead of being rewritten, and a pattern is compared with the path as it was
sent. The same holds for names of hosts.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Sequence
from urllib.parse import unquote_to_bytes

MAX_TARGET = 16 * 1024
"""Bytes of a request's target. Servers accept 8 KiB and more."""
MAX_HOST = 253
"""Characters of a host's name: the limit of DNS."""

OVERRIDING_HEADERS = frozenset(
    {
        *(b"x-http-method", b"x-http-method-override", b"x-method-override"),
        *(b"x-original-url", b"x-original-uri", b"x-rewrite-url", b"x-rewrite-uri"),
    }
)
"""Headers (lower case) by which a server replaces the method or path that was checked. They must
not be passed on; compare them with ``fold_header``."""

MAX_PARTS = 32
"""Parts of a pattern: each part of a path may have to be compared with each of them."""

_TARGET = re.compile(rb"[!-~]+")
_ODD = re.compile(rb"[^a-z0-9]")
_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ENCODED = re.compile(rb"%(2f|5c|25|3b|3f|23|[01][0-9a-f]|7f)", re.IGNORECASE)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


def fold_header(name: bytes) -> bytes:
    """Return the name of a header as servers may read it: in lower case, and with ``-`` for each
    character that is neither a letter nor a digit.

    CGI and WSGI make ``X_Key`` and ``X-Key`` the same; some servers also ``X.Key`` and ``X~Key``.
    """
    return _ODD.sub(b"-", name.lower())


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Split a target in origin form into its path and its query, which begins with ``?`` or is
    empty."""
    path, mark, query = target.partition(b"?")
    return path, mark + query


def find_target_fault(target: bytes) -> str | None:
    """Return why a request's target (path and query) is refused, whatever the patterns are.

    None if it has one meaning only: the text continues "the path …".
    """
    if len(target) > MAX_TARGET:
        return f"is longer than {MAX_TARGET} bytes"
    if not target.startswith(b"/"):
        return 'does not begin with "/"'
    if not _TARGET.fullmatch(target):
        return "contains a space, a control character, or a character that is not ASCII"
    if b"#" in target:
        return 'contains "#"'
    return find_path_fault(split_target(target)[0])


def find_path_fault(path: bytes) -> str | None:
    """Return why servers may read ``path`` in different ways; None if it has one meaning.

    ``path`` is without a query. The text continues "the path …".
    """
    if not path.startswith(b"/"):
        return 'does not begin with "/"'
    if not _TARGET.fullmatch(path) or b"?" in path or b"#" in path:
        return "contains a space, a control character, or a character that is not ASCII"
    for mark, name in ((b"\\", "a backslash"), (b";", '";"'), (b"//", 'an empty part, "//"')):
        if mark in path:
            return f"contains {name}"
    if _ESCAPE.search(path):
        return 'contains "%" without two hexadecimal digits'
    encoded = _ENCODED.search(path)
    if encoded:
        return f'contains "{encoded[0].decode()}"'
    for part in path.split(b"/"):
        fault = _find_part_fault(part)
        if fault:
            return fault
    return None


def _find_part_fault(part: bytes) -> str | None:
    try:
        text = unquote_to_bytes(part).decode()
    except UnicodeDecodeError:  # an overlong form of "/" or "." is not UTF-8 either
        return "contains an encoded character that is not UTF-8"
    # Each by itself: many marks on one letter would be compared with each other.
    folded = "".join(unicodedata.normalize("NFKC", char) for char in text)
    if folded and not folded.strip(". "):
        return f'contains the part "{part.decode()}"'
    if folded != text and any(mark in folded for mark in "/\\%;?#"):
        return "contains a character that some servers replace by a separator"
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        return "contains an encoded control character"
    return None


def is_allowed(path: bytes, patterns: Iterable[str]) -> bool:
    """Return whether a raw path, without query, has one meaning and matches one of ``patterns``.

    A pattern is compared part by part. ``**`` stands for any number of parts, also none; ``*`` for
    one part that is not empty, or for any characters within one.
    """
    if find_path_fault(path) is not None:
        return False
    parts = path.decode("ascii").split("/")[1:]
    return any(_parts_match(parts, pattern.split("/")[1:]) for pattern in patterns)


def _part_matches(part: str, pattern: str) -> bool:
    """Match one part. Each piece between two ``*`` is taken where it comes first: the time is
    bounded by the lengths of both, whatever they are."""
    if "*" not in pattern:
        return part == pattern
    if pattern == "*":
        return part != ""
    first, *middle, last = pattern.split("*")
    at, end = len(first), len(part) - len(last)
    if at > end or not part.startswith(first) or not part.endswith(last):
        return False
    for piece in middle:
        at = part.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def _parts_match(parts: Iterable[str], pattern: Sequence[str]) -> bool:
    """Match part by part, without going back: bit i of ``found`` says whether the pattern's first i
    parts match all that came so far."""
    any_number = sum(1 << i for i, wanted in enumerate(pattern) if wanted == "**")
    fitting: dict[str, int] = {}
    found = _skip(1, any_number)
    for part in parts:
        if part not in fitting:
            fitting[part] = sum(
                1 << i
                for i, wanted in enumerate(pattern)
                if wanted != "**" and _part_matches(part, wanted)
            )
        found = _skip((found & fitting[part]) << 1 | found & any_number, any_number)
        if not found:
            return False
    return bool(found >> len(pattern))


def _skip(found: int, any_number: int) -> int:
    """Add to ``found`` what follows a ``**``, which may stand for nothing."""
    while (more := found | (found & any_number) << 1) != found:
        found = more
    return found


def find_pattern_fault(pattern: str) -> str | None:
    """Return why ``pattern`` cannot be a pattern for paths; None if it can."""
    if not pattern.isascii() or not pattern.startswith("/"):
        return 'does not begin with "/", or is not ASCII'
    parts = pattern.split("/")[1:]
    if len(parts) > MAX_PARTS:
        return f"has more than {MAX_PARTS} parts"
    for part in parts:
        if "**" in part and part != "**":
            return 'has "**" beside other characters of a part'
    return find_path_fault(pattern.replace("*", "x").encode())


# -- hosts -----------------------------------------------------------------------------------------


def is_host_name(text: str) -> bool:
    """Return whether ``text`` is a name for DNS, in lower case and without a final dot.

    A name whose last part is a number, such as ``0x7f.1`` or ``2130706433``, is none: resolvers
    read it as an address.
    """
    labels = text.split(".")
    return (
        0 < len(text) <= MAX_HOST
        and all(_LABEL.fullmatch(label) for label in labels)
        and not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1])
    )


def is_address(text: str) -> bool:
    """Return whether ``text`` is an address in its one usual form: no octal, hexadecimal or short
    form, no scope."""
    try:
        return "%" not in text and str(ipaddress.ip_address(text)) == text
    except ValueError:
        return False


def split_authority(authority: str) -> tuple[str, int] | None:
    """Split ``host:port`` or ``[address]:port``, as CONNECT has it. The host comes in lower case.

    None unless the host is a name or an address in its usual form, and the port a plain number.
    """
    host, _, port = authority.rpartition(":")
    if not authority.isascii() or not _PORT.fullmatch(port) or int(port) > 65535:
        return None
    host = host.lower()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        return (host, int(port)) if ":" in host and is_address(host) else None
    if ":" in host or not (is_host_name(host) or is_address(host)):
        return None
    return host, int(port)


def is_host_pattern(pattern: str) -> bool:
    """Return whether ``pattern`` can be one for hosts: ``host:port``, or ``*.`` before it.

    ``*.`` stands before names of two parts or more only: ``*.example.org:443``.
    """
    rest = pattern.removeprefix("*.")
    found = split_authority(rest)
    if found is None or pattern != pattern.lower():
        return False
    return rest == pattern or (is_host_name(found[0]) and "." in found[0])


def is_host_allowed(host: str, port: int, patterns: Iterable[str]) -> bool:
    """Return whether ``host`` and ``port``, as ``split_authority`` returns them, are in the list.

    An address is allowed only if the list has that address itself.
    """
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    for pattern in patterns:
        if pattern == shown:
            return True
        if pattern.startswith("*.") and is_host_name(host) and shown.endswith(pattern[1:]):
            return True
    return False
