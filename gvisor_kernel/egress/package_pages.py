"""Reads what an index says about a package, and writes it for pip, uv and npm. No I/O.

An index is not trusted with more than it needs: its page is parsed within bounds, only what pip, uv
and npm use is kept, and what a sandbox gets is written anew. A sandbox never sees the address of a
file upstream, which may have a credential in it: it gets the file's number in a table that is kept
with the page.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import mmap
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from gvisor_kernel.strict_json import JsonError, parse_json

SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"
SIMPLE_HTML = "application/vnd.pypi.simple.v1+html"
ACCEPT_SIMPLE = f"{SIMPLE_JSON}, {SIMPLE_HTML};q=0.2, text/html;q=0.1"
NPM_ABBREVIATED = "application/vnd.npm.install-v1+json"

MAX_PAGE = 64 * 1024 * 1024
"""Bytes of a page. The largest on PyPI have 20 MiB, packuments of npm 50 MiB."""
MAX_FILES = 100_000
MAX_VALUE = 4096
"""Characters of an address or a value of a page."""
MAX_LINE = 16 * 1024
"""Bytes of a file in the table: its address, its name and some digests."""

MAX_FOOTER = 64 * 1024
"""Bytes at the end of a page that say what it is."""
FOOTER_DIGITS = 8

ALGORITHMS = {"sha256": 64, "sha512": 128, "sha384": 96, "sha224": 56, "sha1": 40, "md5": 32}
"""Algorithms, and how many digits their digests have."""
STRONG = ("sha256", "sha512", "sha384")
"""Algorithms for which nobody can make two files of one digest."""
_DIGITS = re.compile(r"[0-9a-f]+")
_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!~-]{0,254}")
_PROJECT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,198}[A-Za-z0-9])?")
_NPM_NAME = re.compile(r"(?:@[a-z0-9~-][a-z0-9._~-]{0,100}/)?[A-Za-z0-9~-][A-Za-z0-9._~-]{0,213}")


Buffer = bytes | memoryview


class PageError(ValueError):
    """A page is not what an index answers, or exceeds a bound. The text has nothing of the page."""


@dataclass(frozen=True)
class File:
    """A file of a package. ``url`` is where the index has it; a sandbox does not learn it.

    ``metadata``: the hashes of the file's metadata (PEP 658); None if there is none to be had.
    ``rest``: other fields of PEP 691 that are passed on, such as ``requires-python``.
    ``index``: the URL of the index that has named it. ``number``: its place in the page's table.
    """

    filename: str
    url: str
    hashes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)
    index: str = ""
    number: int = 0


Address = Callable[[File], str]
"""Returns where a sandbox gets a file."""


def normalize_project(name: str) -> str | None:
    """Return the normalised name of a Python project (PEP 503); None if it is not a name."""
    if not _PROJECT.fullmatch(name):
        return None
    return re.sub(r"[-_.]+", "-", name).lower()


def is_npm_name(name: str) -> bool:
    """Return whether ``name`` can be that of an npm package."""
    return _NPM_NAME.fullmatch(name) is not None


# -- reading ---------------------------------------------------------------------------------------


def unpack(data: Buffer, encoding: str, most: int = MAX_PAGE) -> Buffer:
    """Return the body of an answer.

    :raises PageError: when it is damaged, or larger than ``most``
    """
    if encoding == "gzip":
        unpacker = zlib.decompressobj(31)
        try:
            data = unpacker.decompress(data, most + 1)
        except zlib.error as error:
            raise PageError("it is damaged") from error
        if len(data) <= most and not unpacker.eof:
            raise PageError("it broke off")
    if len(data) > most:
        raise PageError(f"it has more than {most} bytes")
    return data


def read_simple(data: Buffer, content_type: str, url: str) -> tuple[File, ...]:
    """Return the files that an index answered for a project. ``url``: where the page was.

    :raises PageError: when it is not such a page
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in (SIMPLE_JSON, "application/json"):
        return _read_json(data, url)
    if kind in (SIMPLE_HTML, "text/html"):
        return _read_html(data, url)
    raise PageError("it is neither HTML nor JSON of the simple API")


def _read_json(data: Buffer, url: str) -> tuple[File, ...]:
    entries = _parse_object(data).get("files")
    if not isinstance(entries, list):
        raise PageError("it has no list of files")
    if len(entries) > MAX_FILES:
        raise PageError(f"it has more than {MAX_FILES} files")
    return _make_files(entries, url)


def _read_html(data: Buffer, url: str) -> tuple[File, ...]:
    reader = _Anchors()
    try:
        reader.feed(str(data, "utf-8", "replace"))
        reader.close()
    except (AssertionError, ValueError, RecursionError) as error:
        raise PageError("it is not HTML") from error
    base = urljoin(url, reader.base) if reader.base else url
    return _make_files(map(_read_anchor, reader.anchors), base)


