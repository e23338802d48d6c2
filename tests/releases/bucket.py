"""gVisor's bucket on this machine: its host name, its layout, TLS by a CA of the tests, and a proxy
through which alone it can be reached.

Its releases are this machine's runsc, as it is, and with another date in it. The older one is kept
as the bucket keeps old releases: ``runsc`` alone. The newer one is in an archive.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import re
import shutil
import socket
import ssl
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gvisor_kernel.releases import BASE, TRIED
from gvisor_kernel.releases.contents import find_machine

from ..egress.upstream import make_certificate

HOST = urlsplit(BASE).hostname
OLD, NEW = "20240729", str(int(TRIED) + 10_000)
"""The release of this machine's runsc, and one of the same length that is newer than the one that
was tried."""


@dataclass
class File:
    """What the bucket has at a path. ``send``: sends it in another way, after the head.
    ``is_slow``: its head never ends."""

    body: bytes
    modified: float = 1_700_000_000
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    send: Callable[[Handler, bytes], None] | None = None
    is_slow: bool = False

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


@dataclass
class Bucket:
    """A running bucket. ``seen``: each path that was asked for, and the headers."""

    files: dict[str, File] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    """What ``wait`` waits for."""
    reached: threading.Event = field(default_factory=threading.Event)
    """Set when ``wait`` waits."""
    environment: dict[str, str] = field(default_factory=dict)
    connects: list[str] = field(default_factory=list)
    """The targets that the proxy was asked for."""

    def put(self, release: str, name: str, body: bytes, **fields: Any) -> File:
        """Keep a file with its digest; return the file."""
        file = File(body, **fields)
        path = self.path(release, name)
        self.files[path] = file
        digest = f"{hashlib.sha512(body).hexdigest()}  {name}\n".encode()
        self.files[f"{path}.sha512"] = File(digest, file.modified)
        return file

    def path(self, release: str, name: str) -> str:
        return f"{urlsplit(BASE).path}/release/{release}/{find_machine()}/{name}"

    @property
    def ranges(self) -> list[str | None]:
        """The ranges that were asked for of programs and archives."""
        return [found.get("range") for path, found in self.seen if not path.endswith(".sha512")]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def do_GET(self) -> None:
        found = {name.lower(): value for name, value in self.headers.items()}
        self.bucket.seen.append((self.path, found))
        file = self.bucket.files.get(self.path)
        if file is None:
            file = File(b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", status=404)
        if file.is_slow:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nName: ")
            send_slowly(self, bytes(100_000))
            return
        body, status = file.body, file.status
        begin = re.fullmatch(r"bytes=(\d+)-", found.get("range", ""))
        headers = {"ETag": file.tag, "Last-Modified": formatdate(file.modified, usegmt=True)}
        if begin and status == 200 and int(begin[1]) >= len(body):
            status, body = 416, b""
        elif begin and status == 200:
            status, body = 206, body[int(begin[1]) :]
            headers["Content-Range"] = f"bytes {begin[1]}-{len(file.body) - 1}/{len(file.body)}"
        headers |= {"Content-Length": str(len(body)), **file.headers}
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        try:
            (file.send or send_all)(self, body)
        except OSError:  # a client that breaks off
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def send_all(handler: Handler, body: bytes) -> None:
    handler.wfile.write(body)


def send_half(handler: Handler, body: bytes) -> None:
    """Send the first half, and hang up; all of it from the next request on."""
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True
    handler.bucket.files[handler.path].send = None


def send_halves(handler: Handler, body: bytes) -> None:
    """Send the first half, and hang up, always."""
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def send_forever(handler: Handler, body: bytes) -> None:
    """Send without end, in chunks."""
    while True:
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))


def send_slowly(handler: Handler, body: bytes) -> None:
    """Send a byte each 20 ms, until the client has had enough."""
    for byte in body:
        handler.wfile.write(bytes([byte]))
        if handler.bucket.go.wait(0.02):
            return


def wait(handler: Handler, body: bytes) -> None:
    """Send half, then nothing until the test says ``go``."""
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    handler.bucket.reached.set()
    handler.bucket.go.wait(60)
    handler.wfile.write(body[len(body) // 2 :])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    tls: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            with self.tls.wrap_socket(request, server_side=True) as secure:
                super().finish_request(secure, client_address)
        except OSError:  # a client that does not trust it, or breaks off
            pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Proxy(BaseHTTPRequestHandler):
    """Connects each client of HOST to the bucket, and refuses all others."""

    bucket: Bucket
    port: int

    def do_CONNECT(self) -> None:
        self.bucket.connects.append(self.path)
        if self.path != f"{HOST}:443":
            self.send_error(403)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        with socket.create_connection(("127.0.0.1", self.port)) as other:
            back = threading.Thread(target=_pass, args=(other, self.connection))
            back.start()
            _pass(self.connection, other)
            back.join(60)
        self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _pass(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for side, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with suppress(OSError):
            side.shutdown(how)


class _ProxyServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def serving(directory: Path) -> Iterator[Bucket]:
    """Run an empty bucket. ``directory``: for its certificates."""
    bucket = Bucket()
    ca, chain = make_certificate(directory, (str(HOST),))
    server = _Server(("127.0.0.1", 0), type("Handler", (Handler,), {"bucket": bucket}))
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(chain)
    fields = {"bucket": bucket, "port": server.server_address[1]}
    proxy = _ProxyServer(("127.0.0.1", 0), type("Proxy", (_Proxy,), fields))
    bucket.environment = {
        "https_proxy": f"http://127.0.0.1:{proxy.server_address[1]}",
        "SSL_CERT_FILE": str(ca),
        "no_proxy": "",
    }
    threads = [threading.Thread(target=it.serve_forever, args=(0.02,)) for it in (server, proxy)]
    for thread in threads:
        thread.start()
    try:
        yield bucket
    finally:
        bucket.go.set()
        for one, thread in zip((server, proxy), threads, strict=True):
            one.shutdown()
            one.server_close()
            thread.join(10)


@cache
def system_program() -> bytes:
    """Return this machine's runsc."""
    return Path(shutil.which("runsc") or "/usr/bin/runsc").resolve().read_bytes()


@cache
def newer_program() -> bytes:
    """Return the same program, which says that it is of a year later."""
    old, new = f"~{OLD}.".encode(), f"~{NEW}.".encode()
    assert old in system_program()
    return system_program().replace(old, new)


@cache
def newer_archive() -> bytes:
    """Return an archive as the bucket has it, with the newer program, a sidecar and a shim."""
    return make_archive(
        {
            "./runsc": newer_program(),
            "./containerd-shim-runsc-v1": b"\x7fELF of another program",
            "./gvisor-bin/runsc-metric-server": Path("/bin/true").read_bytes(),
        }
    )


def make_archive(files: dict[str, bytes], **kinds: bytes) -> bytes:
    """Return a tar.bz2 with ``files``, and with entries of other kinds by their names."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
        for name, kind in kinds.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    return bz2.compress(data.getvalue(), 1)


def fill(bucket: Bucket) -> None:
    """Put both releases into a bucket; the newer one is the latest."""
    for release in (OLD, f"{OLD}.0"):
        bucket.put(release, "runsc", system_program())
    for release in (NEW, f"{NEW}.0", "latest"):
        bucket.put(release, "gvisor.tar.bz2", newer_archive(), modified=1_750_000_000)
