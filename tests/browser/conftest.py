"""Fixtures: one JupyterLab server per module, and a browser per test."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from ..world import DEFAULT_KERNEL, World
from .lab import LabPage, LabServer, browser

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


@pytest.fixture(scope="module")  # its kernels are gone when the module is done
def server(
    request: pytest.FixtureRequest,
    wrong_setting: None,
    programs: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    artifacts: Path,
) -> Iterator[LabServer]:
    server = LabServer(
        tmp_path_factory.mktemp("lab"),
        artifacts / "jupyterlab.log",
        getattr(request.module, "BASE_URL", "/"),
        getattr(request.module, "OPTIONS", ()),
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
    """JupyterLab's page with the launcher open."""
    with browser(*programs, profile=tmp_path / "profile") as driver:
        page = LabPage(driver, server, artifacts)
        page.open()
        yield page


@pytest.fixture(scope="module")
def desk(
    programs: tuple[str, str],
    server: LabServer,
    tmp_path_factory: pytest.TempPathFactory,
    artifacts: Path,
) -> Iterator[LabPage]:
    """A page that the tests of a module share, as each browser takes seconds to begin."""
    with browser(*programs, profile=tmp_path_factory.mktemp("desk") / "profile") as driver:
        yield LabPage(driver, server, artifacts)
