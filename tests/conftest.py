"""Fixtures of every test: a private world, warnings as errors, and a check for leftovers.

``GK_TEST_KERNEL`` names another kernelspec than ``gvisor-python``. Use ``python3``, the ordinary
local kernel, to debug the tests themselves. ``GK_TEST_RUNSC`` is the path of another ``runsc``
than the first in PATH.
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

from gvisor_kernel.cli import kernelspecs
from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.kernel.snapshot_queue import SnapshotQueue
from gvisor_kernel.runtimes.runsc.command_line import find_runsc
from gvisor_kernel.runtimes.state.kept_packages import wait_until_kept
from gvisor_kernel.spec.layout import GUEST, LAYOUT

from . import leaks, skips, sweeps
from .docker.dockerd import Dockerd, running_dockerd
from .nodes.cluster import Cluster, running_cluster
from .nodes.sshd import Sshd, running_sshd
from .patience import FACTOR, scale_seconds
from .slow_imports import leave_out_grammars
from .world import PROJECT, World

WORLD = pytest.StashKey[World]()
POD_PLACES = ("/venv", GUEST, *list(LAYOUT)[1:], "/mnt/user-data", "/mnt/skills")
"""Where runsc makes folders on the root of the tests' node, which is this machine's."""
MISSING_PLACES = pytest.StashKey[list[str]]()

hypothesis.settings.register_profile("no timing", deadline=None)
hypothesis.settings.load_profile("no timing")

IN_SANDBOXES = (
    "api/test_cancelled.py",
    "api/test_examples.py",
    "api/test_hostile.py",
    "api/test_life.py",
    "api/test_sandbox.py",
    "benchmarks",
    "browser",
    "docker",
    "faults",
    "guest",
    "jupyter",
    "nodes",
    "kubernetes",
    "lasting",
    "runtimes",
)
IN_SANDBOXES += ("security", "snapshots", "test_scripts.py", "cli/test_wheel.py")
IN_SANDBOXES += ("bridge/test_process_end.py", "test_transcript.py")
IN_SANDBOXES += ("egress/test_kernels.py", "egress/test_packages_inside.py")
IN_SANDBOXES += ("egress/test_keys.py", "egress/test_packages_offline.py")
IN_SANDBOXES += ("environments/test_kernels.py",)
IN_SANDBOXES += ("egress/test_packages.py",)
IN_SANDBOXES += ("egress/test_package_attacks.py",)
IN_SANDBOXES += ("egress/test_attacks.py", "egress/test_process.py", "egress/test_requests.py")
IN_SANDBOXES += ("egress/test_clients.py", "egress/test_programs.py")
IN_SANDBOXES += ("egress/test_interruptions.py",)
IN_SANDBOXES += ("egress/test_slow_clients.py",)  # these start the process for routes
IN_SANDBOXES += ("mcp/test_stdio.py", "mcp/test_http.py", "mcp/test_hostile.py")
IN_SANDBOXES += ("server/test_collaboration.py", "server/test_contract.py")
IN_SANDBOXES += ("server/test_ended.py", "server/test_hub.py", "server/test_gateways.py")
IN_SANDBOXES += ("server/test_hostile.py", "server/test_server.py")
IN_SANDBOXES += ("server/test_kernel_preparer.py",)
IN_SANDBOXES += ("server/test_artifacts.py", "server/test_fetch.py", "server/test_lab.py")
IN_SANDBOXES += ("server/test_tiles.py",)
IN_SANDBOXES += ("mcp/test_suites.py", "mcp/test_egress.py", "mcp/test_scale.py")
IN_SANDBOXES += ("egress/test_refused.py", "skills/test_more_inside.py")
IN_SANDBOXES += ("api/test_branches.py", "api/test_checkpoints.py", "api/test_encrypted.py")
IN_SANDBOXES += ("api/test_hibernation.py", "api/test_kept_packages.py", "changes/test_since.py")
IN_SANDBOXES += ("server/test_branches.py", "server/test_hibernation.py", "server/test_resting.py")
IN_SANDBOXES += ("mcp/test_branches.py",)
IN_SANDBOXES += ("changes/test_kernels.py", "changes/test_new_files.py", "skills/test_inside.py")
"""Files in which nearly all tests run real sandboxes, or pip itself; they are marked slow."""
QUICK = (
    *("docker/test_container.py", "kubernetes/test_pod.py", "kubernetes/test_settings.py"),
    *("docker/test_engine.py", "docker/test_files.py", "docker/test_outputs.py"),
    *(
        "kubernetes/test_collection.py",
        "kubernetes/test_deploy.py",
        "kubernetes/test_frames.py",
        "kubernetes/test_lies.py",
        "kubernetes/test_pod_state.py",
        "kubernetes/test_doctor.py",
    ),
    *("docker/test_stream.py", "guest/test_direct_link.py", "guest/test_egress.py"),
    *("guest/test_interpreter.py", "guest/test_font_list.py"),
    *("guest/test_cell_imports.py", "guest/test_preload.py"),
    *(
        "guest/test_service_changes.py",
        "guest/test_zmtp.py",
        "jupyter/test_messages.py",
        "runtimes/test_hints.py",
    ),
    *("runtimes/test_covers.py", "runtimes/test_editable.py"),
    *("runtimes/test_leftovers.py", "runtimes/test_image_probe.py", "runtimes/test_stderr_log.py"),
    *("runtimes/test_world.py", "nodes/test_orders.py", "nodes/test_engines.py"),
    "nodes/test_relay.py",
    "nodes/test_starts.py",
    "nodes/test_queue.py",
    "nodes/test_files.py",
    *("security/test_privilege.py", "snapshots/test_key.py", "snapshots/test_manifest.py"),
    *("snapshots/test_store.py", "snapshots/test_learned.py"),
)
"""Exceptions: files whose tests need no sandbox, or a few that show that the whole works."""
ONE_GROUP = ("tests/jupyter/test_root_images.py",)
"""Files whose fixtures take longer than the tests would take in one process."""
TOGETHER = {
    f"tests/browser/test_{name}.py": group
    for group, names in {
        "pages": ("doors", "files", "media", "output_frames", "outputs", "wall", "widgets"),
        "frames": (
            "extension",
            "firefox",
            "frame",
            "frame_keys",
            "frame_network",
            "frame_realm",
            "lab",
            "libraries",
        ),
    }.items()
    for name in names
}
"""Files that share a browser, and most of them a server (tests/browser/conftest.py). Not one group,
which would take longer than all others."""
FIRST = "tests/test_style.py"
"""mypy takes longer than any other test of the fast subset."""
ENGINES = {"Docker": "docker", "Ssh": "ssh", "Slurm": "slurm"}
"""Words in the names of tests that use an engine of the run, which each process starts for itself;
and the names of the ways in which kernels start there."""
MANY = 100
"""Number of slow tests from which making a snapshot takes less time than it saves."""


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before test modules, which read it, are imported."""
    if config.getini("filterwarnings")[:1] != ["error"] or config.option.pythonwarnings:
        raise pytest.UsageError(
            "Warnings are errors here: do not pass -W; fix the warning or filter it by name."
        )
    chosen = os.environ.get("GK_TEST_RUNSC")
    if chosen and not (Path(chosen).is_absolute() and Path(chosen).name == "runsc"):
        raise pytest.UsageError("GK_TEST_RUNSC must be the absolute path of a file named runsc.")
    config.addinivalue_line("markers", "alone: uses the whole machine (tests/run.py)")
    # Kernels that start here share it. Each process of the run has a state directory of its own and
    # does not know the others' kernels, so it could make or remove it between two checks.
    (PROJECT / "outputs").mkdir(exist_ok=True)
    config.stash[MISSING_PLACES] = [place for place in POD_PLACES if not Path(place).exists()]
    leave_out_grammars()
    config.stash[WORLD] = World.create()
    config.stash[WORLD].install()
    # A process that a shell starts in the background ignores SIGINT, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        choices=("beside", "alone"),
        help="run only tests that share the machine, or only those that need it alone",
    )