def _read_anchor(anchor: dict[str, str | None]) -> dict[str, Any]:
    """Return what PEP 503 says of a file as PEP 691 does."""
    href, _, fragment = (anchor.get("href") or "").partition("#")
    path = unquote(urlsplit(href).path) if len(href) <= MAX_VALUE else ""
    algorithm, _, digest = fragment.partition("&")[0].partition("=")
    entry: dict[str, Any] = {
        "filename": path.rpartition("/")[2],
        "url": href,
        "hashes": {algorithm: digest},
        "requires-python": anchor.get("data-requires-python") or None,
    }
    if "data-yanked" in anchor:
        entry["yanked"] = anchor["data-yanked"] or True
    mark = anchor.get("data-core-metadata", anchor.get("data-dist-info-metadata"))
    if mark is not None:
        algorithm, _, digest = mark.partition("=")
        entry["core-metadata"] = {algorithm: digest}
    return entry


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.anchors: list[dict[str, str | None]] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a" and values.get("href"):
            if len(self.anchors) >= MAX_FILES:
                raise ValueError("too many files")
            self.anchors.append(values)
        elif tag == "base" and not self.base and len(values.get("href") or "") <= MAX_VALUE:
            self.base = values.get("href") or ""


_REST: Mapping[str, tuple[type, ...]] = {
    "requires-python": (str,),
    "yanked": (bool, str),
    "size": (int,),
    "upload-time": (str,),
}


def _make_files(entries: Iterable[object], base: str) -> tuple[File, ...]:
    """Return the files of a page, but those that no client could use."""
    found = (_make_file(each, base) for each in entries if isinstance(each, dict))
    return tuple(file for file in found if file is not None)


def _make_file(entry: dict[str, Any], base: str) -> File | None:
    filename, url = entry.get("filename"), _make_address(entry.get("url"), base)
    if url is None or not isinstance(filename, str) or not _FILENAME.fullmatch(filename):
        return None
    metadata = entry.get("core-metadata", entry.get("dist-info-metadata"))
    known = _read_hashes(metadata) if metadata is True or isinstance(metadata, dict) else None
    rest = {
        key: entry[key]
        for key, kinds in _REST.items()
        if isinstance(entry.get(key), kinds) and len(str(entry[key])) <= MAX_VALUE
    }
    return File(filename, url, _read_hashes(entry.get("hashes")), known, rest)


def _make_address(href: object, base: str) -> str | None:
    if not isinstance(href, str) or not href or len(href) > MAX_VALUE:
        return None
    try:
        url = urljoin(base, href.strip())
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return None
    odd = any(not " " < character < "\x7f" for character in url)
    if not usable or odd or "@" in parts.netloc:
        return None
    return url.partition("#")[0]


def _read_hashes(hashes: object) -> dict[str, str]:
    if not isinstance(hashes, dict):
        return {}
    return {
        name: digest.lower()
        for name, digest in hashes.items()
        if isinstance(digest, str) and _is_digest(name, digest.lower())
    }


def _is_digest(algorithm: str, digest: str) -> bool:
    return len(digest) == ALGORITHMS.get(algorithm) and _DIGITS.fullmatch(digest) is not None


def _parse_object(data: Buffer) -> dict[str, Any]:
    try:
        content = parse_json(data, MAX_PAGE)
    except JsonError as error:
        raise PageError(str(error)) from error
    if not isinstance(content, dict):
        raise PageError("it is not a JSON object")
    return content


# -- writing ---------------------------------------------------------------------------------------


def merge_pages(pages: Iterable[Iterable[File]]) -> tuple[File, ...]:
    """Return the files of several indexes. Of two with one name the first index's counts."""
    files: dict[str, File] = {}
    for page in pages:
        for file in page:
            files.setdefault(file.filename, file)
    return tuple(files.values())


def write_json(project: str, files: Iterable[File], address: Address) -> Iterator[str]:
    """Return the page as JSON (PEP 691), in parts."""
    yield f'{{"meta":{{"api-version":"1.0"}},"name":{_dump(project)},"files":['
    mark = ""
    for file in files:
        entry: dict[str, Any] = {"filename": file.filename, "url": address(file), **file.rest}
        entry["hashes"] = file.hashes
        if file.metadata is not None:
            entry["core-metadata"] = entry["dist-info-metadata"] = file.metadata or True
        yield mark + _dump(entry)
        mark = ","
    yield "]}"


