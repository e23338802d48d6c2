"""gVisor's bucket of releases: where a file is, and how it is fetched.

    BASE/release/<date>[.<point>]/<machine>/gvisor.tar.bz2[.sha512]
    BASE/release/latest/<machine>/...

Until July 2026 there was the file ``runsc`` instead of the archive; since 20260824 there is the
archive alone. A mirror has the same layout below another BASE.

https://gvisor.dev/docs/user_guide/install/
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import shutil
import ssl
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from gvisor_kernel import __version__
from gvisor_kernel.errors import ReleaseError
from gvisor_kernel.host.private_directories import read_file, replace_file
from gvisor_kernel.releases.contents import MAX_FILE, find_machine
from gvisor_kernel.releases.release_store import PROGRAM
from gvisor_kernel.shown_text import describe_size

if TYPE_CHECKING:
    import httpx

# by path: below this user's store of releases

FILES = ("gvisor.tar.bz2", PROGRAM)
DIGEST = re.compile(r"[0-9a-f]{128}")

UNPACKED = 3
"""How many times as large as a file is what is unpacked of it."""
MAX_DIGEST = 4096
CONNECT_SECONDS = 20.0
READ_SECONDS = 30.0
"""How long a server may send nothing."""
HEAD_SECONDS = 60.0
RATE_SECONDS, MIN_RATE = 60.0, 8 * 1024
"""A server that sends fewer bytes a second during that time is not waited for."""
ATTEMPTS = 5
"""How often a file that breaks off is continued in one run."""
KEPT_SECONDS = 7 * 86400
"""How long the part of a file is kept for another run."""

T = TypeVar("T")
Report = Callable[[str, float], None]
"""Told what is done, and which part of it is (0 to 1)."""


class NotThere(ReleaseError):
    """The bucket has no such file."""


class BrokenOff(ReleaseError):
    """An answer did not come, or not to its end. What came is kept."""


@dataclass(frozen=True)
class Fetched:
    """A file with the digest that it must have. ``url``: where it came from."""

    path: Path
    url: str

    def forget(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)
        _tag(self.path).unlink(missing_ok=True)


@dataclass(frozen=True)
class Published:
    """The digest of a release in a bucket, and when it was written there."""

    sha512: str
    modified: float | None


def check_base(base: str, *, known: bool) -> str:
    """Return the URL of a bucket without a slash at its end. ``known``: a digest is given by hand.

    :raises ReleaseError: when nothing is fetched from there
    """
    parts = urlsplit(base)
    schemes = ("https", "http") if known else ("https",)
    if parts.scheme not in schemes or not parts.hostname or parts.username is not None:
        raise ReleaseError(
            f"Nothing is fetched from {parts.netloc.rpartition('@')[2] or base}.",
            "name an address that begins with https://, or give the digest, too: --sha512 DIGEST;"
            " a password goes to ~/.netrc.",
        )
    return base.rstrip("/")


def read_digest(text: str, name: str) -> str:
    """Return the digest in a file of sha512sum with one line, for the file ``name``.

    :raises ReleaseError: when it is anything else
    """
    digest, _, rest = text.removesuffix("\n").partition(" ")
    if not DIGEST.fullmatch(digest) or rest not in (f" {name}", f"*{name}"):
        raise ReleaseError(
            f"What should be the digest of {name} is none: it begins with {text[:40]!r}.",
            "ask again later, or whoever keeps the address; a proxy may have answered instead.",
        )
    return digest


def ask(base: str, release: str) -> Published:
    """Ask a bucket for the digest of a release.

    :raises NotThere: when it has no such release
    :raises ReleaseError: when it could not be asked
    """
    return asyncio.run(_find_first(base, [release], FILES, _ask))


def find_size(base: str, releases: Sequence[str]) -> tuple[str, int]:
    """Return the first of ``releases`` that a bucket has, and how many bytes would be fetched.

    :raises NotThere: when it has none of them
    :raises ReleaseError: when it could not be asked
    """

    async def look(client: httpx.AsyncClient, url: str) -> tuple[str, int]:
        async with _get(client, url, {}) as response:
            return url.split("/")[-3], int(response.headers.get("content-length") or 0)

    return asyncio.run(_find_first(base, releases, FILES, look))


def find_digest(text: str) -> tuple[str, Sequence[str]]:
    """Return a digest that was given by hand, and the names of the files in the bucket that it may
    be of. ``text``: the digest, or the path of a file of sha512sum.

    :raises ReleaseError: when it is neither
    """
    if DIGEST.fullmatch(text):
        return text, FILES
    try:
        with open(text, "rb") as file:
            found = file.read(MAX_DIGEST).decode("ascii", "replace")
    except OSError as error:
        raise ReleaseError(
            f"{text} is no digest of SHA-512, and no file: {error.strerror}.",
            "give 128 hexadecimal digits, or a file that sha512sum has written.",
        ) from error
    name = found.rstrip("\n").rpartition(" ")[2].removeprefix("*")
    return read_digest(found, name), [name] if name in FILES else FILES


def copy(file: Path, store: Path, sha512: str | None) -> Fetched:
    """Copy a file with a release, so that nobody changes it while it is looked at.

    :raises ReleaseError: when it cannot be read, or has another digest
    :raises OSError: when it cannot be written
    """
    path = make_partial(store) / "copy"
    path.unlink(missing_ok=True)
    try:
        source = file.open("rb")
    except OSError as error:
        raise ReleaseError(f"{file} cannot be read: {error.strerror}.") from error
    with source, path.open("xb") as target:
        size = os.fstat(source.fileno()).st_size
        if not stat.S_ISREG(os.fstat(source.fileno()).st_mode) or size > MAX_FILE:
            raise ReleaseError(f"{file} is no file of up to {describe_size(MAX_FILE)}.")
        check_space(path.parent, size)
        shutil.copyfileobj(source, target)
    found = Fetched(path, str(file.resolve()))
    if sha512 is not None and measure(path) != sha512:
        found.forget()
        raise ReleaseError(f"{file} has not the digest that it should have, {sha512[:16]}…")
    return found


def make_partial(store: Path) -> Path:
    """Return the folder for what is fetched, without what is too old."""
    folder = store / "partial"
    folder.mkdir(mode=0o700, exist_ok=True)
    for old in folder.iterdir():
        if time.time() - old.lstat().st_mtime > KEPT_SECONDS:
            old.unlink()
    return folder


def measure(path: Path) -> str:
    """Return the digest of a file.

    :raises OSError: when it cannot be read
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