def pytest_report_header() -> list[str]:
    waits = f"waits: {FACTOR:.1f} times as long as on an idle machine"
    try:
        runsc = find_runsc()
    except RuntimeMissing as error:
        return [f"runsc: {error.fact}", waits]
    return [f"runsc: {runsc.path}, release {runsc.version}", waits]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark slow tests, scale timeouts, and put long groups first so that a short one ends last."""
    usual = float(config.getini("timeout"))
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        if file.startswith(IN_SANDBOXES) and file not in QUICK:
            item.add_marker(pytest.mark.slow)
        if not sweeps.ALL and sweeps.is_long(file, item.name):
            item.add_marker(sweeps.needs_all)
        if not sweeps.ALL and os.geteuid() == 0 and sweeps.is_by_user(file, item.name):
            reason = "takes long: run scripts/test --all, and the ordinary user's part"
            item.add_marker(pytest.mark.skip(reason=reason))
        timeout = item.get_closest_marker("timeout")
        seconds = scale_seconds(timeout.args[0] if timeout is not None else usual)
        item.add_marker(pytest.mark.timeout(seconds), append=False)
    slow = Counter(group_of(item.nodeid) for item in items if is_slow(item))
    items.sort(key=lambda item: (not item.nodeid.startswith(FIRST), -slow[group_of(item.nodeid)]))
    part = config.getoption("part")
    if part is not None:
        chosen: list[pytest.Item] = []
        left: list[pytest.Item] = []
        for item in items:
            alone = item.get_closest_marker("alone") is not None
            (chosen if alone == (part == "alone") else left).append(item)
        items[:] = chosen
        config.hook.pytest_deselected(items=left)


def is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule tests by group with ``pytest -n``: see ``group_of``."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


def group_of(nodeid: str) -> str:
    """Return the scheduling group of a test: its file and the way its kernels start.

    These tests share fixtures. Some files share them, too (``TOGETHER``). All tests that use an
    engine of the run are one group, because each process starts its own.
    """
    path, _, name = nodeid.partition("::")
    if path in ONE_GROUP:
        return path
    if path in TOGETHER:
        return TOGETHER[path]
    way = re.search(r"(?<=[-[])(direct|relay|restored|docker|ssh|slurm)(?=[]-])", name)
    for engine, servers in ENGINES.items():
        if engine in name or (way and way[0] == servers):
            return servers
    if path.startswith("tests/docker/"):
        return "docker"
    return f"{path} {way[0]}" if way else path


def pytest_unconfigure(config: pytest.Config) -> None:
    if WORLD in config.stash:
        config.stash[WORLD].remove()
    if not hasattr(config, "workerinput"):
        for place in (str(PROJECT / "outputs"), *config.stash.get(MISSING_PLACES, [])):
            with contextlib.suppress(OSError):  # it has files that are not the run's
                Path(place).rmdir()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the reasons of skipped tests, so that nothing is skipped silently."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        if isinstance(report.longrepr, tuple):
            reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
        else:  # a subtest
            reasons[str(report.longrepr)] += 1
    if reasons:
        skips.append(reasons)
        terminalreporter.section("not tested on this machine")
        for reason, count in sorted(reasons.items()):
            terminalreporter.write_line(f"{count} x {reason}")


@pytest.fixture(scope="session")
def world(pytestconfig: pytest.Config) -> World:
    return pytestconfig.stash[WORLD]


@pytest.fixture(scope="session")
def shared_snapshot(world: World) -> str:
    """Make the snapshot that kernels of this run start from; the output of its command.

    It is of kernels that keep outputs, as in the folders of tests. The checkout may lie where no
    sandbox writes, such as below ``/usr``.
    """
    folder = world.make_folder("w")
    build = [sys.executable, "-m", "gvisor_kernel", "snapshot", "build"]
    done = subprocess.run(
        build, cwd=folder, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def dockerd(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    """A Docker engine of this run, named by the environment, with an image of this Python."""
    with pytest.MonkeyPatch.context() as patch, running_dockerd() as dockerd:
        patch.setenv("DOCKER_HOST", dockerd.address)
        dockerd.load(tmp_path_factory.mktemp("engine-image"))
        yield dockerd
        assert not dockerd.ours()


@pytest.fixture(scope="session")
def sshd(world: World) -> Iterator[Sshd]:
    """OpenSSH's server on loopback; kernels of the kernelspec ``…-ssh`` run behind it."""
    with running_sshd(world.make_folder("sshd"), world.base / "node") as server:
        world.add_way("ssh", server.settings)
        yield server


