"""What kernels that sleep unseen cost a server, and that they are there for who comes."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path

from ..jupyter.copies import copy_saved
from ..jupyter.helpers import wait_until
from ..jupyter.server import JupyterServer
from .clients import Client
from .test_hibernation import find_listed, folder, is_asleep, run, serving, start

__all__ = ["folder"]
COPIES = 5
EACH = 3
"""Descriptors of a kernel that nobody is connected to: two listeners, and the control socket."""


def count(server: JupyterServer) -> int:
    assert server.process is not None
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def find_state(server: JupyterServer, kernel: str) -> str:
    state: str = server.ask("GET", f"kernels/{kernel}")["execution_state"]
    return state


def test_kernels_that_sleep_cost_little_and_are_found(folder: Path) -> None:
    with serving(folder) as server:
        before, kernel = count(server), start(server)["kernel"]["id"]
        with server.page(kernel) as page:
            assert run(page, "x = 5; print(x)") == "5\n"
            awake = count(server)
            assert Client(server).ask("POST", f"kernels/{kernel}/hibernate").ok
            assert is_asleep(Client(server), kernel)
            assert count(server) > before + EACH  # the page is connected
        wait_until(lambda: count(server) < awake - 20, "the descriptors to be closed")
    (saved,) = find_listed(kernel)
    with serving(folder) as server:
        alone = count(server)
        wait_until(lambda: count(server) <= alone - 10, "the descriptors to be closed")
        alone = count(server)
    copies = copy_saved(saved, COPIES)
    with serving(folder) as server:
        client, kernels = Client(server), [kernel, *copies]
        assert {one["id"] for one in server.ask("GET", "kernels")} == set(kernels)
        assert len(server.ask("GET", "sessions")) == len(kernels)
        wait_until(lambda: count(server) == alone + COPIES * EACH, "all of them to rest")

        def look(kernel: str) -> None:
            with server.page(kernel) as page:
                page.wait_for_reply(page.send("kernel_info_request", {}))

        with concurrent.futures.ThreadPoolExecutor(len(kernels)) as pool:
            list(pool.map(look, kernels))
        assert find_state(server, kernel) == "idle"
        assert all(is_asleep(client, one) for one in kernels)
        wait_until(lambda: count(server) == alone + COPIES * EACH, "all of them to rest again")
        with server.page(copies[0]) as page:
            running = page.execute("print(x, flush=True); import time; time.sleep(600)")
            page.wait_for_text("5")
            # The server follows again what the kernel publishes.
            wait_until(lambda: find_state(server, copies[0]) == "busy", "the kernel to be busy")
            server.ask("POST", f"kernels/{copies[0]}/interrupt")
            page.wait_for_reply(running)
            wait_until(lambda: find_state(server, copies[0]) == "idle", "the kernel to be idle")
        server.ask("POST", f"kernels/{copies[1]}/restart")  # nobody has looked at it
        with server.page(copies[1]) as page:
            assert run(page, "print('x' in globals())") == "False\n"
        for one in kernels:
            server.ask("DELETE", f"kernels/{one}")
            assert not find_listed(one)
