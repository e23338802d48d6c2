"""An API server that lies or does not end, and a pod that only talks. Without a sandbox."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from gvisor_kernel.errors import LaunchError, RuntimeMissing
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.link.carrier import SECRET_SIZE, Carrier
from gvisor_kernel.runtimes.copies.outputs import OutputsCopy
from gvisor_kernel.runtimes.kubernetes import cluster as cluster_module
from gvisor_kernel.runtimes.kubernetes import pump, removal
from gvisor_kernel.runtimes.kubernetes.attach import STDERR, STDOUT, Stream, StreamCut
from gvisor_kernel.runtimes.kubernetes.cluster import Address, Cluster, ClusterNotAnswering
from gvisor_kernel.runtimes.kubernetes.pod import SANDBOX, pod_name
from gvisor_kernel.runtimes.kubernetes.pod_state import Ending
from gvisor_kernel.runtimes.kubernetes.starting import Facts, Found, send_files
from gvisor_kernel.runtimes.state import records

from .test_channels import frame

# -- an API server ---------------------------------------------------------------------------------

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[int]:
    """Answer all requests so, and yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            with suppress(OSError):
                super().handle_one_request()

        def do_GET(self) -> None:
            answer(self)

        do_DELETE = do_GET

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def reach(port: int, folder: Path) -> Cluster:
    config = {
        "clusters": [{"name": "x", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "x", "user": {"token": "the-token"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "current-context": "x",
    }
    path = folder / "config"
    path.write_text(json.dumps(config))
    return Cluster(Address(str(path), "", "kernels"))


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


def test_nobody_is_redirected(tmp_path: Path) -> None:
    """The headers of a request have the token."""
    stolen: list[str | None] = []

    def steal(request: BaseHTTPRequestHandler) -> None:
        stolen.append(request.headers.get("Authorization"))
        send(request, 400, b"")

    with serving(steal) as thief:

        def redirect(request: BaseHTTPRequestHandler) -> None:
            scheme = "ws" if request.headers.get("Upgrade") else "http"
            send(request, 302, b"{}", Location=f"{scheme}://127.0.0.1:{thief}/")

        with serving(redirect) as port:
            found = reach(port, tmp_path)
            with pytest.raises(StreamCut):
                found.attach("pod", "kernel")
            with pytest.raises(ClusterNotAnswering, match="302"):
                found.delete_pod("pod")
            found.close()
    assert stolen == []


def test_only_the_api_says_that_there_is_no_pod(tmp_path: Path) -> None:
    """What stands before it, as a load balancer, says 404, too, while the server is restarted."""
    with serving(lambda request: send(request, 404, b"no backend")) as port:
        found = reach(port, tmp_path)
        with pytest.raises(ClusterNotAnswering, match="404"):
            removal.find_pod(found, "pod")
        found.close()


def test_an_answer_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "SECONDS", 0.3)
    over = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        with suppress(OSError):
            while not over.wait(0.05):
                request.wfile.write(b" ")

    with serving(drip) as port:
        found = reach(port, tmp_path)
        try:
            with pytest.raises(ClusterNotAnswering, match="not whole"):
                found.read_pod("pod")
        finally:
            over.set()
            found.close()


@pytest.mark.parametrize("text", ["not: [yaml", "- a list", "contexts: 7", "{}"])
def test_a_kubeconfig_that_is_none_is_named_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(RuntimeMissing, match="No cluster is configured"):
        Cluster(Address(str(tmp_path / "config"), "", ""))


@pytest.mark.parametrize("name", [None, "", "another", pod_name("other")])
def test_the_sweep_removes_pods_of_its_own_name_only(
    monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """Labels may be copied; and without a name the address is that of all pods."""

    class Pods:
        removed: tuple[str, ...] = ()

        def find_pods(self, labels: object) -> list[dict[str, Any]]:
            return [{"metadata": {"name": name, "labels": {SANDBOX: "gone"}}}]

        def delete_pod(self, name: str) -> None:
            self.removed += (name,)

    monkeypatch.setattr(records, "state_id", lambda: "a")
    monkeypatch.setattr(records, "sandbox_directories", list)
    pods = Pods()
    assert removal.sweep_cluster(cast("Cluster", pods)) == []
    assert pods.removed == ()


# -- a pod -----------------------------------------------------------------------------------------


@contextmanager
def talking(words: bytes, *, listens: bool = True) -> Iterator[Stream]:
    """Connect to something that sends ``words`` again and again, and may read nothing."""
    ours, theirs = socket.socketpair()
    stream = Stream(ours)

    def talk() -> None:
        with suppress(OSError):
            while words:
                theirs.sendall(words)

    def listen() -> None:
        with suppress(OSError):
            while theirs.recv(65536):
                pass

    threads = [threading.Thread(target=work) for work in ([talk, listen] if listens else [talk])]
    for thread in threads:
        thread.start()
    try:
        yield stream
    finally:
        with suppress(OSError):
            theirs.shutdown(socket.SHUT_RDWR)
        stream.close()
        for thread in threads:
            thread.join(10)
        theirs.close()


def test_a_pod_that_only_talks_is_not_sent_files_for_ever() -> None:
    with talking(frame(2, bytes((STDOUT,)) + b"x" * 100), listens=False) as stream:
        found = Found(stream, Facts({}, ""))
        with pytest.raises(LaunchError, match="taken nothing"):
            send_files(found, b"code", b"{}", iter([bytes(1 << 22)]), lambda words: None, 0.3)


def test_a_program_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "END_SECONDS", 0.3)
    with talking(frame(2, bytes((STDOUT,)) + b"x" * 100)) as stream:

        class Pods:
            def execute(self, *words: object) -> Stream:
                return stream

        removal.end_processes(cast("Cluster", Pods()), "pod")


def test_what_is_skipped_of_an_archive_counts_as_time(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("same")
    entry.size, entry.mtime = 1 << 50, 1

    def endless() -> Iterator[bytes]:
        yield entry.tobuf(tarfile.GNU_FORMAT)
        while True:
            yield bytes(io.DEFAULT_BUFFER_SIZE)

    with open_path(str(tmp_path)) as folder:
        copy = OutputsCopy(folder, {"same": (1 << 50, 1)}, 0.3)
        with pytest.raises(TimeoutError):
            copy.take(endless())


@contextmanager
def make_pump(stream: Stream) -> Iterator[pump.Pump]:
    """Make a pump that is not started. Nobody reads its pipes."""
    ends = [*os.pipe(), *os.pipe(), *os.pipe()]
    made = pump.Pump(
        stream=stream,
        carrier=Carrier(bytes(SECRET_SIZE), is_host=True),
        pipes=(ends[0], ends[3], ends[5]),
        limit=1 << 30,
        attach=lambda: stream,
        find_end=lambda: Ending("over"),
        ended=lambda ending: None,
        on_memory=lambda used: None,
    )
    try:
        yield made
    finally:
        made.close(1)
        for fd in ends:
            os.close(fd)


def test_a_pod_that_floods_stderr_before_it_answers_is_not_kept() -> None:
    with (
        talking(frame(2, bytes((STDERR,)) + b"x" * 10_000)) as stream,
        make_pump(stream) as made,
    ):
        assert not made._resume(stream, 1)
        assert len(made._waiting) <= pump.MAX_WAITING
