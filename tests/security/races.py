"""Swap folders for links while the host works with them, at one step or continuously.

One sandbox may write ``proj/outputs``. A notebook lies in ``proj/outputs/report``, with all folders
that its kernel is shown. A swap replaces one of these by a link into a home. The steps are the
calls of the package's functions: the caller continues after the swap.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import gvisor_kernel
from gvisor_kernel.config.mounts import ExtraMount
from gvisor_kernel.config.settings import SandboxSpec

from ..runtimes.conftest import overlay

PACKAGE = str(Path(gvisor_kernel.__file__).parent) + os.sep
PERSON = 4711
RENAME_EXCHANGE = 2
AT_FDCWD = -100
COMPONENTS = ("", "outputs", "data", "more", "less", "skills", "skills/public")
"""Folders below ``report`` that are swapped; "" is the notebook's folder itself."""


@dataclass(frozen=True)
class Scene:
    """``report`` is the notebook's folder; ``home`` has the same names, with a secret in each."""

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
        """Yield a function that swaps; undo the swap at the end."""
        path = self.report / component if component else self.report
        link, aim = path.with_name("link"), self.home / component if component else self.home
        link.symlink_to(aim)
        try:
            yield lambda: exchange(path, link)
        finally:
            if path.is_symlink():
                exchange(path, link)
            link.unlink()


def exchange(one: Path, other: Path) -> None:
    """Swap two names atomically, as an attacking kernel can."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other))
    assert libc.renameat2(*names, RENAME_EXCHANGE) == 0, os.strerror(ctypes.get_errno())


@contextmanager
def make_race_folders(base: Path, kind: str = "plain") -> Iterator[Scene]:
    """Create the folders; on an "overlay" owners cannot be mapped, and root lends by chown."""
    if kind == "plain":
        yield _make_scene(base)
    elif os.geteuid() != 0:
        pytest.skip("only root lends outputs")
    else:
        with overlay(base) as mounted:
            yield replace(_make_scene(mounted), maps_owners=False)


def _make_scene(base: Path) -> Scene:
    scene = Scene(base / "proj" / "outputs" / "report", base / "home")
    for folder in (scene.report, scene.home):
        for name in ("outputs", "data", "more", "less", "skills/public", "skills/examples"):
            (folder / name).mkdir(parents=True)
            (folder / name / ("secret" if folder == scene.home else "own")).write_text("x")
    if os.geteuid() == 0:  # the folder of another user than root, who runs the server
        for path in (base / "proj", *(base / "proj").rglob("*")):
            os.chown(path, PERSON, PERSON)
    return scene


class Stop:
    """Call ``act`` at one step, a call of a function of the package; or list all steps."""

    def __init__(self, at: str | None = None, act: Callable[[], None] | None = None) -> None:
        self.passed: list[str] = []
        self._at = at
        self._act = act
        self._lock = threading.RLock()

    def __enter__(self) -> Stop:
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
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


SPIN = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.prctl(1, 9)  # PR_SET_PDEATHSIG: a killed test run leaves no spinner
one, other = map(os.fsencode, sys.argv[1:])
print(flush=True)
while True:
    libc.renameat2(-100, one, -100, other, 2)
"""


@contextmanager
def spinning(one: Path, other: Path) -> Iterator[None]:
    """Swap the two names continuously, in a separate process."""
    spinner = subprocess.Popen(
        [sys.executable, "-c", SPIN, str(one), str(other)], stdout=subprocess.PIPE
    )
    assert spinner.stdout is not None
    try:
        spinner.stdout.readline()
        yield
    finally:
        spinner.kill()
        spinner.wait()
        spinner.stdout.close()