@pytest.fixture(scope="session")
def cluster(world: World) -> Iterator[Cluster]:
    """A Slurm cluster of this run; kernels of the kernelspec ``…-slurm`` run on it."""
    with (
        pytest.MonkeyPatch.context() as patch,
        running_cluster(world.make_folder("slurm"), world.base / "node") as cluster,
    ):
        patch.setenv("SLURM_CONF", str(cluster.config))
        world.add_way("slurm", cluster.settings)
        yield cluster
        assert cluster.jobs() == []


@pytest.fixture(scope="session", autouse=True)
def no_background_snapshots(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make no snapshot beside the tests, and one before them only if many tests start kernels.

    An install by the command in this process makes none either.
    """
    SnapshotQueue.instance().stop()
    many = sum(map(is_slow, request.session.items)) >= MANY
    if many and not os.environ.get("GK_TEST_KERNEL"):
        request.getfixturevalue("shared_snapshot")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernelspecs, "build_missing", lambda kernel_name: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def run_leaves_nothing(world: World) -> Iterator[None]:
    before = leaks.find_things(world)
    yield
    left = leaks.find_leftovers(before, lambda: leaks.find_things(world))
    assert not left, "left behind by the test run:\n" + "\n".join(sorted(left))


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing(world: World) -> Iterator[None]:
    """Check only sandboxes: a server or a browser may serve several modules."""
    before = leaks.find_sandboxes(world)
    yield
    wait_until_kept(scale_seconds(60))  # it opens and closes files meanwhile, which others count
    left = leaks.find_leftovers(before, lambda: leaks.find_sandboxes(world))
    assert not left, "left behind by this module:\n" + "\n".join(sorted(left))
