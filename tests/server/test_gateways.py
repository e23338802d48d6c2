"""Jupyter's gateways with our kernel: a real Kernel Gateway, and the gateways' own tests."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from websocket import create_connection

from .. import leaks
from ..foreign import get_source, make_environment
from ..jupyter.helpers import SECONDS, wait_until
from ..jupyter.server import Page
from ..sweeps import needs_all
from ..world import World
from .hub import find_ports, run_cell

pytestmark = needs_all
OUTCOME = re.compile(r"^(FAILED|ERROR) \S+::(\w+)", re.MULTILINE)
PASSED = re.compile(r"(\d+) passed")
SUITE_SECONDS = 900

KERNEL_GATEWAY_FAILS = {
    "test_kernel_env": "the kernel gets no variable of its request: see docs/settings.md",
    "test_kernel_gateway_environment_set": "the kernel gets no variable of the gateway",
    "test_prespawn_count": "it waits for half a second for two kernels",
    "test_seed": "it needs a page of github.com",
}
"""Tests that fail with our kernel, and why. The third and the fourth may pass."""
ENTERPRISE_GATEWAY_FAILS = {"test_kernel_env", "test_kernel_wildcard_env"}
"""The kernel gets no variable of its request."""
MAY_PASS = {"test_prespawn_count", "test_seed"}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with Kernel Gateway and this project."""
    folder = tmp_path_factory.mktemp("gateway") / "environment"
    return make_environment(
        *(folder, "jupyter_kernel_gateway", "pytest<9", "pytest-timeout", "hatchling"),
        "pytest-jupyter[server]",
    )


