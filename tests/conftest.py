"""What every test gets: a private world, warnings as errors, and a search for leftovers.

``GK_TEST_KERNEL`` names another kernelspec than ``gvisor-python``; ``python3``, the ordinary local
kernel, is there to debug the tests themselves. ``GK_TEST_RUNSC`` is the path of
another file ``runsc`` than the first in PATH.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.kernel.background_builder import SnapshotBuilder
from gvisor_kernel.runtimes.runsc.command_line import find_runsc

from . import leaks
from .docker.dockerd import Dockerd, running_dockerd
from .patience import FACTOR, patient
from .world import PROJECT, World

WORLD = pytest.StashKey[World]()

hypothesis.settings.register_profile("no timing", deadline=None)
hypothesis.settings.load_profile("no timing")

IN_SANDBOXES = ("benchmarks", "browser", "docker", "faults", "guest", "jupyter", "runtimes")
IN_SANDBOXES += ("security", "snapshots", "test_launch.py", "test_scripts.py", "cli/test_wheel.py")
"""Where nearly all tests run real sandboxes, and count as slow."""
QUICK = (
    *("docker/test_engine.py", "docker/test_files.py", "docker/test_outputs.py"),
    *("docker/test_stream.py", "guest/test_direct_link.py", "guest/test_zmtp.py"),
    *("jupyter/test_messages.py", "runtimes/test_cgroups.py", "runtimes/test_hints.py"),
    *("runtimes/test_covers.py", "runtimes/test_editable.py", "runtimes/test_images.py"),
    *("runtimes/test_leftovers.py", "runtimes/test_looking.py", "runtimes/test_stderr_log.py"),
    "runtimes/test_world.py",
    *("security/test_privilege.py", "snapshots/test_key.py", "snapshots/test_manifest.py"),
    "snapshots/test_store.py",
)
"""Files there that need none, or a few that show that the whole works."""
ALONE = ("benchmarks/test_run.py", "benchmarks/test_soak.py", "jupyter/test_forks.py")
ALONE += ("jupyter/test_nbclient.py",)
"""Where tests take all that the machine has: they run after the others, in one process."""
MANY = 100
"""Tests in a run; with so many, making an image takes less time than it saves."""


def pytest_configure(config: pytest.Config) -> None:
    """Before test modules are imported, as those read the environment."""
    if config.getini("filterwarnings")[:1] != ["error"] or config.option.pythonwarnings:
        raise pytest.UsageError("Warnings are errors here: do not pass -W, fix or filter by name.")
    chosen = os.environ.get("GK_TEST_RUNSC")
    if chosen and not (Path(chosen).is_absolute() and Path(chosen).name == "runsc"):
        raise pytest.UsageError("GK_TEST_RUNSC is to be the absolute path of a file named runsc.")
    config.addinivalue_line("markers", "alone: takes all that the machine has (tests/run.py)")
    # Kernels that start here share it. Each of the run's processes has a state directory of its
    # own, so that none knows of another's, and would not make or remove it between two looks.
    (PROJECT / "outputs").mkdir(exist_ok=True)
    config.stash[WORLD] = World.create()
    config.stash[WORLD].install()
    # What a shell starts in the background ignores it, and so would all that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", choices=("beside", "alone"), help="only tests that share the machine, or do not"
    )


def pytest_report_header() -> list[str]:
    waits = f"waits: {FACTOR:.1f} times those of an idle machine"
    try:
        runsc = find_runsc()
    except RuntimeMissing as error:
        return [f"runsc: {error.fact}", waits]
    return [f"runsc: {runsc.path}, release {runsc.version}", waits]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``pytest -n`` the slowest come first, as the last to end should be a short one."""
    slow = Counter(group_of(item.nodeid) for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[group_of(item.nodeid)])
    usual = float(config.getini("timeout"))
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        if file.startswith(IN_SANDBOXES) and file not in QUICK:
            item.add_marker(pytest.mark.slow)
        if file.startswith(ALONE):
            item.add_marker(pytest.mark.alone)
        timeout = item.get_closest_marker("timeout")
        seconds = patient(timeout.args[0] if timeout is not None else usual)
        item.add_marker(pytest.mark.timeout(seconds), append=False)
    part = config.getoption("part")
    if part is not None:
        chosen: list[pytest.Item] = []
        left: list[pytest.Item] = []
        for item in items:
            alone = item.get_closest_marker("alone") is not None
            (chosen if alone == (part == "alone") else left).append(item)
        items[:] = chosen
        config.hook.pytest_deselected(items=left)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What may run beside what, with ``pytest -n``: see ``group_of``."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


def group_of(nodeid: str) -> str:
    """Tests of one file share fixtures, and in a file those whose kernels start in one way.

    All that uses the run's Docker engine stays together: each process starts one of its own.
    """
    path, _, name = nodeid.partition("::")
    way = re.search(r"(?<=[-[])(direct|relay|restored|docker)(?=[]-])", name)
    if path.startswith("tests/docker/") or "Docker" in name or (way and way[0] == "docker"):
        return "docker"
    return f"{path} {way[0]}" if way else path


def pytest_unconfigure(config: pytest.Config) -> None:
    if WORLD in config.stash:
        config.stash[WORLD].remove()
    if not hasattr(config, "workerinput"):
        with contextlib.suppress(OSError):  # what is in it is not the run's
            (PROJECT / "outputs").rmdir()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what this machine could not do: nothing is skipped silently."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        if isinstance(report.longrepr, tuple):
            reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
        else:  # a subtest
            reasons[str(report.longrepr)] += 1
    if reasons:
        terminalreporter.section("not tested on this machine")
        for reason, count in sorted(reasons.items()):
            terminalreporter.write_line(f"{count} x {reason}")


@pytest.fixture(scope="session")
def world(pytestconfig: pytest.Config) -> World:
    return pytestconfig.stash[WORLD]


@pytest.fixture(scope="session")
def image(world: World) -> str:
    """The image that kernels of this run start from: what its command said."""
    build = [sys.executable, "-m", "gvisor_kernel", "snapshot", "build"]
    done = subprocess.run(build, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def dockerd(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    """A Docker engine of this run, which the environment names, with an image of this Python."""
    with pytest.MonkeyPatch.context() as patch, running_dockerd() as dockerd:
        patch.setenv("DOCKER_HOST", dockerd.address)
        dockerd.load(tmp_path_factory.mktemp("engine-image"))
        yield dockerd
        assert not dockerd.ours()


@pytest.fixture(scope="session", autouse=True)
def no_images_are_made_beside_the_tests(request: pytest.FixtureRequest) -> None:
    """Nor, unless one is wanted, before them, where they are few."""
    SnapshotBuilder.instance().end()
    if len(request.session.items) >= MANY and not os.environ.get("GK_TEST_KERNEL"):
        request.getfixturevalue("image")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_by_the_run(world: World) -> Iterator[None]:
    before = leaks.everything(world)
    yield
    left = leaks.left_since(before, lambda: leaks.everything(world))
    assert not left, "left behind by the test run:\n" + "\n".join(sorted(left))


@pytest.fixture(scope="module", autouse=True)
def nothing_left_by_the_module(world: World) -> Iterator[None]:
    """Sandboxes only: a server or a browser may serve several modules."""
    before = leaks.everything(world, leaks.SANDBOX)
    yield
    left = leaks.left_since(before, lambda: leaks.everything(world, leaks.SANDBOX))
    assert not left, "left behind by this module:\n" + "\n".join(sorted(left))
