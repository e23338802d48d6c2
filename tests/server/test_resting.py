"""What kernels that sleep unseen cost a server, and that they are there for who comes."""

from __future__ import annotations

import concurrent.futures
import json
import threading
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.bridge.addresses import LISTENING
from gvisor_kernel.host.processes import read_children
from gvisor_kernel.server.resting import _is_asked_again

from ..jupyter.copies import copy_saved
from ..jupyter.helpers import SECONDS, wait_until
from ..jupyter.server import JupyterServer
from .clients import Client
from .test_hibernation import find_listed, folder, is_asleep, run, serving, start

__all__ = ["folder"]
COPIES = 4
EACH = 2
"""Descriptors of a kernel that nobody is connected to: its listeners."""


def count(server: JupyterServer) -> int:
    assert server.process is not None
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def count_resting(server: JupyterServer) -> int:
    """Return the number of kernels that a server has no more than listeners for."""
    assert server.process is not None
    own = set()
    for one in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with suppress(OSError):  # it was closed meanwhile
            own.add(str(one.stat().st_ino))
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    bells = [words for words in lines if words[-1].endswith("-0") and words[5] == LISTENING]
    return sum(words[6] in own for words in bells)


def find_state(server: JupyterServer, kernel: str) -> str:
    state: str = server.ask("GET", f"kernels/{kernel}")["execution_state"]
    return state


def make_copies(folder: Path) -> list[str]:
    """Let a server leave a kernel that has ``x = 5``; return it and copies of it."""
    with serving(folder) as server:
        kernel: str = start(server)["kernel"]["id"]
        with server.page(kernel) as page:
            assert run(page, "x = 5; print(x)") == "5\n"
    (saved,) = find_listed(kernel)
    return [kernel, *copy_saved(saved, COPIES)]


def stop_amid_start(folder: Path, kernels: list[str]) -> None:
    """Stop a server when it has listed its first kernel, and all of them are to follow."""
    server = JupyterServer(folder, extensions=("gvisor_kernel.server",))
    server.leaves = True

    def begin() -> None:
        with suppress(AssertionError):  # it never listens
            server.start()

    thread = threading.Thread(target=begin)
    thread.start()
    try:
        wait_until(lambda: any("Kernel started" in line for line in server.log), "a first kernel")
        assert server.process is not None
        server.process.terminate()
        server.process.wait(SECONDS)
    finally:
        server.stop()
        thread.join()
    assert {one: [it.state for it in find_listed(one)] for one in kernels} == {
        one: ["hibernated"] for one in kernels
    }


def test_kernels_that_sleep_cost_little_and_are_found(folder: Path) -> None:
    kernels = make_copies(folder)
    stop_amid_start(folder, kernels)
    with serving(folder) as server:
        client = Client(server)
        assert {one["id"] for one in server.ask("GET", "kernels")} == set(kernels)
        assert len(server.ask("GET", "sessions")) == len(kernels)

        def look(kernel: str) -> None:
            with server.page(kernel) as page:
                page.wait_for_reply(page.send("kernel_info_request", {}))

        with concurrent.futures.ThreadPoolExecutor(len(kernels)) as pool:
            list(pool.map(look, kernels[:-1]))  # and miss what comes after the reply
        assert {find_state(server, one) for one in kernels} == {"idle"}
        assert all(is_asleep(client, one) for one in kernels)
        wait_until(lambda: count_resting(server) == len(kernels), "all of them to rest")
        with server.page(kernels[1]) as page:
            running = page.execute("print(x, flush=True); import time; time.sleep(600)")
            page.wait_for_text("5")
            # The server follows again what the kernel publishes.
            wait_until(lambda: find_state(server, kernels[1]) == "busy", "the kernel to be busy")
            server.ask("POST", f"kernels/{kernels[1]}/interrupt")
            page.wait_for_reply(running)
            wait_until(lambda: find_state(server, kernels[1]) == "idle", "the kernel to be idle")
        server.ask("DELETE", f"kernels/{kernels[1]}")
        # The process that would go on with copies of packages is there until they are made.
        wait_until(lambda: not read_children(server.process.pid), "packages to be kept")
        rested, left = count(server), [kernels[0], *kernels[2:]]
        for one in left:
            server.ask("DELETE", f"kernels/{one}")
        assert not any(map(find_listed, kernels))
        # One more: a connection of a request before may have been about to be closed.
        assert rested - count(server) <= EACH * len(left) + 1


def test_a_page_misses_no_output_as_it_comes_back() -> None:
    def is_asked_again(kind: str, parent: str) -> bool:
        header, of = (json.dumps(it).encode() for it in ({"msg_type": kind}, {"msg_type": parent}))
        return _is_asked_again([b"id", b"<IDS|MSG>", b"", header, of if parent else b"{}", b"{}"])

    for kind, parent in (
        ("iopub_welcome", ""),
        ("status", ""),
        ("status", "kernel_info_request"),
        ("comm_info_reply", "comm_info_request"),
    ):
        assert is_asked_again(kind, parent)
    for kind, parent in (
        ("status", "execute_request"),
        ("execute_reply", "execute_request"),
        ("stream", ""),
        ("comm_msg", "comm_msg"),
    ):
        assert not is_asked_again(kind, parent)
