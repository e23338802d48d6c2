"""Runs nbclient's own tests with all kernels in sandboxes, by Jupyter's default provisioner.

They come from the source distribution of the installed version of nbclient. It is downloaded once
into a cache (``GK_TEST_CACHE``, else ``.cache``).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

from ..sweeps import needs_all
from ..world import PROJECT, World
from .helpers import SANDBOXED

pytestmark = [pytest.mark.slow, pytest.mark.alone, needs_all]

NEEDED = ("nbclient", "nbconvert", "testpath", "xmltodict", "ipywidgets")
NEED_SETTINGS = (
    "test_parallel_notebooks",
    "test_async_parallel_notebooks",
    "test_run_all_notebooks[Skip Exceptions with Cell Tags.ipynb-opts8]",
)
"""The first two need a folder of the host for two kernels, the third a variable of the test."""

PYTEST = (
    *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"),
    *("-o", "addopts=", "-o", "log_cli=false", "-o", "markers=flaky: not retried here"),
    *("-W", "default", "--durations=5", "-rfE"),
)


@pytest.fixture(scope="module")
def sources(world: World) -> Path:
    """The unpacked source distribution."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"nbclient's tests need {', '.join(missing)}: pip install gvisor-kernel[test]")
    name = f"nbclient-{version('nbclient')}"
    cache = Path(os.environ.get("GK_TEST_CACHE", PROJECT / ".cache"))
    archive = cache / f"{name}.tar.gz"
    if not archive.exists():
        folder = world.base / "download"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--no-build-isolation", "--no-binary", "nbclient", "--dest", str(folder)),
                f"nbclient=={version('nbclient')}",
            ],
            env=world.outer,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode != 0:
            pytest.skip(f"{name} could not be downloaded: {done.stderr.strip().splitlines()[-1]}")
        archive = folder / archive.name
        try:
            cache.mkdir(exist_ok=True)
            archive = archive.rename(cache / archive.name)
        except OSError:
            pass  # a read-only checkout or another file system: use the file where it is
    unpacked = world.base / "nbclient"
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    return unpacked / name


def run(sources: Path, folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """Run nbclient's tests, with their own folder for the connection files that they leave."""
    temporary = folder.with_name("tmp")
    temporary.mkdir()
    done = subprocess.run(
        [*PYTEST, f"--basetemp={folder}", *arguments],
        cwd=sources,
        env={
            **os.environ,
            "PYTEST_ADDOPTS": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "TMPDIR": str(temporary),
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=560,
    )
    said = done.stdout[-20_000:] + done.stderr[-4_000:]
    assert done.returncode == 0, said
    print(said)
    return said


@pytest.mark.timeout(600)
def test_nbclient_suite_passes(sources: Path, tmp_path: Path) -> None:
    """Two processes run the halves, as the tests mostly wait."""
    environment = {"JUPYTER_DEFAULT_PROVISIONER_NAME": "gvisor-provisioner"} if SANDBOXED else {}

    def run_half(number: int, which: str) -> str:
        folder = tmp_path / str(number)
        folder.mkdir()
        return run(
            sources,
            folder / "t",
            environment,
            "tests/test_client.py",
            *("-k", which),
            *(f"--deselect=tests/test_client.py::{name}" for name in NEED_SETTINGS),
        )

    with ThreadPoolExecutor() as pool:
        halves = list(pool.map(run_half, range(2), ("TestExecute", "not TestExecute")))
    assert not any("skipped" in said for said in halves)
    assert sum(int(re.findall(r"(\d+) passed", said)[-1]) for said in halves) > 80


def test_nbclient_tests_that_need_settings_pass(
    sources: Path, tmp_path: Path, world: World
) -> None:
    """With a kernelspec ``python3`` whose settings mount the folder and pass the variables."""
    meeting = Path("/var/tmp") / f"{world.base.name}-meeting"
    variables = ["NBEXECUTE_TEST_PARALLEL_TMPDIR", "IPYKERNEL_CELL_NAME"]
    mount = {"source": str(meeting), "target": str(meeting), "read_only": False}
    stanza = {
        "provisioner_name": "gvisor-provisioner",
        "config": {"mounts": [mount], "environment": variables},
    }
    spec = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
        "metadata": {"kernel_provisioner": stanza} if SANDBOXED else {},
    }
    data = tmp_path / "data"
    (data / "kernels" / "python3").mkdir(parents=True)
    (data / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    meeting.mkdir(mode=0o700)
    try:
        said = run(
            sources,
            meeting / "t",
            {"JUPYTER_PATH": str(data)},
            *(f"tests/test_client.py::{name}" for name in NEED_SETTINGS),
        )
        assert f"{len(NEED_SETTINGS)} passed" in said
    finally:
        shutil.rmtree(meeting)
