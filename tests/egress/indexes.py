"""A package index on this machine's loopback, and ways to call the route ``packages`` without a
sandbox.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.egress.addresses import NameResolver, make_name_threads
from gvisor_kernel.egress.package_cache import PackageCache
from gvisor_kernel.egress.package_catalog import BOUNDS, Bounds
from gvisor_kernel.egress.package_index import (
    Configuration,
    Index,
    Indexes,
    Registries,
    read_pip,
)
from gvisor_kernel.egress.package_pages import SIMPLE_JSON
from gvisor_kernel.egress.package_upstream import IndexClient
from gvisor_kernel.egress.packages import Packages

THREADS = make_name_threads()
"""Where names are resolved."""


def make_wheel(name: str, version: str = "1.0", files: dict[str, str] | None = None) -> bytes:
    """Return a wheel with one module, or with ``files``."""
    info = f"{name}-{version}.dist-info"
    content = {f"{name}.py": f"VERSION = {version!r}\n"} if files is None else dict(files)
    content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    content[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name}-hello = {name}:hello\n"
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return data.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Served:
    """What a FakeIndex answers at one path."""

    body: bytes = b""
    content_type: str = "application/octet-stream"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeIndex:
    """A server of pages and files. ``seen`` has the path and headers of each request."""

    url: str
    served: dict[str, Served] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]

    def index(self, **fields: Any) -> Index:
        return Index(f"{self.url}/simple/", **fields)

    def add_page(self, project: str, files: list[dict[str, Any]], **headers: str) -> None:
        page = {"meta": {"api-version": "1.0"}, "name": project, "files": files}
        self.served[f"/simple/{project}/"] = Served(
            json.dumps(page).encode(), SIMPLE_JSON, headers=headers
        )

    def add_project(self, project: str, data: bytes | None = None, **entry: Any) -> str:
        """Serve a project with one wheel; return the wheel's name."""
        data = make_wheel(project) if data is None else data
        filename = f"{project}-1.0-py3-none-any.whl"
        self.served[f"/files/{filename}"] = Served(data)
        described = {
            "filename": filename,
            "url": f"{self.url}/files/{filename}",
            "hashes": {"sha256": sha256(data)},
            **entry,
        }
        self.add_page(project, [described])
        return filename


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[FakeIndex]:
    """Run a FakeIndex."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            index.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            found = index.served.get(self.path, Served(b"no", "text/plain", 404))
            tag = found.headers.get("ETag")
            if tag and self.headers.get("If-None-Match") == tag:
                self.send_response(304)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(found.status)
            self.send_header("Content-Type", found.content_type)
            headers = {"Content-Length": str(len(found.body)), **found.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(found.body)
            if headers["Content-Length"] != str(len(found.body)):
                self.close_connection = True

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that breaks off is part of the tests

    server = Server((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            server.shutdown()
            server.server_close()
            thread.join()

    index = FakeIndex(f"http://{host}:{server.server_address[1]}", stop=stop)
    try:
        yield index
    finally:
        stop()


# -- calling the route -----------------------------------------------------------------------------


@dataclass
class Head:
    path: bytes
    headers: dict[bytes, bytes] = field(default_factory=dict)
    method: str = "GET"

    def find(self, name: bytes) -> bytes | None:
        return self.headers.get(name)


@dataclass
class Request:
    head: Head


class Answer:
    """A Reply that keeps what it is given."""

    def __init__(self) -> None:
        self.status = 0
        self.reason = ""
        self.headers: dict[bytes, bytes] = {}
        self.data = b""
        self.complete = False

    async def start(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], reason: str = ""
    ) -> None:
        self.status, self.headers, self.reason = status, dict(headers), reason

    async def body(self, data: bytes) -> None:
        self.data += data

    async def end(self) -> None:
        self.complete = True

    @property
    def files(self) -> list[dict[str, Any]]:
        """The files of a page in JSON."""
        return list(json.loads(self.data)["files"])


JSON = {b"accept": SIMPLE_JSON.encode()}


async def ask(
    packages: Packages,
    path: str | bytes,
    headers: dict[bytes, bytes] | None = None,
    *,
    method: str = "GET",
    kernel: int = 1,
    names: NameResolver | None = None,
) -> Answer:
    """Send one request of ``kernel`` to the route. ``names``: else it has no other request."""
    answer = Answer()
    raw = path.encode() if isinstance(path, str) else path
    request: Any = Request(Head(raw, headers or {}, method))
    writes: Any = answer
    await packages.handle(request, writes, kernel, names or NameResolver(THREADS))
    return answer


def resolve_below(page: str, relative: str) -> str:
    """Return the path that a client asks for."""
    from urllib.parse import urljoin, urlsplit

    return urlsplit(urljoin(f"http://127.0.0.1:3128{page}", relative)).path


@asynccontextmanager
async def route(
    root: Path,
    *indexes: Index,
    uv: Iterable[Index] | None = None,
    npm: Index | None = None,
    bounds: Bounds = BOUNDS,
    **fields: Any,
) -> AsyncIterator[Packages]:
    """Run the route with these indexes, and a cache in ``root``."""
    pip = Indexes(indexes)
    configuration = Configuration(
        pip,
        pip if uv is None else Indexes(tuple(uv), merged=False),
        Registries(npm or Index("https://registry.invalid/")),
    )
    cache = PackageCache.open(root, **fields)
    packages = Packages(cache, lambda: configuration, IndexClient(THREADS), bounds)
    try:
        yield packages
    finally:
        await packages.close()


def run_route(
    check: Callable[[Packages], Awaitable[None]], root: Path, *indexes: Index, **fields: Any
) -> None:
    """Run ``check`` with the route, whose cache is in the folder ``root``."""

    async def work() -> None:
        async with route(root / "c", *indexes, **fields) as packages:
            await check(packages)

    asyncio.run(work())


# -- the indexes of this machine -------------------------------------------------------------------

HOST = dict(os.environ)
"""The environment before any test has changed it."""


def host_environment(url: str) -> dict[str, str]:
    """Return the environment of this user, or skip if its index does not answer."""
    environment = {**HOST}
    try:
        urllib.request.urlopen(url, timeout=10).close()  # noqa: S310 - of the configuration
    except (urllib.error.URLError, OSError) as error:
        pytest.skip(f"the index of this machine does not answer: {type(error).__name__}")
    return environment


def index_of_host() -> Index:
    found = read_pip(HOST)
    if not found.indexes:
        pytest.skip("pip of this machine is configured without an index")
    return found.indexes[0]
