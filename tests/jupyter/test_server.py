"""A Jupyter server over REST and websockets, used as JupyterLab does, but without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from .. import leaks
from ..world import World
from .helpers import SANDBOXED, SOONEST, wait_until
from .server import JupyterServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    server = JupyterServer(
        tmp_path_factory.mktemp("server"),
        "--KernelRestarter.time_to_dead=0.3",
        "--KernelRestarter.random_ports_until_alive=False",
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def kernel(server: JupyterServer) -> Iterator[str]:
    kernel_id = str(server.ask("POST", "kernels", name=SOONEST)["id"])
    yield kernel_id
    if kernel_id in {k["id"] for k in server.ask("GET", "kernels")}:
        server.ask("DELETE", f"kernels/{kernel_id}")


def test_kernel_runs_interrupts_restarts_and_ends(
    server: JupyterServer, kernel: str, world: World
) -> None:
    """At the end the kernel is deleted, and its sandbox is gone."""
    with server.page(kernel) as page:
        page.execute("print(6 * 7)")
        page.wait_for_text("42")

        loop = page.execute("print('looping')\nwhile True: pass")
        page.wait_for_text("looping")
        server.ask("POST", f"kernels/{kernel}/interrupt")
        assert page.wait_for_reply(loop)["ename"] == "KeyboardInterrupt"

        page.execute("x = 1; print('set')")
        page.wait_for_text("set")
        server.ask("POST", f"kernels/{kernel}/restart")
        page.execute("print('x' in globals())")
        page.wait_for_text("False")
    server.ask("DELETE", f"kernels/{kernel}")
    with pytest.raises(requests.HTTPError, match="404"):
        server.ask("GET", f"kernels/{kernel}")
    if SANDBOXED:
        wait_until(
            lambda: not [p for p in leaks.processes(world, leaks.SANDBOX) if "runsc" in p],
            "the end of the sandbox",
            leaks.GRACE_SECONDS,
        )


def test_all_pages_see_all_outputs(server: JupyterServer, kernel: str) -> None:
    """A page that is opened later sees the outputs from then on."""
    with server.page(kernel) as one, server.page(kernel) as two:
        for page in (one, two):  # a page gets outputs after the reply to its first request
            page.wait_for_reply(page.send("kernel_info_request", {}))
        one.execute("print('from one')")
        two.wait_for_text("from one")
        one.wait_for_text("from one")
        two.execute("print('from two')")
        one.wait_for_text("from two")
        with server.page(kernel) as three:
            three.wait_for_reply(three.send("kernel_info_request", {}))
            one.execute("print('to all')")
            for page in (one, two, three):
                page.wait_for_text("to all")


def test_reopened_page_reaches_same_kernel(server: JupyterServer, kernel: str) -> None:
    with server.page(kernel) as page:
        page.execute("kept = 'kept'; print('done')")
        page.wait_for_text("done")
    with server.page(kernel) as page:
        page.execute("print(kept)")
        page.wait_for_text("kept")


def test_crash_is_reported_and_kernel_restarted(server: JupyterServer, kernel: str) -> None:
    with server.page(kernel) as page:
        page.execute("import os; os._exit(1)")
        page.wait_for_state("restarting")
        page.execute("print('again')")
        page.wait_for_text("again")


def test_page_can_end_kernel(server: JupyterServer, kernel: str) -> None:
    with server.page(kernel) as page:
        page.wait_for_reply(page.send("kernel_info_request", {}))
        page.execute("exit()")
        page.wait_for_state("idle")


def test_kernel_sees_notebooks_folder(server: JupyterServer) -> None:
    """Its outputs are stored beside the notebook."""
    folder: Path = server.folder / "deep"
    folder.mkdir()
    (folder / "data.txt").write_text("of the notebook")
    (folder / "n.ipynb").write_text("{}")
    session = server.ask(
        "POST", "sessions", path="deep/n.ipynb", type="notebook", name="n", kernel={"name": SOONEST}
    )
    try:
        with server.page(session["kernel"]["id"]) as page:
            page.execute("print(open('data.txt').read())")
            page.wait_for_text("of the notebook")
            if SANDBOXED:
                page.execute(
                    "open('/mnt/user-data/outputs/o', 'w').write('kept'); print('written')"
                )
                page.wait_for_text("written")
    finally:
        server.ask("DELETE", f"sessions/{session['id']}")
    if SANDBOXED:
        assert (folder / "outputs" / "o").read_text() == "kept"
        assert (folder / "outputs" / "o").stat().st_uid == folder.stat().st_uid


def test_failed_start_is_reported(world: World, server: JupyterServer) -> None:
    if not SANDBOXED:
        pytest.skip("the local kernel has no settings")
    world.add_kernelspec(
        "gvisor-wrong",
        {
            "argv": ["python3", "-m", "gvisor_kernel", "launch", "-f", "{connection_file}"],
            "display_name": "wrong",
            "language": "python",
            "metadata": {
                "kernel_provisioner": {
                    "provisioner_name": "gvisor-provisioner",
                    "config": {"memory_limit": "lots"},
                }
            },
        },
    )
    kernel = {"name": "gvisor-wrong"}
    with pytest.raises(requests.HTTPError) as error:
        server.ask("POST", "sessions", path="n.ipynb", type="notebook", name="n", kernel=kernel)
    said = error.value.response.json()["message"]
    assert "memory_limit" in said
    assert "What to do" in said
    assert server.ask("GET", "kernels") == []
