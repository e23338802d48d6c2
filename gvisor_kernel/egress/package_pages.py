"""Reads what an index says about a package, and writes it for pip, uv and npm. No I/O.

An index is not trusted with more than it needs: its page is parsed within bounds, only what pip, uv
and npm use is kept, and what a sandbox gets is written anew. A sandbox never sees the address of a
file upstream, which may have a credential in it.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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

ALGORITHMS = ("sha256", "sha512", "sha384", "sha224", "sha1", "md5")
STRONG = ("sha512", "sha384", "sha256")
"""Algorithms for which nobody can make two files of one digest, strongest first."""
_DIGEST = re.compile(r"[0-9a-f]{32,128}")
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
    """

    filename: str
    url: str
    hashes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """What one index says about one project."""

    files: tuple[File, ...]
    versions: tuple[str, ...] = ()


def normalize_project(name: str) -> str | None:
    """Return the normalised name of a Python project (PEP 503); None if it is not a name."""
    if not _PROJECT.fullmatch(name):
        return None
    return re.sub(r"[-_.]+", "-", name).lower()


def is_npm_name(name: str) -> bool:
    """Whether ``name`` can be that of an npm package."""
    return _NPM_NAME.fullmatch(name) is not None


# -- reading ---------------------------------------------------------------------------------------


def read_simple(data: Buffer, content_type: str, url: str) -> Page:
    """Return what an index answered for a project. ``url``: where the page was.

    :raises PageError: when it is not such a page
    """
    kind = content_type.partition(";")[0].strip().lower()
    if len(data) > MAX_PAGE:
        raise PageError(f"it has more than {MAX_PAGE} bytes")
    if kind in (SIMPLE_JSON, "application/json"):
        return _read_json(data, url)
    if kind in (SIMPLE_HTML, "text/html"):
        return _read_html(data, url)
    raise PageError("it is neither HTML nor JSON of the simple API")


def _read_json(data: Buffer, url: str) -> Page:
    content = _parse_object(data)
    entries = content.get("files")
    if not isinstance(entries, list):
        raise PageError("it has no list of files")
    if len(entries) > MAX_FILES:
        raise PageError(f"it has more than {MAX_FILES} files")
    files = []
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        rest = {
            key: entry[key]
            for key, kinds in _REST.items()
            if key in entry and isinstance(entry[key], kinds) and _is_short(entry[key])
        }
        metadata = entry.get("core-metadata", entry.get("dist-info-metadata"))
        found = _make_file(
            entry.get("filename"),
            entry.get("url"),
            url,
            entry.get("hashes"),
            metadata if isinstance(metadata, dict) else {} if metadata is True else None,
            rest,
        )
        if found is not None:
            files.append(found)
    versions = content.get("versions")
    texts = versions if isinstance(versions, list) else []
    return Page(
        tuple(files), tuple(v for v in texts[:MAX_FILES] if isinstance(v, str) and len(v) <= 200)
    )


_REST: Mapping[str, tuple[type, ...]] = {
    "requires-python": (str,),
    "yanked": (bool, str),
    "size": (int,),
    "upload-time": (str,),
}


def _read_html(data: Buffer, url: str) -> Page:
    reader = _Anchors()
    try:
        reader.feed(str(data, "utf-8", "replace"))
        reader.close()
    except (AssertionError, ValueError, RecursionError) as error:
        raise PageError("it is not HTML") from error
    base = urljoin(url, reader.base) if reader.base else url
    files = []
    for anchor in reader.anchors:
        href, _, fragment = (anchor.get("href") or "").partition("#")
        path = unquote(urlsplit(href).path) if len(href) <= MAX_VALUE else ""
        rest: dict[str, Any] = {}
        if (requires := anchor.get("data-requires-python")) and _is_short(requires):
            rest["requires-python"] = requires
        if "data-yanked" in anchor and _is_short(anchor["data-yanked"] or ""):
            rest["yanked"] = anchor["data-yanked"] or True
        mark = anchor.get("data-core-metadata", anchor.get("data-dist-info-metadata"))
        metadata: dict[str, str] | None = None
        if mark is not None:
            algorithm, _, digest = mark.partition("=")
            metadata = {algorithm: digest} if digest else {}
        algorithm, _, digest = fragment.partition("&")[0].partition("=")
        hashes = {algorithm: digest} if digest else {}
        found = _make_file(path.rpartition("/")[2], href, base, hashes, metadata, rest)
        if found is not None:
            files.append(found)
    return Page(tuple(files))


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