def write_html(project: str, files: Iterable[File], address: Address) -> Iterator[str]:
    """Return the page as HTML (PEP 503), in parts."""
    title = html.escape(project)
    yield f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body>\n"
    for file in files:
        href = address(file)
        name = next((name for name in ALGORITHMS if name in file.hashes), None)
        if name is not None:
            href += f"#{name}={file.hashes[name]}"
        marks = ""
        requires, yanked = file.rest.get("requires-python"), file.rest.get("yanked")
        if requires:
            marks += f' data-requires-python="{html.escape(requires)}"'
        if yanked:
            marks += f' data-yanked="{html.escape(yanked) if isinstance(yanked, str) else ""}"'
        if file.metadata is not None:
            known = next((n for n in ALGORITHMS if n in file.metadata), None)
            value = f"{known}={file.metadata[known]}" if known else "true"
            marks += f' data-core-metadata="{value}" data-dist-info-metadata="{value}"'
        yield f'<a href="{html.escape(href)}"{marks}>{html.escape(file.filename)}</a><br>\n'
    yield "</body></html>\n"


def write_table(files: Iterable[File]) -> Iterator[str]:
    """Return what ``find_in_table`` finds a file in, in parts."""
    for file in files:
        entry: dict[str, Any] = {"filename": file.filename, "url": file.url, "index": file.index}
        entry |= {"hashes": file.hashes, "core-metadata": file.metadata}
        yield f"\n{file.number} {_dump(entry)}"
    yield "\n"


def find_in_table(table: mmap.mmap, begin: int, number: int) -> File | None:
    """Return the file with a number. The table begins at ``begin``."""
    mark = b"\n%d " % number
    at = table.find(mark, begin)
    if at == -1:
        return None
    at += len(mark)
    line = table[at : min(table.find(b"\n", at), at + MAX_LINE)]
    entry = parse_json(line, MAX_LINE)
    file = _make_file(entry, "")
    return None if file is None else replace(file, index=str(entry["index"]))


def make_footer(fields: Mapping[str, Any]) -> bytes:
    """Return the end of a page: what it is, and the length of that."""
    text = json.dumps(fields).encode()
    return text + b"%0*d" % (FOOTER_DIGITS, len(text))


def read_footer(end: bytes) -> tuple[dict[str, Any], int]:
    """Return what ``make_footer`` has written at the end of a page, and how long it is.

    :raises ValueError: it is damaged
    """
    length = int(end[-FOOTER_DIGITS:])
    if not 0 < length <= len(end) - FOOTER_DIGITS:
        raise ValueError("the page is damaged")
    text = end[-FOOTER_DIGITS - length : -FOOTER_DIGITS]
    return parse_json(text, MAX_FOOTER), length + FOOTER_DIGITS


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


# -- npm -------------------------------------------------------------------------------------------


def read_packument(data: Buffer, url: str) -> tuple[dict[str, Any], dict[str, File]]:
    """Return the document about an npm package, and its tarballs by version.

    Versions whose tarball has no address of HTTP are left out.

    :raises PageError: when it is not such a document
    """
    content = _parse_object(data)
    versions = content.get("versions")
    if not isinstance(versions, dict):
        raise PageError("it has no versions")
    if len(versions) > MAX_FILES:
        raise PageError(f"it has more than {MAX_FILES} versions")
    files: dict[str, File] = {}
    for version, entry in list(versions.items()):
        dist = entry.get("dist") if isinstance(entry, dict) else None
        address = _make_address(dist.get("tarball"), url) if isinstance(dist, dict) else None
        filename = unquote(urlsplit(address).path).rpartition("/")[2] if address else ""
        if address is None or not isinstance(dist, dict) or not _FILENAME.fullmatch(filename):
            del versions[version]
            continue
        files[version] = File(filename, address, _read_integrity(dist))
    return content, files


def write_packument(
    content: Mapping[str, Any], files: Mapping[str, File], address: Address
) -> Iterator[str]:
    """Return the document with the addresses of tarballs replaced, and nothing else, in parts."""
    mark = "{"
    for key, value in content.items():
        yield f"{mark}{_dump(key)}:"
        mark = ","
        if key != "versions":
            yield _dump(value)
            continue
        inner = "{"
        for version, entry in value.items():
            dist = {**entry["dist"], "tarball": address(files[version])}
            yield f"{inner}{_dump(version)}:{_dump({**entry, 'dist': dist})}"
            inner = ","
        yield "}" if inner == "," else "{}"
    yield "}"


def _read_integrity(dist: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests that npm checks: ``integrity`` (SRI), or else ``shasum`` (SHA-1)."""
    hashes: dict[str, str] = {}
    integrity = dist.get("integrity")
    for word in integrity.split()[:8] if isinstance(integrity, str) else ():
        algorithm, _, value = word.partition("?")[0].partition("-")
        if len(value) <= 200:
            with suppress(binascii.Error):
                hashes.setdefault(algorithm, base64.b64decode(value, validate=True).hex())
    hashes.setdefault("sha1", dist.get("shasum") or "")
    return _read_hashes(hashes)
