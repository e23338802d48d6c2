"""Another kernel or user swaps folders for links: see ``races``.

They are swapped while a sandbox starts, cold or from a snapshot; while a spare is taken; while a
sandbox ends and the next one starts, as at a restart. In every case nothing of the home is seen,
written or given away, and lent folders are given back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime

from ..patience import scale_seconds
from ..runtimes.conftest import make_request
from ..runtimes.standin import Conversation, Failed, standin_argv
from ..sweeps import ALL, needs_all
from ..world import PROJECT
from .inside import Host
from .races import COMPONENTS, PERSON, Scene, Stop, exchange, make_race_folders, spinning

FREE_STARTS = 500

WRITABLE = ("/mnt/user-data/outputs", "/mnt/more")
READ = ("/mnt/user-data/uploads", "/mnt/skills/public", "/mnt/skills/examples", "/mnt/less")
LOOK = f"{{p: sorted(os.listdir(p)) for p in {(*WRITABLE, *READ)!r}}}"
STARTS = (
    "host/folders.py",
    "host/owners.py",
    "host/stage.py",
    "runtimes/mounts/folders.py",
    "runtimes/mounts/outputs.py",
    "runtimes/runsc/starting.py",
)
"""Modules that open and mount folders, and those of the last steps before the program runs."""
ENDS = (
    "host/folders.py",
    "host/owners.py",
    "runtimes/runsc/runsc_sandbox.py",
    "runtimes/state/records.py",
    "runtimes/state/sweep.py",
)


@pytest.fixture(scope="module", params=["plain", "overlay"])
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    with make_race_folders(tmp_path_factory.mktemp("races"), request.param) as made:
        yield made


@pytest.fixture(scope="module")
def runtime() -> RunscRuntime:
    return RunscRuntime(init_argv=standin_argv(sys.executable))


@pytest.fixture(scope="module")
def standins_snapshot(
    runtime: RunscRuntime, scene: Scene, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("snapshot")
    sandbox = runtime.start(scene.spec, make_request(scene.report))
    try:
        Conversation(sandbox).ask("1")
        sandbox.checkpoint(directory, scale_seconds(60))
    finally:
        sandbox.close()
    return directory


@pytest.fixture(autouse=True)
def unharmed(scene: Scene) -> Iterator[None]:
    host = Host((scene.home,))
    before = host.look()
    yield
    assert host.look() == before
    assert_given_back(scene)


def assert_given_back(scene: Scene) -> None:
    if os.geteuid() == 0:
        paths = (scene.report, *scene.report.rglob("*"))
        lent = [path for path in paths if path.lstat().st_uid != PERSON]
        assert not lent, "what was lent was not given back"


def start(runtime: RunscRuntime, scene: Scene, snapshot: Path | None = None) -> Sandbox | None:
    """Start a sandbox and check it from inside; None if the start is refused."""
    try:
        sandbox = runtime.start(scene.spec, make_request(scene.report), snapshot)
    except GvisorKernelError:
        return None
    try:
        look_inside(sandbox)
    except BaseException:
        sandbox.close()
        raise
    return sandbox


def look_inside(sandbox: Sandbox) -> None:
    inside = Conversation(sandbox)
    seen = inside.ask(LOOK)
    assert not any("secret" in names for names in seen.values()), seen
    for folder in WRITABLE:
        with suppress(Failed):  # "more" is read-only if owners cannot be mapped
            inside.ask(f"open('{folder}/written', 'w').close()")


@pytest.fixture
def chosen_scene(scene: Scene, request: pytest.FixtureRequest) -> Scene:
    """Root has two kinds of folders: without ``--all`` each kind of start has one of them."""
    restored = "restored" in request.node.name
    if os.geteuid() == 0 and not ALL and scene.maps_owners != restored:
        pytest.skip("takes long: run scripts/test --all")
    return scene


def sample(steps: list[str], later: bool = False) -> list[str]:
    """Return evenly spread steps, one for each component; ``later`` gives those in between."""
    every = max(len(steps) // len(COMPONENTS), 1)
    return steps[every // 2 * later :: every]


@pytest.mark.parametrize("way", ["cold", "restored"])
def test_swap_at_each_step_of_start_is_harmless(
    runtime: RunscRuntime, chosen_scene: Scene, way: str, request: pytest.FixtureRequest
) -> None:
    """Each component at a step; with ``--all`` each at all steps."""
    scene = chosen_scene
    snapshot = request.getfixturevalue("standins_snapshot") if way == "restored" else None
    with Stop() as stop:
        sandbox = start(runtime, scene, snapshot)
    assert sandbox is not None, "it does not start even without a swap"
    sandbox.close()
    first = next(i for i, name in enumerate(stop.passed) if "mounts/folders.py:" in name)
    last = next(i for i, name in enumerate(stop.passed) if "starting.py:wait_for" in name)
    steps = stop.passed[first : last + 1]
    assert len(steps) > 50
    near = [step for step in steps if step.split()[1].startswith(STARTS)]
    # A restore takes the same steps: it tests those that the cold start leaves out.
    chosen = steps if ALL else [*sample(near, way == "restored"), steps[-1]]
    started = refused = 0
    for number, step in enumerate(chosen):
        for component in COMPONENTS if ALL else [COMPONENTS[number % len(COMPONENTS)]]:
            with scene.swapped(component) as swap, Stop(step, swap) as stop:
                sandbox = start(runtime, scene, snapshot)
                started += sandbox is not None
                refused += sandbox is None
                if sandbox is not None:
                    sandbox.close()
                assert step in stop.passed
    assert started, "every start was refused"
    assert refused, "no swap was noticed"


def test_spare_of_swapped_folder_is_not_taken(runtime: RunscRuntime, scene: Scene) -> None:
    """A sandbox that was made before is not used when the names lead to other folders now."""
    request = make_request(scene.report)
    sandbox = runtime.start(scene.spec, request)
    try:
        assert runtime.has_current_mounts(sandbox, scene.spec, request)
        for component in COMPONENTS:
            with scene.swapped(component) as swap:
                swap()
                with suppress(GvisorKernelError):
                    assert not runtime.has_current_mounts(sandbox, scene.spec, request), component
            moved = scene.report / component
            moved.rename(moved.with_name("moved"))
            moved.mkdir()
            try:
                with suppress(GvisorKernelError):
                    assert not runtime.has_current_mounts(sandbox, scene.spec, request), component
            finally:
                moved.rmdir()
                moved.with_name("moved").rename(moved)
        assert runtime.has_current_mounts(sandbox, scene.spec, request)
    finally:
        sandbox.close()


def test_swap_while_spare_is_taken_is_harmless(
    runtime: RunscRuntime, scene: Scene, standins_snapshot: Path
) -> None:
    """A spare that was restored before the swap shows the old folder, or is not taken."""
    request = make_request(scene.report)
    sandbox = runtime.start(scene.spec, request, standins_snapshot)
    try:
        with Stop() as stop:
            assert runtime.has_current_mounts(sandbox, scene.spec, request)
        steps = [step for step in stop.passed if step.split()[1].startswith(STARTS)]
        assert len(steps) > 30
        taken = 0
        for number, step in enumerate(steps if ALL else steps[::3]):
            for component in COMPONENTS if ALL else [COMPONENTS[number % len(COMPONENTS)]]:
                with scene.swapped(component) as swap, Stop(step, swap) as stop:
                    with suppress(GvisorKernelError):
                        taken += runtime.has_current_mounts(sandbox, scene.spec, request)
                    assert step in stop.passed
                    look_inside(sandbox)
        assert 0 < taken < len(steps) * len(COMPONENTS)
    finally:
        sandbox.close()


def test_swap_at_each_step_of_end_is_harmless(runtime: RunscRuntime, scene: Scene) -> None:
    """The next start finds the folder swapped, as after a restart."""
    if os.geteuid() == 0 and not ALL and scene.maps_owners:
        pytest.skip("takes long: run scripts/test --all")
    sandbox = start(runtime, scene)
    assert sandbox is not None
    with Stop() as stop:
        sandbox.close()
    near = [step for step in stop.passed if step.split()[1].startswith(ENDS)]
    assert len(near) > 20
    refused = 0
    for number, step in enumerate(near if ALL else sample(near)):
        for component in COMPONENTS if ALL else [COMPONENTS[number % len(COMPONENTS)]]:
            sandbox = start(runtime, scene)
            assert sandbox is not None
            with scene.swapped(component) as swap:
                with Stop(step, swap) as stop:
                    sandbox.close()
                assert step in stop.passed
                sandbox = start(runtime, scene)
                refused += sandbox is None
                if sandbox is not None:
                    sandbox.close()
            assert_given_back(scene)
    assert refused


LIVES = ("start", "renew")
MORE_LIVES = ("shutdown", "restart", "run", "end")


def test_swap_at_each_step_of_kernel_life_is_harmless(scene: Scene, shared_snapshot: str) -> None:
    """A whole kernel, restored if possible; "renew" is a restart with a new sandbox."""
    if not scene.maps_owners:
        pytest.skip("lent folders are tested without a kernel")
    with racing(scene) as ask:
        for stage in (*LIVES, *MORE_LIVES) if ALL else LIVES:
            listed = ask(stage, "", None)
            assert not listed["refused"]
            steps = list(listed["points"])
            if not ALL:
                steps = steps[len(steps) // 4 :: len(steps) // 2]
            for number, step in enumerate(steps):
                for component in ("", "outputs") if ALL else [("", "outputs")[number % 2]]:
                    with scene.swapped(component):
                        ask(stage, component, step)


@contextmanager
def racing(scene: Scene) -> Iterator[Callable[[str, str, str | None], Any]]:
    """Yield ``ask(stage, component, step)``, which returns the answer of the process ``racer``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.security.racer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(stage: str, component: str, step: str | None) -> Any:
        path = scene.report / component if component else scene.report
        request = {
            "stage": stage,
            "snapshot": "auto",
            "at": step,
            "folder": str(scene.report),
            "swap": [str(path), str(path.with_name("link"))],
        }
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, "the kernel saw a hidden file, or hangs: see above"
        return json.loads(answer)

    try:
        yield ask
    finally:
        process.stdin.close()
        process.wait(scale_seconds(30))
        process.stdout.close()


@needs_all
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("component", COMPONENTS)
def test_continuous_swapping_is_harmless(
    runtime: RunscRuntime, scene: Scene, component: str, standins_snapshot: Path
) -> None:
    """Starts, cold and from a snapshot, ends, and sandboxes that were made before."""
    path = scene.report / component if component else scene.report
    link = path.with_name("link")
    request = make_request(scene.report)
    link.symlink_to(scene.home / component)
    try:
        with spinning(path, link):
            for number in range(FREE_STARTS):
                sandbox = start(runtime, scene, standins_snapshot if number % 2 else None)
                if sandbox is None:
                    continue
                for _ in range(10):
                    with suppress(GvisorKernelError):
                        runtime.has_current_mounts(sandbox, scene.spec, request)
                look_inside(sandbox)
                sandbox.close()
    finally:
        if path.is_symlink():
            exchange(path, link)
        link.unlink()