def fetch(
    base: str,
    releases: Sequence[str],
    store: Path,
    report: Report,
    sha512: str | None = None,
    names: Sequence[str] = FILES,
) -> Fetched:
    """Fetch the first of ``releases`` that is there into ``store``, where an earlier run may have
    left a part of it.

    ``sha512``: the digest that was given by hand, instead of that in the bucket, of one of
    ``names``.

    :raises NotThere: when there is no such release
    :raises ReleaseError: when it could not be fetched, or has another digest
    :raises OSError: when it cannot be written
    """
    folder = make_partial(store)

    async def get(client: httpx.AsyncClient, url: str) -> Fetched:
        digest = sha512 or (await _ask(client, url)).sha512
        return await _fetch(client, url, folder / digest, report)

    return asyncio.run(_find_first(base, releases, names, get))


async def _find_first(
    base: str,
    releases: Sequence[str],
    names: Sequence[str],
    call: Callable[[httpx.AsyncClient, str], Awaitable[T]],
) -> T:
    async with _client() as client:
        for release in releases:
            for name in names:
                try:
                    return await call(client, f"{base}/release/{release}/{find_machine()}/{name}")
                except NotThere as error:
                    missing = error
    raise missing


async def _ask(client: httpx.AsyncClient, url: str) -> Published:
    data = b""
    async with _get(client, url + ".sha512", {}) as response:
        async for chunk in _receive(response):
            data += chunk
            if len(data) > MAX_DIGEST:
                break
        modified = response.headers.get("last-modified")
    digest = read_digest(data.decode("ascii", "replace"), url.rpartition("/")[2])
    try:
        return Published(digest, parsedate_to_datetime(modified or "").timestamp())
    except ValueError:
        return Published(digest, None)


async def _fetch(client: httpx.AsyncClient, url: str, path: Path, report: Report) -> Fetched:
    """Fetch a file whose digest is the name of ``path``. A part that is there is continued."""
    fetched = Fetched(path, url)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "r+b") as file:
            for left in reversed(range(ATTEMPTS)):
                before = file.seek(0, os.SEEK_END)
                try:
                    if not before or not _has_digest(file, path.name):
                        await _continue(client, url, path, file, report)
                    break
                except BrokenOff:
                    if not left or file.tell() <= before:
                        raise
            if not _has_digest(file, path.name):
                file.truncate(0)
                raise ReleaseError(
                    f"{url} has not the digest that it should have, {path.name[:16]}…",
                    "it was damaged on its way, or is not what it claims to be: try again, and do"
                    " not use it if this comes again. Nothing was kept of it.",
                )
    except OSError as error:
        if error.errno == errno.ENOSPC:
            path.write_bytes(b"")
        raise
    finally:
        if not path.stat().st_size:
            fetched.forget()
    return fetched