class Gateway:
    """A Kernel Gateway in a process of its own."""

    def __init__(self, python: Path, folder: Path) -> None:
        (port,) = find_ports(1)
        self.token = secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{port}/api"
        options = {
            "KG_IP": "127.0.0.1",
            "KG_PORT": str(port),
            "KG_AUTH_TOKEN": self.token,
            "KG_DEFAULT_KERNEL_NAME": "gvisor-python",
            "KG_LIST_KERNELS": "True",
        }
        self._log = (folder / "gateway.log").open("wb")
        self.process = subprocess.Popen(
            [str(python), "-m", "kernel_gateway"],
            cwd=folder,
            env={**os.environ, **options},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def answers(self) -> bool:
        try:
            return requests.get(self.url, timeout=SECONDS).status_code == 401
        except requests.ConnectionError:
            return False

    def ask(self, method: str, path: str) -> requests.Response:
        header = {"Authorization": f"token {self.token}"}
        answer = requests.request(method, f"{self.url}/{path}", headers=header, timeout=SECONDS)
        answer.raise_for_status()
        return answer

    @contextmanager
    def page(self, kernel: str) -> Iterator[Page]:
        session = secrets.token_hex(8)
        address = f"{self.url.replace('http', 'ws', 1)}/kernels/{kernel}/channels"
        header = [f"Authorization: token {self.token}"]
        url = f"{address}?session_id={session}"
        connection = create_connection(url, timeout=SECONDS, header=header)
        try:
            yield Page(connection, session)
        finally:
            connection.close()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            self._log.close()


@pytest.fixture
def gateway(python: Path, tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(python, tmp_path)
    try:
        wait_until(gateway.answers, "the gateway to listen")
        yield gateway
    finally:
        gateway.stop()
        print((tmp_path / "gateway.log").read_text()[-4000:])


def things(world: World) -> leaks.Things:
    return leaks.find_things(world, leaks.SANDBOX)


@pytest.mark.timeout(900)
def test_kernels_of_a_kernel_gateway_are_sandboxes_and_leave_nothing(
    gateway: Gateway, world: World
) -> None:
    before = things(world)
    kernels = [gateway.ask("POST", "kernels").json()["id"] for _ in range(2)]
    assert {each["id"] for each in gateway.ask("GET", "kernels").json()} == set(kernels)
    for number, kernel in enumerate(kernels):
        with gateway.page(kernel) as page:
            code = f"import os; x = {number}; print(os.uname().release)"
            assert run_cell(page, code) == "4.4.0\n"
    with gateway.page(kernels[0]) as page:
        asked = page.execute("print('begun', flush=True)\nwhile True: pass")
        page.wait_for_text("begun")
        gateway.ask("POST", f"kernels/{kernels[0]}/interrupt")
        assert page.wait_for_reply(asked)["ename"] == "KeyboardInterrupt"
    with gateway.page(kernels[1]) as page:
        assert run_cell(page, "print(x)") == "1\n"
    gateway.ask("DELETE", f"kernels/{kernels[0]}")
    assert [each["id"] for each in gateway.ask("GET", "kernels").json()] == kernels[1:]
    assert things(world) - before, "the second kernel runs"
    gateway.process.send_signal(signal.SIGKILL)
    gateway.process.wait(SECONDS)
    jupyters = {each for each in things(world) if str(world.runtime) in each}
    left = leaks.find_leftovers(before, lambda: things(world) - jupyters)
    assert not left
    for each in jupyters - before:  # connection files: a killed gateway leaves them for any kernel
        Path(each.removeprefix("file ")).unlink()


def run_suite(
    python: Path, source: Path, *words: str, **variables: str
) -> tuple[int, set[str], str]:
    """Run a gateway's own tests; return how many pass, which fail, and what was printed."""
    done = subprocess.run(
        [
            *(str(python), "-m", "pytest", "-q", "--color=no", "-rfE", "-W", "default"),
            *("-p", "no:cacheprovider", f"--timeout={SECONDS:.0f}", *words),
        ],
        cwd=source,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SUITE_SECONDS,
        check=False,
    )
    count = PASSED.search(done.stdout)
    assert count is not None, done.stdout[-4000:]
    return int(count[1]), {name for _, name in OUTCOME.findall(done.stdout)}, done.stdout


@pytest.mark.timeout(2400)
def test_the_kernel_gateways_own_tests(python: Path, tmp_path: Path) -> None:
    source = get_source(python, tmp_path / "source", "jupyter_kernel_gateway")
    passed, failed, said = run_suite(
        *(python, source, "tests"),
        JUPYTER_DEFAULT_PROVISIONER_NAME="gvisor-provisioner",
        JUPYTER_PLATFORM_DIRS="1",
    )
    assert failed <= set(KERNEL_GATEWAY_FAILS), said[-8000:]
    assert failed >= set(KERNEL_GATEWAY_FAILS) - MAY_PASS
    assert passed >= 110


@pytest.mark.timeout(2400)
def test_the_enterprise_gateways_own_tests(tmp_path: Path) -> None:
    """It has an older jupyter_client, without provisioners: the kernelspec's command starts ours.

    Its kernelspec's Python is another one, where this project is.
    """
    python = make_environment(
        *(tmp_path / "environment", "jupyter_enterprise_gateway", "ipykernel", "pytest<8.1"),
        *("pytest-tornasync", "pytest-timeout", "hatchling"),
        ours=False,
    )
    source = get_source(python, tmp_path / "source", "jupyter_enterprise_gateway")
    launch = ["-P", "-m", "gvisor_kernel", "launch", "--kernel", "gvisor-python"]
    spec = {
        "argv": [sys.executable, *launch, "-f", "{connection_file}"],
        "display_name": "Python 3 (gVisor)",
        "language": "python",
    }
    share = python.parent.parent / "share" / "jupyter"
    (share / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    files = ("test_handlers.py", "test_enterprise_gateway.py")
    passed, failed, said = run_suite(
        *(python, source, *(f"enterprise_gateway/tests/{name}" for name in files)),
        ASYNC_TEST_TIMEOUT=str(int(SECONDS)),
        EG_UNAUTHORIZED_USERS="nobody",  # otherwise root gets no kernel
    )
    assert failed == ENTERPRISE_GATEWAY_FAILS, said[-8000:]
    assert passed >= 26
