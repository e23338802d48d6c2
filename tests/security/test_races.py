"""Folders that are swapped for links while a kernel starts: by another kernel, or another user.

One sandbox may write ``proj/outputs``; a notebook lies in ``proj/outputs/report``, and all that it
is shown lies there, too. At each step of its start something of this is swapped for a link into a
home. The steps are the calls of the package's functions: the start is stopped at one, and goes on
when the swap is done. Whatever comes of it, nothing of the home is seen, written or given away.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import gvisor_kernel
from gvisor_kernel.config import ExtraMount, SandboxSpec
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.runtimes.runsc import RunscRuntime

from ..jupyter.helpers import needs_all
from ..runtimes.conftest import make_request, overlay
from ..runtimes.standin import Conversation, Failed, standin_argv
from .inside import Host

PACKAGE = str(Path(gvisor_kernel.__file__).parent) + os.sep
ALL = os.environ.get("GK_TEST_ALL") == "1"
FREE_STARTS = 500
PERSON = 4711
RENAME_EXCHANGE = 2
AT_FDCWD = -100

WRITABLE = ("/mnt/user-data/outputs", "/mnt/more")
READ = ("/mnt/user-data/uploads", "/mnt/skills/public", "/mnt/skills/examples", "/mnt/less")
LOOK = f"{{p: sorted(os.listdir(p)) for p in {(*WRITABLE, *READ)!r}}}"
COMPONENTS = ("", "outputs", "data", "more", "less", "skills", "skills/public")
"""Of ``report``, what is swapped; "" is the notebook's folder itself."""


@dataclass(frozen=True)
class Scene:
    """``report`` is the notebook's folder, ``home`` has the same names in it, and a secret each."""

    report: Path
    home: Path
    maps_owners: bool = True

    @property
    def spec(self) -> SandboxSpec:
        return SandboxSpec(
            uploads="data",
            skills=str(self.report / "skills"),
            mounts=(
                ExtraMount(str(self.report / "more"), "/mnt/more", read_only=not self.maps_owners),
                ExtraMount(str(self.report / "less"), "/mnt/less"),
            ),
        )

    @contextmanager
    def swapped(self, component: str) -> Iterator[Callable[[], None]]:
        """A function that swaps; all is as it was afterwards."""
        path = self.report / component if component else self.report
        link, aim = path.with_name("link"), self.home / component if component else self.home
        link.symlink_to(aim)
        done = []

        def swap() -> None:
            done.append(True)
            exchange(path, link)

        try:
            yield swap
        finally:
            if done:
                exchange(path, link)
            link.unlink()


def exchange(one: Path, other: Path) -> None:
    """In one step, as a kernel that spins on it does."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other))
    assert libc.renameat2(*names, RENAME_EXCHANGE) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture(scope="module", params=["plain", "overlay"])
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """On an overlay owners cannot be mapped: root lends outputs to the sandbox, by a chown."""
    base = tmp_path_factory.mktemp("races")
    if request.param == "plain":
        yield make_scene(base)
    elif os.geteuid() != 0:
        pytest.skip("only root lends outputs")
    else:
        with overlay(base) as mounted:
            yield replace(make_scene(mounted), maps_owners=False)


def make_scene(base: Path) -> Scene:
    scene = Scene(base / "proj" / "outputs" / "report", base / "home")
    for folder in (scene.report, scene.home):
        for name in ("outputs", "data", "more", "less", "skills/public", "skills/examples"):
            (folder / name).mkdir(parents=True)
            (folder / name / ("secret" if folder == scene.home else "own")).write_text("x")
    if os.geteuid() == 0:  # a person's folder, and root's server
        for path in (base / "proj", *(base / "proj").rglob("*")):
            os.chown(path, PERSON, PERSON)
    return scene


@pytest.fixture(scope="module")
def runtime() -> RunscRuntime:
    return RunscRuntime(init_argv=standin_argv(sys.executable))


@pytest.fixture(autouse=True)
def unharmed(scene: Scene) -> Iterator[None]:
    host = Host((scene.home,))
    before = host.look()
    yield
    assert host.look() == before
    if os.geteuid() == 0:
        lent = [p for p in (scene.report, *scene.report.rglob("*")) if p.lstat().st_uid != PERSON]
        assert not lent, "what was lent was not given back"


class Stop:
    """Acts at one call of a function of the package, or lists those that are made."""

    def __init__(self, at: str | None = None, act: Callable[[], None] | None = None) -> None:
        self.passed: list[str] = []
        self._at = at
        self._act = act
        self._lock = threading.RLock()

    def __enter__(self) -> Stop:
        threading.setprofile(self._hear)
        sys.setprofile(self._hear)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _hear(self, frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event not in ("call", "return") or not file.startswith(PACKAGE):
            return
        name = f"{event} {file.removeprefix(PACKAGE)}:{frame.f_code.co_name}"
        with self._lock:
            if name in self.passed:
                return
            self.passed.append(name)
            if name == self._at and self._act is not None:
                self._act()


def start(runtime: RunscRuntime, scene: Scene) -> bool:
    """Start, and look from inside; whether it did. Nothing of the home is seen."""
    try:
        sandbox = runtime.start(scene.spec, make_request(scene.report))
    except GvisorKernelError:
        return False
    try:
        inside = Conversation(sandbox)
        seen = inside.ask(LOOK)
        assert not any("secret" in names for names in seen.values()), seen
        for folder in WRITABLE:
            with suppress(Failed):  # "more", where owners cannot be mapped
                inside.ask(f"open('{folder}/written', 'w').close()")
    finally:
        sandbox.close()
    return True


def find_steps(runtime: RunscRuntime, scene: Scene) -> list[str]:
    """From the first look at a folder to the moment when the sandbox's program is started."""
    with Stop() as stop:
        assert start(runtime, scene), "it does not start at all"
    first = next(i for i, name in enumerate(stop.passed) if "shown.py:" in name)
    last = next(i for i, name in enumerate(stop.passed) if "starting.py:wait_for" in name)
    return stop.passed[first : last + 1]


