"""What is installed in a kernel: where it goes, who imports it, and what survives a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from ..jupyter.conftest import way as way
from ..jupyter.helpers import SECONDS, assert_way, execute, running_kernel
from ..sweeps import needs_all
from ..world import WAYS
from .indexes import make_wheel

EITHER_WAY = pytest.mark.parametrize(
    "way", [pytest.param("direct", marks=needs_all), "restored"], indirect=True
)

MODULE = "VERSION = {!r}\ndef hello():\n    print('hello', VERSION)\n"
OFFLINE = """
import os
os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/mnt/user-data/uploads",
               "NO_COLOR": "1", "UV_OFFLINE": "1", "UV_FIND_LINKS": "/mnt/user-data/uploads"}
"""


def add_wheel(folder: Path, name: str, version: str) -> None:
    files = {f"{name}.py": MODULE.format(version)}
    wheel = make_wheel(name, version, files)
    (folder / f"{name}-{version}-py3-none-any.whl").write_bytes(wheel)


@pytest.fixture(scope="module")
def kernel(
    way: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A kernel with the route, and wheels among its uploads. Each test removes what it installs."""
    uploads = tmp_path_factory.mktemp("uploads")
    for name, version in (("demo", "1.0"), ("demo", "2.0"), ("six", "99.0")):
        add_wheel(uploads, name, version)
    settings = {**WAYS[way], "egress": ["packages"]}
    with running_kernel(settings=settings, start={"cwd": str(uploads)}) as (manager, client):
        assert_way(manager, client, way)
        assert execute(client, OFFLINE).status == "ok"
        yield manager, client


def run(client: BlockingKernelClient, code: str) -> str:
    answer = execute(client, code)
    assert answer.status == "ok", answer.outputs
    return answer.text


@EITHER_WAY
def test_what_is_installed_is_imported_at_once_and_after_a_restart(
    kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    manager, client = kernel
    assert "Successfully installed demo-1.0" in run(client, "%pip install demo==1.0")
    assert run(client, "import demo; print(demo.VERSION)") == "1.0\n"
    assert "hello 1.0" in run(client, "!demo-hello")
    child = "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', "
    child += "'import demo, ipykernel; demo.hello()'], capture_output=True, text=True))"
    assert "hello 1.0" in run(client, child)
    manager.restart_kernel(now=True)
    client.wait_for_ready(timeout=SECONDS)
    assert run(client, "import demo; print(demo.VERSION)") == "1.0\n"
    assert execute(client, OFFLINE).status == "ok"
    assert "Successfully uninstalled demo-1.0" in run(client, "%pip uninstall -y demo")


@EITHER_WAY
def test_the_shells_pip_is_the_kernels(kernel: tuple[KernelManager, BlockingKernelClient]) -> None:
    _, client = kernel
    run(client, "import sys; sys.modules.pop('demo', None)")  # of another test
    assert "Successfully installed demo-2.0" in run(client, "!pip install demo")
    assert run(client, "import demo; print(demo.VERSION)") == "2.0\n"
    assert "Successfully uninstalled demo-2.0" in run(client, "!python -m pip uninstall -y demo")


@EITHER_WAY
def test_a_package_of_the_image_is_hidden_by_another_version_and_comes_back(
    kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    _, client = kernel
    version = "!python -c 'import importlib.metadata as m; print(m.version(\"six\"))'"
    before = run(client, version)
    text = run(client, "%pip install six==99.0")
    assert "Not uninstalling six" in text
    assert "Successfully installed six-99.0" in text
    assert "99.0" in run(client, version)
    assert "Successfully uninstalled six-99.0" in run(client, "%pip uninstall -y six")
    assert run(client, version) == before
    assert "outside environment /home/user/.venv" in run(client, "%pip uninstall -y six")


@EITHER_WAY
def test_uv_installs_into_the_kernels_environment(
    kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    _, client = kernel
    if run(client, "import shutil; print(shutil.which('uv'))") == "None\n":
        pytest.skip("uv is not in the sandbox")
    assert "demo==1.0" in run(client, "!uv pip install demo==1.0")
    assert "1.0" in run(client, "!python -c 'import demo; print(demo.VERSION)'")
    assert "demo==1.0" in run(client, "!uv pip uninstall demo")
