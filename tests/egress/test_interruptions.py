"""What interrupts a transfer in a real sandbox, and large bodies."""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.egress.process import EgressWorker
from gvisor_kernel.runtimes.base import SavedSandbox

from ..docker.dockerd import needs_dockerd
from ..jupyter.helpers import SECONDS, assert_way, execute, finish, wait_for_text, wait_until
from ..sweeps import needs_all
from .test_kernels import HELPERS, kernel_with, run
from .upstream import Fake

SIZE = 100_000_000
DOWNLOAD = """
answer = direct.open(PLAIN + "/endless", timeout=60)
answer.read(65536)
print("it runs", flush=True)
while answer.read(65536):
    pass
"""


@pytest.fixture(
    scope="module", params=["direct", pytest.param("docker", marks=[*needs_dockerd, needs_all])]
)
def kernel(
    upstream: Fake, request: pytest.FixtureRequest
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A kernel with one route, in each runtime."""
    if request.param == "docker":
        request.getfixturevalue("dockerd")
    EgressWorker.instance().stop()
    routes: dict[str, Any] = {"plain": upstream.route("/v1", limits={"request_bytes": SIZE})}
    routes["small"] = {**routes["plain"], "limits": {"request_bytes": 1_000_000}}
    with kernel_with(routes, ["plain", "small"], request.param) as (manager, client):
        assert_way(manager, client, request.param)
        yield manager, client


@pytest.fixture(autouse=True)
def forget(upstream: Fake) -> None:
    upstream.seen.clear()
    upstream.gone.clear()


@needs_all
@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("form", ["with a length", "in chunks"])
def test_a_body_of_100_mb_arrives(
    kernel: tuple[KernelManager, BlockingKernelClient], method: str, form: str
) -> None:
    body = f"iter([bytes(1_000_000)] * {SIZE // 1_000_000})"
    length = f'"Content-Length": "{SIZE}"' if form == "with a length" else ""
    code = f"print(get(PLAIN + '/x', method={method!r}, data={body}, headers={{{length}}}))"
    assert f'"size": {SIZE}' in run(kernel[1], code)


@pytest.mark.parametrize("form", ["with a length", "in chunks"])
def test_a_body_over_the_limit_is_refused_with_a_reason(
    kernel: tuple[KernelManager, BlockingKernelClient], form: str
) -> None:
    length = '"Content-Length": "10000000"' if form == "with a length" else ""
    body = "iter([bytes(1_000_000)] * 10)"
    small = "PLAIN.replace('plain', 'small') + '/x'"
    text = run(kernel[1], f"print(get({small}, data={body}, headers={{{length}}}))")
    assert text.startswith("(413")
    assert "request_bytes" in text


def test_a_download_can_be_interrupted(
    kernel: tuple[KernelManager, BlockingKernelClient], upstream: Fake
) -> None:
    manager, client = kernel
    msg_id = client.execute(DOWNLOAD)
    wait_for_text(client, "it runs")
    manager.interrupt_kernel()
    assert finish(client, msg_id).error == "KeyboardInterrupt"
    run(client, "answer.close()")
    assert upstream.gone.wait(SECONDS)
    assert "/v1/next" in run(client, "print(get(PLAIN + '/next'))")


def test_a_worker_that_is_killed_breaks_a_download(
    kernel: tuple[KernelManager, BlockingKernelClient], upstream: Fake
) -> None:
    _, client = kernel
    msg_id = client.execute(DOWNLOAD)
    wait_for_text(client, "it runs")
    pid = EgressWorker.instance().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    answer = finish(client, msg_id)
    assert answer.error in ("ConnectionResetError", "IncompleteRead")
    assert upstream.gone.wait(SECONDS)
    # A process that is ending closes one socket after the other, and may take a request in between.
    wait_until(lambda: EgressWorker.instance().pid != pid, "the worker's end")
    assert "/v1/next" in run(client, "print(get(PLAIN + '/next'))")


def test_a_sleep_breaks_a_request_and_a_new_one_works(
    kernel: tuple[KernelManager, BlockingKernelClient], upstream: Fake
) -> None:
    manager, client = kernel
    if not isinstance(manager.provisioner._kernel.sandbox, SavedSandbox):  # type: ignore[union-attr]
        pytest.skip("kernels of this runtime do not hibernate")
    upstream.go.clear()
    run(client, "answer = direct.open(PLAIN + '/events', timeout=60); answer.readline()")
    hibernation = manager.provisioner.sandboxed_kernel.hibernation  # type: ignore[union-attr]
    asyncio.run(hibernation.hibernate())
    upstream.go.set()
    code = """
    try: print("more", answer.read())
    except OSError as error: print("broken", type(error).__name__)
    """
    assert "/v1/next" in run(client, "print(get(PLAIN + '/next'))")
    assert run(client, textwrap.dedent(code)).startswith("broken")


def test_a_restart_ends_a_download(
    kernel: tuple[KernelManager, BlockingKernelClient], upstream: Fake
) -> None:
    manager, client = kernel
    client.execute(DOWNLOAD)
    wait_for_text(client, "it runs")
    manager.restart_kernel(now=True)
    client.wait_for_ready(timeout=SECONDS)
    assert upstream.gone.wait(SECONDS)
    assert execute(client, HELPERS).status == "ok"
    assert "/v1/next" in run(client, "print(get(PLAIN + '/next'))")
