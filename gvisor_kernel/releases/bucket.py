"""gVisor's bucket of releases: where a file is, and how it is fetched.

    BASE/release/<date>[.<point>]/<machine>/gvisor.tar.bz2[.sha512]
    BASE/release/latest/<machine>/...

Until July 2026 there was the file ``runsc`` instead of the archive; since 20260824 there is the
archive alone. A mirror has the same layout below another BASE.

https://gvisor.dev/docs/user_guide/install/
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from gvisor_kernel import __version__
from gvisor_kernel.archive.tar import CHUNK
from gvisor_kernel.errors import ReleaseError
from gvisor_kernel.host.bounded import call_within
from gvisor_kernel.releases.contents import MAX_FILE, find_machine
from gvisor_kernel.releases.release_store import PROGRAM
from gvisor_kernel.shown_text import describe_size

if TYPE_CHECKING:
    import httpx

# by path: below this user's store of releases

FILES = ("gvisor.tar.bz2", PROGRAM)
DIGEST = re.compile(r"[0-9a-f]{128}")
SHA512SUM = re.compile(r"^([0-9a-f]{128}) [ *](?:\./)?(.+)", re.MULTILINE)
MAX_DIGEST = 4096
"""Bytes of a file with a digest."""
UNPACKED = 3
"""How many times as large as a file is what is unpacked of it."""
CONNECT_SECONDS, HEAD_SECONDS = 20.0, 60.0
READ_SECONDS = 30.0
"""How long a server may send nothing."""
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


def find_digest(text: str) -> tuple[str, Sequence[str]]:
    """Return a digest that was given by hand, and the names of the files in the bucket that it may
    be of. ``text``: the digest, or the path of a file of sha512sum.

    :raises ReleaseError: when it is neither
    """
    if DIGEST.fullmatch(text):
        return text, FILES
    try:
        if not Path(text).is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with open(text, encoding="ascii", errors="replace") as file:
            lines = SHA512SUM.findall(file.read(16 * MAX_DIGEST))
    except OSError as error:
        raise ReleaseError(
            f"{text} is no digest of SHA-512, and no file: {error.strerror}.",
            "give 128 hexadecimal digits, or a file that sha512sum has written.",
        ) from error
    fitting = [(digest, name) for digest, name in lines if len(lines) == 1 or name in FILES]
    if len(fitting) != 1:
        raise ReleaseError(
            f"The file {text} has {len(fitting) or 'no'} digests of {' or '.join(FILES)}.",
            "give 128 hexadecimal digits, or a file that sha512sum has written, with one of them.",
        )
    digest, name = fitting[0]
    return digest, [name] if name in FILES else FILES


def _read_digest(data: bytes, source: str) -> tuple[str, str]:
    """Return what a file of sha512sum with one line has: the digest, and the name of its file."""
    text = data.decode("ascii", "replace")
    found = re.fullmatch(r"([0-9a-f]{128}) [ *]([^\n]+)\n?", text)
    if found is None:
        raise ReleaseError(
            f"{source} should be a digest, and begins with {text[:40]!r}.",
            "ask again later, or whoever keeps the address; a proxy may have answered instead.",
        )
    return found[1], found[2]


def ask(base: str, release: str) -> tuple[str, float | None]:
    """Ask a bucket for the digest of a release, and when it was written there.

    :raises NotThere: when it has no such release
    :raises ReleaseError: when it could not be asked
    """
    return _find_first(base, [release], FILES, _ask)


def fetch(
    base: str,
    releases: Sequence[str],
    store: Path,
    report: Report,
    sha512: str | None = None,
    names: Sequence[str] = FILES,
) -> tuple[Path, str]:
    """Fetch the first of ``releases`` that is there into ``store``, where an earlier run may have
    left a part of it. Return where it is, and its URL.

    ``sha512``: the digest that was given by hand, instead of that in the bucket, of one of
    ``names``.

    :raises NotThere: when there is no such release
    :raises ReleaseError: when it could not be fetched, or has another digest
    :raises OSError: when it cannot be written
    """
    folder = store / "partial"
    folder.mkdir(mode=0o700, exist_ok=True)
    for old in folder.iterdir():
        if time.time() - old.lstat().st_mtime > KEPT_SECONDS:
            old.unlink()

    def get(client: httpx.Client, url: str) -> tuple[Path, str]:
        path = folder / (sha512 or _ask(client, url)[0])
        _fetch(client, url, path, report)
        return path, url

    return _find_first(base, releases, names, get)


def copy(file: Path, folder: Path, sha512: str | None) -> tuple[Path, str]:
    """Copy a file with a release, so that nobody changes it while it is looked at. Return where it
    is, and where it is from.

    :raises ReleaseError: when it cannot be read, or has another digest
    :raises OSError: when it cannot be written
    """
    path = folder / "copy"
    try:
        if not file.is_file() or file.stat().st_size > MAX_FILE:
            raise ReleaseError(f"{file} is no file of up to {describe_size(MAX_FILE)}.")
        source = file.open("rb")
    except OSError as error:
        raise ReleaseError(f"{file} cannot be read: {error.strerror}.") from error
    with source, path.open("wb") as target:
        check_room(folder, os.fstat(source.fileno()).st_size, 0)
        for _ in range(MAX_FILE // CHUNK + 1):  # it may grow meanwhile
            target.write(source.read(CHUNK))
        if source.read(1):
            raise ReleaseError(f"{file} has more than {describe_size(MAX_FILE)}.")
    if sha512 is not None and measure(path) != sha512:
        raise ReleaseError(
            f"{file} has not the digest that it should have, {sha512[:16]}…",
            f"compare what `sha512sum {file}` prints: it is another file, or was damaged.",
        )
    return path, str(file.resolve())


def check_room(folder: Path, size: int, there: int) -> None:
    """Check that a folder has room for a file of ``size`` bytes, of which ``there`` are there, and
    for what is unpacked of it.

    :raises ReleaseError: when it has not
    :raises OSError: when it cannot be asked
    """
    if shutil.disk_usage(folder).free < size * (1 + UNPACKED) - there:
        raise ReleaseError(
            f"There is too little free space in {folder}.",
            f"make space there for {describe_size(size * (1 + UNPACKED))}: df.",
        )


def measure(path: Path) -> str:
    """Return the digest of a file.

    :raises OSError: when it cannot be read
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