def _tag(path: Path) -> Path:
    """Return where the server's name is for the version of a file of which ``path`` is a part."""
    return path.with_name(f"{path.name}.tag")


def _has_digest(file: BufferedRandom, digest: str) -> bool:
    file.seek(0)
    return hashlib.file_digest(file, "sha512").hexdigest() == digest


async def _continue(
    client: httpx.AsyncClient, url: str, path: Path, file: BufferedRandom, report: Report
) -> None:
    """Fetch what is missing at the end of ``file``; all of it if the server has another one now."""
    done = file.seek(0, os.SEEK_END)
    tag = ""
    with suppress(OSError, ValueError):
        tag = read_file(_tag(path), MAX_DIGEST).decode("ascii")
    headers = {"Range": f"bytes={done}-", "If-Range": tag} if done and tag else {}
    async with _get(client, url, headers) as response:
        found = response.headers
        if response.status_code != 206 or not found.get("content-range", "").startswith(
            f"bytes {done}-"
        ):
            done = 0
            file.seek(0)
            file.truncate()
        size = done + int(found.get("content-length") or 0)
        if not done < size <= MAX_FILE:
            raise ReleaseError(
                f"{url} has {found.get('content-length') or 'an unknown number of'} bytes.",
                f"it should have up to {describe_size(MAX_FILE)}; is the address right?",
            )
        check_space(path.parent, size - done)
        tag = found.get("etag") or found.get("last-modified") or ""
        replace_file(_tag(path), "" if tag.startswith("W/") else tag)
        async for chunk in _receive(response):
            file.write(chunk)
            done += len(chunk)
            report(f"Fetching {url.rpartition('/')[2]}, {describe_size(size)}", done / size)
    file.flush()


def check_space(folder: Path, size: int) -> None:
    """Check that there is space for ``size`` bytes, and for what is unpacked of them.

    :raises ReleaseError: when there is not
    """
    need, free = size * (1 + UNPACKED), shutil.disk_usage(folder).free
    if free < need:
        raise ReleaseError(
            f"{folder} has {describe_size(free)} of free space, and {describe_size(need)} are"
            " needed.",
            "make space there: df. Nothing was changed.",
        )


# -- requests --------------------------------------------------------------------------------------


@asynccontextmanager
async def _client() -> AsyncIterator[httpx.AsyncClient]:
    import httpx

    headers = {"User-Agent": f"gvisor-kernel/{__version__}", "Accept-Encoding": "identity"}
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    try:
        client = httpx.AsyncClient(
            verify=ssl.create_default_context(), timeout=timeout, headers=headers
        )
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise ReleaseError(
            f"The settings of the proxy cannot be used: {error}.",
            "look at the variable https_proxy.",
        ) from error
    async with client:
        yield client


@asynccontextmanager
async def _get(
    client: httpx.AsyncClient, url: str, headers: Mapping[str, str]
) -> AsyncIterator[httpx.Response]:
    """Yield the answer to a request, whose content is there and not encoded.

    :raises NotThere: when there is no such file
    :raises ReleaseError: when there is another answer or none, or it is elsewhere
    """
    with _translated(url):
        async with asyncio.timeout(HEAD_SECONDS):
            request = client.build_request("GET", url, headers=headers)
            response = await client.send(request, stream=True)
    try:
        status, target = response.status_code, response.headers.get("location", "")
        if status in (403, 404):
            raise NotThere(f"There is no {url} (status {status}).")
        if 300 <= status < 400:
            raise ReleaseError(
                f"{url} redirects to {target[:200]!r}.",
                "it is not asked; name the address of a mirror if that is one: --from URL.",
            )
        if status not in (200, 206) or response.headers.get("content-encoding"):
            raise BrokenOff(f"{url} cannot be fetched (status {status}).", "try again later.")
        yield response
    finally:
        await response.aclose()


async def _receive(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the content of an answer, unless it comes too slowly."""
    url = str(response.url)
    began, received = time.monotonic(), 0
    with _translated(url):
        async for chunk in response.aiter_raw():
            received += len(chunk)
            yield chunk
            now = time.monotonic()
            if now - began > RATE_SECONDS:
                if received < MIN_RATE * RATE_SECONDS:
                    raise ReleaseError(
                        f"{url} comes too slowly: {received} bytes in {now - began:.0f} s.",
                        "try again later; what has come is kept for a week.",
                    )
                began, received = now, 0


@contextmanager
def _translated(url: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
        raise BrokenOff(
            f"{url} cannot be fetched: {str(error) or type(error).__name__}.",
            "if this machine needs a proxy, set https_proxy. Or fetch the file elsewhere, and name"
            " it: gvisor-kernel runsc install --file PATH.",
        ) from error
