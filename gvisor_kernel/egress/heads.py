"""The head of a request from a sandbox, read strictly. Pure functions.

h11 accepts more than it must, such as a bare line feed or a folded header. Two programs that read
such a head differently can be made to disagree where a request ends (request smuggling). So what is
not plainly HTTP/1.1 is refused here before h11 sees it.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from gvisor_kernel.egress.refusals import BadRequest

MAX_HEAD = 64 * 1024
MAX_HEADERS = 100
END = b"\r\n\r\n"
Headers = tuple[tuple[bytes, bytes], ...]

_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) ([\x21-\x7e]{1,32768}) HTTP/(1\.[01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}):([\t\x20-\x7e\x80-\xff]*)")
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z._-]{1,253})(?::([0-9]{1,5}))?")
_PORTS = {b"http": 80, b"https": 443}
_LENGTH = re.compile(rb"[0-9]{1,15}")
_ONCE = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"expect", b"authorization", b"content-type"}
)
"""Headers that may not come twice: programs differ in which of them they take."""


class Form(enum.Enum):
    """The form of a request's target."""

    ORIGIN = "a path"
    ABSOLUTE = "a URL"
    AUTHORITY = "a host and a port"


@dataclass(frozen=True)
class Head:
    """A request line and headers; the names of the headers are in lower case.

    ``host`` and ``port`` are those of an absolute URL or of a CONNECT, else those of the header
    Host. ``path`` is the path with the query; empty for a CONNECT.
    """

    method: str
    target: bytes
    form: Form
    version: bytes
    headers: Headers
    host: str
    port: int | None
    path: bytes
    length: int | None
    chunked: bool
    is_tls: bool
    """Whether it is an absolute URL of https: TLS is made here, and not in the sandbox."""

    def find(self, name: bytes) -> bytes | None:
        """Return the first value of the header ``name``, which is in lower case."""
        return next((value for key, value in self.headers if key == name), None)


def check_length(received: bytes | bytearray) -> None:
    """Check what there is of a head that is not complete.

    :raises BadRequest: it is too long already
    """
    if len(received) > MAX_HEAD:
        raise BadRequest(f"The head of the request is longer than {MAX_HEAD} bytes", 431)


def parse_head(raw: bytes) -> Head:
    """Return the head in ``raw``, which ends with END.

    :raises BadRequest: it is not HTTP/1.1 or HTTP/1.0, or ambiguous
    """
    check_length(raw)
    if _BARE.search(raw):
        raise BadRequest("The head of the request has a CR or an LF alone")
    first, *lines = raw[: -len(END)].split(b"\r\n")
    if len(lines) > MAX_HEADERS:
        raise BadRequest(f"The request has more than {MAX_HEADERS} headers", 431)
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise BadRequest("The request line is malformed")
    method, target, version = line[1].decode(), line[2], line[3]
    headers = tuple(_parse_header(line) for line in lines)
    _check_repeats(headers)
    values = dict(headers)
    length, chunked = _find_framing(values, version)
    if version == b"1.1" and b"host" not in values:
        raise BadRequest("The request has no header Host")
    is_tls = target[:8].lower() == b"https://"
    form, host, port, path = _parse_target(method, target)
    named = _parse_authority(values[b"host"]) if b"host" in values else None
    if form is Form.ORIGIN:
        host, port = named or ("", None)
    elif named is not None:
        default = None if form is Form.AUTHORITY else 443 if is_tls else 80
        if named[0] != host or (named[1] or default or port) != port:
            raise BadRequest("The header Host names another server than the request line")
    return Head(method, target, form, version, headers, host, port, path, length, chunked, is_tls)


def _parse_header(line: bytes) -> tuple[bytes, bytes]:
    if line[:1] in (b" ", b"\t"):
        raise BadRequest("A header is folded over two lines")
    found = _HEADER.fullmatch(line)
    if found is None:
        raise BadRequest("A header is malformed")
    return found[1].lower(), found[2].strip(b" \t")


def _check_repeats(headers: Headers) -> None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in _ONCE and name in seen:
            raise BadRequest(f"The header {name.decode()} comes twice")
        seen.add(name)


def _find_framing(values: dict[bytes, bytes], version: bytes) -> tuple[int | None, bool]:
    length, coding = values.get(b"content-length"), values.get(b"transfer-encoding")
    if length is not None and coding is not None:
        raise BadRequest("The request has Content-Length and Transfer-Encoding")
    if length is not None and not _LENGTH.fullmatch(length):
        raise BadRequest("Content-Length is not a number")
    if coding is not None and (coding.lower() != b"chunked" or version == b"1.0"):
        raise BadRequest("Transfer-Encoding is not exactly chunked")
    if values.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise BadRequest("Expect is not 100-continue", 417)
    return None if length is None else int(length), coding is not None


def _parse_target(method: str, target: bytes) -> tuple[Form, str, int | None, bytes]:
    if b"#" in target:
        raise BadRequest("The target of the request has a fragment")
    if method == "CONNECT":
        host, port = _parse_authority(target)
        if port is None:
            raise BadRequest("CONNECT does not name a port")
        return Form.AUTHORITY, host, port, b""
    if target.startswith(b"/"):
        return Form.ORIGIN, "", None, target
    scheme, colon, rest = target.partition(b"://")
    if colon and scheme.lower() in _PORTS:
        authority, slash, path = rest.partition(b"/")
        if b"?" in authority:
            raise BadRequest("The target of the request has a query but no path")
        host, port = _parse_authority(authority)
        return Form.ABSOLUTE, host, port or _PORTS[scheme.lower()], slash + path or b"/"
    raise BadRequest("The target of the request is neither a path nor a URL")


def _parse_authority(authority: bytes) -> tuple[str, int | None]:
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        raise BadRequest("The name of a host is malformed")
    port = None if found[2] is None else int(found[2])
    if port is not None and not 0 < port < 65536:
        raise BadRequest("A port is not between 1 and 65535")
    return found[1].decode().lower(), port