def _fetch(client: httpx.Client, url: str, path: Path, report: Report) -> None:
    """Fetch a file whose digest is the name of ``path``. A part that is there is continued."""
    for left in reversed(range(ATTEMPTS)):
        done = path.stat().st_size if path.exists() else 0
        try:
            if not done or measure(path) != path.name:
                _continue(client, url, path, done, report)
        except BrokenOff:
            if not left or not path.exists() or path.stat().st_size <= done:
                raise
            continue
        except OSError:  # such as a full disk
            path.unlink(missing_ok=True)
            raise
        if measure(path) == path.name:
            return
        path.unlink()
        if not done:  # otherwise it was the part of another file
            break
    raise ReleaseError(
        f"{url} has not the digest that it should have, {path.name[:16]}…",
        "it was damaged on its way, or is not what it claims to be: try again, and do not use it"
        " if this comes again. If you gave the digest, look whether it is that of this file.",
    )


def _continue(client: httpx.Client, url: str, path: Path, done: int, report: Report) -> None:
    """Fetch what is missing after ``done`` bytes; all of it, if the server sends all."""
    with _get(client, url, {"Range": f"bytes={done}-"} if done else {}) as response:
        if response.status_code == 416:  # it is no longer than the part
            return
        if not response.headers.get("content-range", "").startswith(f"bytes {done}-"):
            done = 0
        length = response.headers.get("content-length", "an unknown number of")
        if not length.isdecimal() or not 0 < int(length) <= MAX_FILE - done:
            raise ReleaseError(
                f"{url} has {length} bytes.",
                f"it should have up to {describe_size(MAX_FILE)}; is the address right?",
            )
        size = done + int(length)
        check_room(path.parent, size, done)
        with path.open("ab" if done else "wb") as file:
            for chunk in _receive(response):
                done += len(chunk)
                if done > size:
                    path.unlink()
                    raise ReleaseError(f"{url} has more than the {size} bytes that it should have.")
                file.write(chunk)
                report(f"Fetching {url.rpartition('/')[2]}, {describe_size(size)}", done / size)


