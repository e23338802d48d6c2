"""A server that a worker's routes lead to, with or without TLS by a CA of its own."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CHUNK = bytes(1024 * 1024)


@dataclass
class Seen:
    """A request as the server got it."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def values(self, name: str) -> list[str]:
        """Return all values of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass
class Fake:
    """A running server. ``go``: what paths under /wait wait for."""

    port: int
    seen: list[Seen] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when a client went away in the middle of an answer."""
    connections: int = 0

    def route(self, path: str = "", **keys: Any) -> dict[str, Any]:
        """Return the description of a route to this server, if it has no TLS."""
        url = f"http://127.0.0.1:{self.port}{path}"
        return {"url": url, "allow_private": True, **keys}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; see ``do_GET``."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: Fake

    def setup(self) -> None:
        super().setup()
        self.fake.connections += 1

    def log_message(self, *_: object) -> None:
        pass

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = bytearray()
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return bytes(body)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        """Answer any method."""
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        seen = Seen(self.command, self.path, list(self.headers.items()), self._read_body())
        self.fake.seen.append(seen)
        name = parts.path.rstrip("/").rpartition("/")[2]
        try:
            getattr(self, f"at_{name}", self.at_echo)(query)
        except (ConnectionError, ssl.SSLError):
            self.fake.gone.set()
            self.close_connection = True

    do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_TRACE = do_GET

    def at_echo(self, query: dict[str, str]) -> None:
        seen = self.fake.seen[-1]
        self._answer(
            json.dumps({"method": seen.method, "path": seen.path, "size": len(seen.body)}).encode(),
            Content_Type="application/json",
        )

    def at_big(self, query: dict[str, str]) -> None:
        size = int(query["mib"])
        self.send_response(200)
        self.send_header("Content-Length", str(size * len(CHUNK)))
        self.end_headers()
        for _ in range(size):
            self.wfile.write(CHUNK)

    def at_endless(self, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"100000\r\n" + CHUNK + b"\r\n")

    def at_events(self, query: dict[str, str]) -> None:
        """Send one event, wait for ``go``, then send another."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(2):
            event = b"data: %d\n\n" % i
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
            if not i:
                self.fake.go.wait(30)
        self.wfile.write(b"0\r\n\r\n")

    def at_wait(self, query: dict[str, str]) -> None:
        self.fake.go.wait(30)
        self.at_echo(query)

    def at_dribble(self, query: dict[str, str]) -> None:
        """Send a head without an end, a byte at a time."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not self.fake.go.wait(0.05):
            self.wfile.write(b"x")

    def at_redirect(self, query: dict[str, str]) -> None:
        self._answer(b"", 302, Location=query["to"])

    def at_secret(self, query: dict[str, str]) -> None:
        """Return the credential in a header."""
        auth = self.fake.seen[-1].values("authorization")
        self._answer(b"", X_Seen=str(auth), X_Other="kept", Connection="X-Hop", X_Hop="1")

    def at_named(self, query: dict[str, str]) -> None:
        """Return the credential in the name of a header, and in a value over two lines."""
        key = self.fake.seen[-1].values("authorization")[0].removeprefix("Bearer ")
        folded = f"{key[:6]}\r\n  {key[6:]}"
        self._answer(b"", **{f"X-{key}": "in a name", "X-Folded": folded, "X-Other": "kept"})

    def at_quote(self, query: dict[str, str]) -> None:
        """Return the credential in the reason and, cut in two, in the body."""
        auth = self.fake.seen[-1].values("authorization")[0].encode()
        encoding = ", ".join(self.fake.seen[-1].values("accept-encoding"))
        body = b'{"error": "the key %s is wrong"}' % auth
        self.send_response(401, f"wrong: {auth.decode()}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Accepted", encoding)
        self.end_headers()
        at = body.index(auth) + len(auth) // 2
        self.wfile.write(body[:at])
        self.fake.go.wait(0.05)
        self.wfile.write(body[at:])

    def at_interim(self, query: dict[str, str]) -> None:
        """Send interim answers without end."""
        self.fake.gone.clear()
        while True:
            self.wfile.write(b"HTTP/1.1 103 Early\r\n\r\n" * 1000)

    def at_hints(self, query: dict[str, str]) -> None:
        """Send a few interim answers, then the answer."""
        self.wfile.write(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" * 5)
        self.at_echo(query)

    def at_headers(self, query: dict[str, str]) -> None:
        """Send very many headers."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * int(query["count"]))
        self.wfile.write(b"Content-Length: 2\r\n\r\nok")

    def at_unframed(self, query: dict[str, str]) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef")
        self.close_connection = True

    def at_longer(self, query: dict[str, str]) -> None:
        """Send more than Content-Length says, in chunks."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.wfile.write(head + b"5\r\nabcde\r\n0\r\n\r\n")
        self.close_connection = True

    def at_shorter(self, query: dict[str, str]) -> None:
        """Send less than Content-Length says, in chunks."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.wfile.write(head + b"5\r\nabcde\r\n0\r\n\r\n")
        self.close_connection = True

    def at_switch(self, query: dict[str, str]) -> None:
        """Switch to another protocol, unasked."""
        self.wfile.write(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        self.close_connection = True

    def at_gzip(self, query: dict[str, str]) -> None:
        """Send 10 MiB of zeros in 10 KiB."""
        import gzip

        self._answer(gzip.compress(bytes(10 * 1024 * 1024)), Content_Encoding="gzip")

    def at_cut(self, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"only this")
        self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    """Many connections, and no traceback for one that breaks."""

    daemon_threads = True
    request_queue_size = 512
    tls: ssl.SSLContext | None = None

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        return sock, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is not None:
            try:
                request = self.tls.wrap_socket(request, server_side=True)
            except OSError:
                return
        try:
            super().finish_request(request, client_address)
        finally:
            if self.tls is not None:
                request.close()

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serving(
    certificate: Path | None = None, handler: type[Handler] = Handler, host: str = "127.0.0.1"
) -> Iterator[Fake]:
    """Run a server on a free port of the loopback. ``certificate``: a file with key and chain."""
    fake = Fake(0)
    with Server((host, 0), type("Handler", (handler,), {"fake": fake})) as server:
        if certificate is not None:
            server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.tls.load_cert_chain(certificate)
        fake.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield fake
        finally:
            fake.go.set()
            server.shutdown()
            thread.join(10)


def make_certificate(directory: Path, names: Sequence[str] = ()) -> tuple[Path, Path]:
    """Make a CA, and a certificate for localhost, 127.0.0.1, 127.0.0.2 and ``names``.

    Return the CA's file, and one with the certificate and its key.
    """
    run = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    run += ["-nodes", "-days", "2", "-subj"]
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    key, chain = directory / "key.pem", directory / "chain.pem"
    # Python 3.13 and newer refuse a CA that does not say that it may sign.
    usage = ("-addext", "keyUsage=critical,keyCertSign")
    _openssl(*run, "/CN=test CA", "-keyout", str(ca_key), "-out", str(ca), *usage)
    _openssl(
        *(*run, "/CN=localhost", "-keyout", str(key), "-out", str(chain)),
        *(
            "-CA",
            str(ca),
            "-CAkey",
            str(ca_key),
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:127.0.0.2"
            + "".join(f",DNS:{name}" for name in names),
        ),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
    )
    both = directory / "both.pem"
    both.write_text(key.read_text() + chain.read_text())
    return ca, both


def _openssl(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
