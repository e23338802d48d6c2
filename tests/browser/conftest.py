"""Fixtures: a JupyterLab server and a browser for modules that share them, or of their own.

A browser's first page of JupyterLab costs twice what the next ones cost, and more than most tests.
``group_of`` in tests/conftest.py has the modules of a process that shares them run one after
another.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from selenium import webdriver

from ..world import DEFAULT_KERNEL, World
from .lab import EXPOSED, LabPage, LabServer, browser

ARTIFACTS = Path(__file__).parents[2] / "test-artifacts"
KERNEL = os.environ.get("GK_TEST_KERNEL", DEFAULT_KERNEL)
IN_SANDBOXES = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not KERNEL.startswith("gvisor"), reason="GK_TEST_KERNEL names a kernel without a sandbox"
    ),
]
"""Marks of modules whose kernels must be ours."""
WRONG_SETTING = "Python 3 (gVisor, wrong setting)"


@pytest.fixture(scope="session")
def programs() -> tuple[str, str]:
    """Paths of the browser and its driver."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("no browser: install the packages chromium and chromium-driver")
    return chromium, chromedriver


@pytest.fixture(scope="session")
def display_name() -> str:
    """The kernel's name in the launcher."""
    return str(KernelSpecManager().get_kernel_spec(KERNEL).display_name)


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for screenshots."""
    try:
        ARTIFACTS.mkdir(exist_ok=True)
        (ARTIFACTS / "browser.log").touch()
    except OSError:  # the checkout is not writable
        return tmp_path_factory.mktemp("artifacts")
    return ARTIFACTS


@pytest.fixture(scope="session")
def wrong_setting(world: World) -> None:
    """A kernelspec that cannot start."""
    world.add_kernelspec(
        "gvisor-wrong-setting",
        {
            "argv": [
                *(sys.executable, "-m", "gvisor_kernel", "launch"),
                *("--kernel", "gvisor-wrong-setting", "-f", "{connection_file}"),
            ],
            "display_name": WRONG_SETTING,
            "language": "python",
            "metadata": {
                "kernel_provisioner": {
                    "provisioner_name": "gvisor-provisioner",
                    "config": {"memory_limit": "lots"},
                }
            },
        },
    )


@pytest.fixture(scope="package")
def shared_server(
    wrong_setting: None, tmp_path_factory: pytest.TempPathFactory, artifacts: Path
) -> Iterator[LabServer]:
    """The server of modules that ask for no other one. It makes no sandbox ready beforehand."""
    options = (*EXPOSED, "--GVisorServer.warm=False")
    server = LabServer(tmp_path_factory.mktemp("lab"), artifacts / "jupyterlab.log", "/", options)
    server.log_path.write_text("")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest,
    wrong_setting: None,
    programs: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    artifacts: Path,
) -> Iterator[LabServer]:
    """A server, whose kernels are gone when the module is done."""
    base_url = getattr(request.module, "BASE_URL", "/")
    options = getattr(request.module, "OPTIONS", EXPOSED)
    if (base_url, options) == ("/", EXPOSED):
        server = request.getfixturevalue("shared_server")
        yield server
        server.end_kernels()
        return
    name = request.module.__name__.rpartition(".")[2]
    server = LabServer(
        tmp_path_factory.mktemp("lab"), artifacts / f"jupyterlab-{name}.log", base_url, options
    )
    server.log_path.write_text("")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def lab(
    programs: tuple[str, str], server: LabServer, tmp_path: Path, artifacts: Path
) -> Iterator[LabPage]:
    """JupyterLab's page with the launcher open, in a browser of the test's own."""
    with browser(*programs, profile=tmp_path / "profile") as driver:
        page = LabPage(driver, server, artifacts)
        page.open()
        yield page


@pytest.fixture(scope="package")
def shared_browser(
    programs: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[webdriver.Chrome]:
    with browser(*programs, profile=tmp_path_factory.mktemp("browser") / "profile") as driver:
        yield driver


@pytest.fixture(scope="module")
def driver(
    request: pytest.FixtureRequest,
    programs: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[webdriver.Chrome]:
    """The browser that modules share, with one empty window; for a module with LOGGED its own."""
    if getattr(request.module, "LOGGED", False):
        profile = tmp_path_factory.mktemp("logged") / "profile"
        with browser(*programs, profile, logged=True) as own:
            yield own
        return
    shared_browser = request.getfixturevalue("shared_browser")
    yield shared_browser
    first, *others = shared_browser.window_handles
    for window in others:
        shared_browser.switch_to.window(window)
        shared_browser.close()
    shared_browser.switch_to.window(first)
    shared_browser.get("about:blank")
    shared_browser.delete_all_cookies()  # servers at other ports have the same


@pytest.fixture(scope="module")
def desk(driver: webdriver.Chrome, server: LabServer, artifacts: Path) -> Iterator[LabPage]:
    """A page that the tests of a module share."""
    yield LabPage(driver, server, artifacts)
    driver.get("about:blank")  # so that it starts no kernel while they are ended