def _make_file(
    filename: object,
    href: object,
    base: str,
    hashes: object,
    metadata: Mapping[str, str] | None,
    rest: Mapping[str, Any],
) -> File | None:
    """Return the file, or None if no client could use it, or its address is not one of HTTP."""
    if not isinstance(filename, str) or not _FILENAME.fullmatch(filename):
        return None
    url = _make_address(href, base)
    if url is None:
        return None
    known = None if metadata is None else _read_hashes(metadata)
    return File(filename, url, _read_hashes(hashes), known, rest)


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


def check_file(content: object) -> File | None:
    """Return the file that another process has read from a page; None if it cannot be of one."""
    if not isinstance(content, dict):
        return None
    metadata, url = content.get("metadata"), content.get("url")
    known = metadata if isinstance(metadata, dict) else None
    file = _make_file(content.get("filename"), url, "", content.get("hashes"), known, {})
    return file if file is not None and file.url == url else None


def _read_hashes(hashes: object) -> dict[str, str]:
    if not isinstance(hashes, dict):
        return {}
    return {
        name: digest.lower()
        for name, digest in hashes.items()
        if name in ALGORITHMS and isinstance(digest, str) and _DIGEST.fullmatch(digest.lower())
    }


def _is_short(value: object) -> bool:
    return not isinstance(value, str) or len(value) <= MAX_VALUE


def _parse_object(data: Buffer) -> dict[str, Any]:
    try:
        content = parse_json(data, MAX_PAGE)
    except JsonError as error:
        raise PageError(str(error)) from error
    if not isinstance(content, dict):
        raise PageError("it is not a JSON object")
    return content


# -- writing ---------------------------------------------------------------------------------------


def merge_pages(pages: Iterable[Page]) -> Page:
    """Return one page of several indexes. Of two files with one name the first index's counts."""
    files: dict[str, File] = {}
    versions: dict[str, None] = {}
    for page in pages:
        for file in page.files:
            files.setdefault(file.filename, file)
        versions.update(dict.fromkeys(page.versions))
    return Page(tuple(files.values()), tuple(versions))


def write_json(project: str, page: Page, address: Callable[[File], str]) -> Iterator[str]:
    """Return the page as JSON (PEP 691), in parts.

    ``address`` gives where a sandbox gets a file.
    """
    # Versions are allowed from 1.1 on, which demands all sizes.
    is_newer = bool(page.versions) and all("size" in file.rest for file in page.files)
    content = {"meta": {"api-version": "1.1" if is_newer else "1.0"}, "name": project}
    if is_newer:
        content["versions"] = list(page.versions)
    yield f'{_dump(content)[:-1]},"files":['
    for number, file in enumerate(page.files):
        entry: dict[str, Any] = {
            "filename": file.filename,
            "url": address(file),
            "hashes": dict(file.hashes),
            **file.rest,
        }
        if file.metadata is not None:
            entry["core-metadata"] = entry["dist-info-metadata"] = dict(file.metadata) or True
        yield ("," if number else "") + _dump(entry)
    yield "]}"


def write_html(project: str, page: Page, address: Callable[[File], str]) -> Iterator[str]:
    """Return the page as HTML (PEP 503), in parts."""
    title = html.escape(project)
    yield f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body>\n"
    for file in page.files:
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
    content: Mapping[str, Any], files: Mapping[str, File], address: Callable[[File], str]
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
        if algorithm in ALGORITHMS and len(value) <= 200:
            try:
                hashes.setdefault(algorithm, base64.b64decode(value, validate=True).hex())
            except binascii.Error:
                continue
    shasum = dist.get("shasum")
    if isinstance(shasum, str) and re.fullmatch(r"[0-9a-f]{40}", shasum):
        hashes.setdefault("sha1", shasum)
    return hashes