# -- requests --------------------------------------------------------------------------------------


def _find_first(
    base: str,
    releases: Sequence[str],
    names: Sequence[str],
    call: Callable[[httpx.Client, str], T],
) -> T:
    """Return what ``call`` returns for the first file that is there."""
    import httpx

    headers = {"User-Agent": f"gvisor-kernel/{__version__}", "Accept-Encoding": "identity"}
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    try:
        client = httpx.Client(verify=ssl.create_default_context(), timeout=timeout, headers=headers)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise ReleaseError(
            f"The settings of the proxy cannot be used: {error}.",
            "look at the variable https_proxy.",
        ) from error
    with client:
        for release in releases:
            for name in names:
                try:
                    return call(client, f"{base}/release/{release}/{find_machine()}/{name}")
                except NotThere as error:
                    missing = error
    raise NotThere(
        f"There is no release {' or '.join(releases)} for {find_machine()} in {base}.",
        "see https://github.com/google/gvisor/releases for the dates.",
        missing.fact,
    ) from missing


def _ask(client: httpx.Client, url: str) -> tuple[str, float | None]:
    data, name = b"", url.rpartition("/")[2]
    with _get(client, url + ".sha512", {}) as response:
        for chunk in _receive(response):
            data += chunk
            if len(data) > MAX_DIGEST:
                break
        modified = response.headers.get("last-modified", "")
    digest, found = _read_digest(data, f"{url}.sha512")
    if found != name:
        raise ReleaseError(f"{url}.sha512 has the digest of {found[:40]!r}.")
    try:
        return digest, parsedate_to_datetime(modified).timestamp()
    except (ValueError, OverflowError):
        return digest, None


@contextmanager
def _get(client: httpx.Client, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """Yield the answer to a request, whose content is there and not encoded."""
    import httpx

    try:
        request = client.build_request("GET", url, headers=headers)
        response = call_within(HEAD_SECONDS, partial(client.send, request, stream=True))
        with closing(response):
            status = response.status_code
            if status in (403, 404):
                raise NotThere(f"There is no {url} (status {status}).")
            if 300 <= status < 400:
                raise ReleaseError(
                    f"{url} redirects to {response.headers.get('location', '')[:200]!r}.",
                    "it is not asked; name the address of a mirror if that is one: --from URL.",
                )
            allowed = (200, 206, 416) if headers else (200,)
            if status not in allowed or response.headers.get("content-encoding"):
                raise BrokenOff(f"{url} cannot be fetched (status {status}).", "try again later.")
            yield response
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
        raise BrokenOff(
            f"{url} cannot be fetched: {str(error) or type(error).__name__}.",
            "if this machine needs a proxy, set https_proxy. Or fetch the file elsewhere, and name"
            " it: gvisor-kernel runsc install --file PATH.",
        ) from error


def _receive(response: httpx.Response) -> Iterator[bytes]:
    """Yield the content of an answer, unless it comes too slowly."""
    began, received = time.monotonic(), 0
    for chunk in response.iter_raw():
        yield chunk
        received += len(chunk)
        passed = time.monotonic() - began
        if passed > RATE_SECONDS:
            if received < MIN_RATE * RATE_SECONDS:
                raise ReleaseError(
                    f"{response.url} comes too slowly: {received} bytes in {passed:.0f} s.",
                    "try again later; what has come is kept for a week.",
                )
            began, received = time.monotonic(), 0
