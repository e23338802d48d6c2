"""A kernel that differs from the snapshot in anything starts cold, with the right settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import KernelManager

from gvisor_kernel.snapshots.snapshot_store import Store

from ..jupyter.helpers import execute, kernel_log, running_kernel
from ..sweeps import ALL, needs_all
from ..world import World
from .conftest import make_python


def start_cold(
    code: str,
    folder: Path,
    environment: dict[str, str] | None = None,
    reason: str = "no snapshot fits",
    **how: Any,
) -> str:
    """Return what ``code`` prints in a kernel for which no snapshot fits, though there is one."""
    start = {"cwd": str(folder), "env": {**os.environ, **(environment or {})}}
    before = {snapshot.meta.key for snapshot in Store.open().snapshots()}
    assert before
    with running_kernel(start=start, **how) as (manager, client):
        log = kernel_log(manager)
        said = execute(client, code).text
    assert f"the kernel starts without a snapshot: {reason}" in log
    assert {snapshot.meta.key for snapshot in Store.open().snapshots()} == before, (
        "the snapshot must stay for other kernels"
    )
    return said


pytestmark = [pytest.mark.usefixtures("shared_snapshot"), pytest.mark.once]


def test_other_mounts_and_limits_start_cold(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.csv").touch()
    mount = {"source": str(tmp_path / "data"), "target": "/srv/data"}
    code = "import os, json; info = json.load(open('/container_info.json'))\n"
    code += "print(os.listdir('/srv/data'), info['limits']['pids'], info['limits']['disk_bytes'])"
    settings = {"mounts": [mount], "pids_limit": 100, "disk_limit": "1G"}
    said = start_cold(code, tmp_path, settings=settings)
    assert said == f"['mine.csv'] 100 {1 << 30}\n"


@needs_all  # the next test has such a variable, too
def test_early_variable_starts_cold(tmp_path: Path) -> None:
    settings = {"environment": ["PYTHONOPTIMIZE"], "preload": ["wave"]}
    code = "import os, sys; print(sys.flags.optimize, 'wave' in sys.modules)"
    said = start_cold(code, tmp_path, {"PYTHONOPTIMIZE": "2"}, settings=settings)
    assert said == "2 False\n"


def test_variable_that_cannot_be_received_starts_cold(tmp_path: Path) -> None:
    """Behind the relay, or if a module of ``preload`` may have read it before the snapshot."""
    code = "import os; print(os.environ['OMP_NUM_THREADS'])"
    for more in ({"preload": ["wave"]}, *([{"kernel_mode": "relay"}] if ALL else [])):
        settings = {"environment": ["OMP_NUM_THREADS"], **more}
        reason = "this kernel cannot receive" if "kernel_mode" in more else "modules of preload"
        said = start_cold(
            code, tmp_path, {"OMP_NUM_THREADS": "3"}, reason=reason, settings=settings
        )
        assert said == "3\n"


def test_other_interpreter_starts_cold(tmp_path: Path) -> None:
    python = make_python(tmp_path / "environment")

    def choose(manager: KernelManager) -> None:
        assert manager.kernel_spec is not None
        manager.kernel_spec.argv[0] = str(python)

    said = start_cold("import sys; print(sys.prefix)", tmp_path, prepare=choose)
    assert said == f"{tmp_path / 'environment'}\n"


def test_other_runsc_starts_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper around the same program counts as another one."""
    program = tmp_path / "bin" / "runsc"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which("runsc")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert start_cold("print(40 + 2)", tmp_path) == "42\n"


@pytest.fixture
def one_processor() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    if len(before) == 1:
        pytest.skip("this machine has one processor")
    use_processors({min(before)})
    yield
    use_processors(before)


def use_processors(which: set[int]) -> None:
    """Set the CPUs of all threads, as for a server that was started with them."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), which)


@pytest.mark.usefixtures("one_processor")
def test_fewer_cpus_start_cold(tmp_path: Path) -> None:
    assert start_cold("import os; print(os.cpu_count())", tmp_path) == "1\n"


def test_a_folder_whose_outputs_are_not_kept_costs_no_snapshot(world: World) -> None:
    """Nobody may write the server's folders: the snapshot of kernels that keep outputs has more
    mounts, fails there, and would be discarded for all kernels."""
    folder = world.kernelspecs.parent / "notebooks"
    (folder / "outputs").mkdir(parents=True)
    start_cold("print(40 + 2)", folder)
    shutil.rmtree(folder)