@pytest.fixture(scope="module")
def steps(runtime: RunscRuntime, scene: Scene) -> list[str]:
    return find_steps(runtime, scene)


def test_at_each_step(runtime: RunscRuntime, scene: Scene, steps: list[str]) -> None:
    """Each step with one component, each component at many steps; ``--all``: each with each."""
    assert len(steps) > 50
    near = [step for step in steps if step.split()[1].startswith(NEAR)]
    chosen = steps if ALL else [*near[:: 2 if scene.maps_owners else 4], steps[-1]]
    started = refused = 0
    for number, step in enumerate(chosen):
        for component in COMPONENTS if ALL else [COMPONENTS[number % len(COMPONENTS)]]:
            with scene.swapped(component) as swap, Stop(step, swap) as stop:
                if start(runtime, scene):
                    started += 1
                else:
                    refused += 1
                assert step in stop.passed
    assert started, "whoever refuses everything is safe, and of no use"
    assert refused, "no swap was noticed: were there any?"


NEAR = ("host/folders.py", "host/stage.py", "runtimes/shown.py", "runtimes/starting.py")
"""Steps where folders are looked at and mounted, and the last ones before the program runs."""


def test_a_spare_of_another_folder(runtime: RunscRuntime, scene: Scene) -> None:
    """A sandbox that was made before is not taken for one of what the names lead to now."""
    request = make_request(scene.report)
    sandbox = runtime.start(scene.spec, request)
    try:
        assert runtime.shows_now(sandbox, scene.spec, request)
        for component in COMPONENTS:
            with scene.swapped(component) as swap:
                swap()
                with suppress(GvisorKernelError):
                    assert not runtime.shows_now(sandbox, scene.spec, request), component
            moved = scene.report / component
            moved.rename(moved.with_name("moved"))
            moved.mkdir()
            try:
                with suppress(GvisorKernelError):
                    assert not runtime.shows_now(sandbox, scene.spec, request), component
            finally:
                moved.rmdir()
                moved.with_name("moved").rename(moved)
        assert runtime.shows_now(sandbox, scene.spec, request)
    finally:
        sandbox.close()


SPIN = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.prctl(1, 9)  # PR_SET_PDEATHSIG: a killed test run leaves no spinner
one, other = map(os.fsencode, sys.argv[1:])
print(flush=True)
while True:
    libc.renameat2(-100, one, -100, other, 2)
"""


@needs_all
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_free_race(runtime: RunscRuntime, scene: Scene, component: str) -> None:
    path = scene.report / component if component else scene.report
    link = path.with_name("link")
    link.symlink_to(scene.home / component)
    spinner = subprocess.Popen(
        [sys.executable, "-c", SPIN, str(path), str(link)], stdout=subprocess.PIPE
    )
    assert spinner.stdout is not None
    try:
        spinner.stdout.readline()
        for _ in range(FREE_STARTS):
            start(runtime, scene)
    finally:
        spinner.kill()
        spinner.wait()
        spinner.stdout.close()
        if path.is_symlink():
            exchange(path, link)
        link.unlink()
