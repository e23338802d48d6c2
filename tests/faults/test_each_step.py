"""SIGKILL to each process at each step of a kernel's life. The steps are found at run time.

See ``points`` for what a point is. One test kills the process that owns the kernel and the bridge
at each point; the other kills each part of the sandbox at each point where it is alive. An evenly
spread sample always runs; all of some 500 points and 400 pairs of a point and a part run with
``scripts/test --all``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.host import private_directories
from gvisor_kernel.snapshots.snapshot_store import Store

from .. import leaks
from ..snapshots.conftest import copy_to, snapshot_of
from ..sweeps import ALL, needs_all
from ..world import DEFAULT_KERNEL, PROJECT, World

Stages = dict[str, tuple[str, str]]
STAGES: Stages = {
    "start": ("start", "off"),
    "restore": ("start", "auto"),
    "run": ("run", "auto"),
    "restart": ("restart", "auto"),
    "renew": ("renew", "auto"),
    "shutdown": ("shutdown", "auto"),
    "end": ("end", "auto"),
    "checkpoint": ("snapshot", "off"),
}
"""Each stage: the method of ``points.Life``, and the setting ``snapshot`` of its kernels."""
SWEEP = ("sweep", "off")
WITH_PARTS = ("start", "restore", "run", "restart", "shutdown", "checkpoint")
SAME_FOR_A_USER = ("run", "restart", "shutdown", "end")
LONG = {
    "owner": ("restore", "run", "restart", "renew", "shutdown", "end", "checkpoint"),
    "part": ("start", "run", "restart", "shutdown", "checkpoint"),
}
"""Stages that run with ``--all``: their steps are nearly the same as those of others."""
RESTORED = "the host hears Resumed"
"""A point that only a restore passes."""
ALL_POINTS = 10**6
UNDERSTOOD = re.compile(r"sandbox|kernel|snapshot|image|runsc", re.I)
NOT_FOR_PEOPLE = re.compile(r"Traceback|Error\(|errno|0x[0-9a-f]{6}|never retrieved", re.I)


class Lane:
    """A separate world within the run's, with a ``points`` process that answers requests."""

    def __init__(
        self, base: Path, module: str = "tests.faults.points", stages: Stages = STAGES
    ) -> None:
        self._stages = stages
        self.world = World(base, {})
        for folder in ("home", "c", "r", "s", "t", "x", "n"):
            (base / folder).mkdir(mode=0o700, parents=True)
        self._words = base / "stderr"
        with self._words.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=PROJECT,
            )

    def renew(self) -> None:
        """Remove snapshots and skills, which the first start makes."""
        for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
            shutil.rmtree(self.world.environment()[name], ignore_errors=True)

    def snapshots(self) -> list[str]:
        """Return the names in the store, without its locks."""
        return sorted(p.name for p in self._store().glob("*") if p.name not in ("lock", "builder"))

    def _store(self) -> Path:
        return Path(self.world.environment()["XDG_CACHE_HOME"]) / "gvisor-kernel" / "images"

    def _copy_snapshot(self) -> None:
        """Copy the run's snapshot, so that these tests cannot discard the original."""
        if self.snapshots():
            return
        snapshot = snapshot_of(DEFAULT_KERNEL)
        assert snapshot is not None, "the run's snapshot was discarded"
        private_directories.make_directories(self._store().parent, self._store())
        copy_to(Store(self._store()), snapshot)

    def ask(self, stage: str, at: str | None, victim: str) -> Any:
        stage, snapshot = self._stages.get(stage, SWEEP)
        run = ("JUPYTER_DATA_DIR",)
        if snapshot == "auto":  # the run's snapshot was made with the run's skills
            run += ("XDG_DATA_HOME",)
            self._copy_snapshot()
        environment = self.world.environment() | {name: os.environ[name] for name in run}
        request = {
            "stage": stage,
            "snapshot": snapshot,
            "at": at,
            "victim": victim,
            "folder": str(self.world.base / "n"),
            "environment": environment,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"{stage}, {victim} at {at}: {self.words()}"
        return json.loads(line)

    def words(self) -> str:
        """Return everything that the process wrote to stderr."""
        return self._words.read_text(errors="replace")

    def assert_clean(self, before: leaks.Things, *, but_files: bool = False) -> None:
        def look() -> leaks.Things:
            found = leaks.find_things(self.world) - {self._own_process()}
            return frozenset(t for t in found if not (but_files and t.startswith("file ")))

        left = leaks.find_leftovers(before, look)
        assert not left, "\n".join(sorted(left))

    def _own_process(self) -> str:
        argv = Path(f"/proc/{self._process.pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return f"process {self._process.pid} {argv.decode().strip()[:200]}"

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@pytest.fixture
def lane(world: World, shared_snapshot: str) -> Iterator[Lane]:
    lane = Lane(world.base / "l")
    try:
        yield lane
    finally:
        lane.close()
        shutil.rmtree(lane.world.base)


def spread(points: list[Any], most: int) -> list[Any]:
    """Return at most ``most`` of ``points``, evenly spread."""
    if len(points) <= most:
        return points
    return [points[len(points) * (2 * i + 1) // (2 * most)] for i in range(most)]


def kill_owners(lane: Lane, stage: str, most: int) -> int:
    renews = stage in ("start", "checkpoint")
    listed = lane.ask(stage, None, "owner")
    assert listed["status"] == 0, lane.words()
    assert stage != "restore" or RESTORED in listed["points"]
    before = leaks.cgroups(lane.world)
    points = spread(list(listed["points"]), most)
    missed = 0
    for at in points:
        if renews:
            lane.renew()
        try:
            ended = lane.ask(stage, at, "owner")
            assert ended["status"] in (0, -9), lane.words()
            missed += ended["status"] == 0
            lane.assert_clean(before, but_files=True)
            assert lane.ask("sweep", None, "owner")["status"] == 0
            lane.assert_clean(before)
            assert not any("-" in name for name in lane.snapshots()), lane.snapshots()
        except AssertionError as error:
            raise AssertionError(f"the owner, killed at {stage} / {at}: {error}") from error
    assert missed <= 1 + len(points) // 10, "too many points were not passed again"
    assert lane.ask("restore", None, "owner")["status"] == 0
    assert not NOT_FOR_PEOPLE.search(lane.words()), lane.words()
    return len(points)


def kill_parts(lane: Lane, stage: str, most: int) -> int:
    lane.ask(stage, None, "")  # create what a process and a home have only once
    listed = lane.ask(stage, None, "")
    assert not listed["said"]
    assert stage != "restore" or RESTORED in listed["points"]
    before = leaks.cgroups(lane.world)
    cases = [(at, part) for at, parts in listed["points"].items() for part in parts]
    chosen = spread(cases, most)
    told = missed = 0
    for at, part in chosen:
        try:
            ended = lane.ask(stage, at, part)
            missed += ended["points"].get(at) != ["done"]
            assert ended["descriptors"][0] == ended["descriptors"][1]
            for words in ended["said"]:
                assert UNDERSTOOD.search(words), words
                assert not NOT_FOR_PEOPLE.search(words), words
            if part == "lifeline":
                assert not ended["said"]
            told += bool(ended["said"])
            lane.assert_clean(before)
        except AssertionError as error:
            raise AssertionError(f"{part}, killed at {stage} / {at}: {error}") from error
    assert missed <= 1 + len(chosen) // 10, "too many points were not passed again"
    assert not NOT_FOR_PEOPLE.search(lane.words()), lane.words()
    print(f"{len(chosen)} of {len(cases)} cases, {told} of them with an error text")
    return told


def marked(stage: str, victim: str) -> Any:
    """Return the stage with marks: ``once`` if it is the same for a user, and for long stages."""
    marks = [pytest.mark.once] if stage in SAME_FOR_A_USER else []
    return pytest.param(stage, marks=[*marks, needs_all] if stage in LONG[victim] else marks)


def points_of(share: int) -> int:
    return ALL_POINTS if ALL else share


@pytest.mark.timeout(1200 if ALL else 180)
@pytest.mark.parametrize("stage", [marked(stage, "owner") for stage in STAGES])
def test_killed_owner_leaves_nothing(lane: Lane, stage: str) -> None:
    """The owner and the bridge are killed: its sandboxes end, and the next start works."""
    kill_owners(lane, stage, points_of(2))


@pytest.mark.timeout(1200 if ALL else 180)
@pytest.mark.parametrize("stage", [marked(stage, "part") for stage in WITH_PARTS])
def test_killed_part_leaves_nothing(lane: Lane, stage: str) -> None:
    """A part is killed: the error is readable, nothing is left, and the next start works."""
    kill_parts(lane, stage, points_of(1))
