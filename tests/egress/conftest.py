"""Fixtures: a server for routes to lead to, and a worker as the process that it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.egress.process import EgressWorker, Grant
from gvisor_kernel.egress.routes import parse_routes

from . import indexes
from .indexes import FakeIndex
from .peer import Peer
from .upstream import Fake, make_certificate, serving

SECRET = "sk-test-8f2c51d09b7e"  # noqa: S105
"""The value of the credential that no sandbox may see."""


class Kernel(Peer):
    """A peer whose routes the worker serves. ``log``: the lines for the kernel's log."""

    def __init__(self, worker: EgressWorker, routes: dict[str, Any], audit: Path | None) -> None:
        self.log: list[str] = []
        chosen = tuple(parse_routes(routes).values())
        super().__init__(worker.open(Grant("python-1", chosen, audit), self.log.append))


@pytest.fixture
def index() -> Iterator[FakeIndex]:
    """A package index."""
    with indexes.serving() as index:
        yield index


OpenKernel = Callable[..., Kernel]


@pytest.fixture(scope="module", autouse=True)
def no_worker_left() -> Iterator[None]:
    """End the worker of kernels that ran here: else it would live as long as this process."""
    yield
    EgressWorker.instance().stop()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Fake]:
    """A server without TLS."""
    with serving() as fake:
        yield fake


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fake]:
    """A server with TLS; the worker trusts its CA."""
    ca, both = make_certificate(tmp_path_factory.mktemp("tls"))
    with pytest.MonkeyPatch.context() as patch, serving(both) as fake:
        patch.setenv("SSL_CERT_FILE", str(ca))
        yield fake


@pytest.fixture(scope="module")
def worker(tls: Fake) -> Iterator[EgressWorker]:
    """A worker of this module's own."""
    os.environ["GK_TEST_SECRET"] = SECRET
    worker = EgressWorker()
    yield worker
    worker.end()
    del os.environ["GK_TEST_SECRET"]


@pytest.fixture
def open_kernel(worker: EgressWorker) -> Iterator[OpenKernel]:
    """Return a function that opens a kernel with the routes given."""
    kernels: list[Kernel] = []

    def open_kernel(routes: dict[str, Any], audit: Path | None = None) -> Kernel:
        kernels.append(Kernel(worker, routes, audit))
        return kernels[-1]

    yield open_kernel
    for kernel in kernels:
        kernel.close()


@pytest.fixture
def kernel(open_kernel: OpenKernel, upstream: Fake, tls: Fake) -> Kernel:
    """A kernel with a route of each kind."""
    upstream.seen.clear()
    tls.seen.clear()
    for fake in (upstream, tls):
        fake.go.clear()
        fake.gone.clear()
    return open_kernel(
        {
            "plain": upstream.route("/v1"),
            "api": {
                "url": f"https://127.0.0.1:{tls.port}/v1",
                "allow_private": True,
                "secret": "env:GK_TEST_SECRET",
            },
            "some": upstream.route(methods=["GET"], paths=["/repos/acme/**"]),
            "web": {
                "hosts": [f"127.0.0.1:{upstream.port}", f"127.0.0.1:{tls.port}"],
                "allow_private": True,
            },
        }
    )
