"""nbgrader's autograde through our kernel: one command for a class with hostile submissions."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..foreign import make_environment
from ..sweeps import needs_all
from ..world import World
from .submissions import MARK, NOTEBOOK, Submission, make_source, make_submissions

pytestmark = needs_all
KERNEL = "gvisor-grading"
CONFIG = f"""
c = get_config()
c.CourseDirectory.course_id = "statistics"
c.ExecutePreprocessor.kernel_name = "{KERNEL}"
c.Execute.timeout = 20
"""
FAILED = re.compile(r"There was an error processing assignment 'ps1' for student '([^']*)'")


@pytest.fixture
def python(tmp_path: Path, world: World) -> Iterator[Path]:
    """An environment with nbgrader, and a kernelspec of it."""
    python = make_environment(tmp_path / "environment", "nbgrader")
    spec = json.loads((world.kernelspecs / "gvisor-python" / "kernel.json").read_text())
    spec["argv"][0] = str(python)
    settings = {"snapshot": "off", "memory_limit": "512M", "outputs": None}
    spec["metadata"]["kernel_provisioner"]["config"] = settings
    folder = world.add_kernelspec(KERNEL, spec)
    yield python
    (folder / "kernel.json").unlink()
    folder.rmdir()


class Course:
    """A course of nbgrader's in a folder."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = folder
        self._python = python
        (folder / "source" / "ps1").mkdir(parents=True)
        (folder / "nbgrader_config.py").write_text(CONFIG)
        (folder / "source" / "ps1" / NOTEBOOK).write_text(json.dumps(make_source()))

    def run(self, *words: str, seconds: float = 120, check: bool = True) -> str:
        """Run a command of nbgrader; return what it printed."""
        done = subprocess.run(
            [str(self._python), "-m", "nbgrader", *words],
            cwd=self.folder,
            # It starts alembic by its name.
            env={**os.environ, "PATH": f"{self._python.parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def submit(self, submissions: dict[str, Submission]) -> None:
        released = json.loads((self.folder / "release" / "ps1" / NOTEBOOK).read_text())
        for student, submission in submissions.items():
            folder = self.folder / "submitted" / student / "ps1"
            folder.mkdir(parents=True)
            submission.make(folder, copy.deepcopy(released))

    def digest(self) -> dict[str, str]:
        """Digests of what no submission may change."""
        roots = ("source", "release", "submitted", "nbgrader_config.py")
        paths = [
            p for root in roots for p in (self.folder / root, *(self.folder / root).rglob("*"))
        ]
        return {
            str(p.relative_to(self.folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in paths
            if p.is_file()
        }

    def printed(self, student: str) -> str:
        """What the cells of a graded notebook printed."""
        path = self.folder / "autograded" / student / "ps1" / NOTEBOOK
        cells = json.loads(path.read_text())["cells"]
        return "".join(
            "".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", [])
        )

    def scores(self) -> dict[str, float]:
        """The points of each student in the table that nbgrader exports."""
        with (self.folder / "grades.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["assignment"] == "ps1"]
        return {row["student_id"]: float(row["raw_score"] or 0) for row in rows}


@pytest.mark.timeout(2400)
def test_fifty_submissions_are_graded_in_one_run(python: Path, tmp_path: Path) -> None:
    course = Course(tmp_path / "course", python)
    course.run("generate_assignment", "ps1")
    submissions = make_submissions(course.folder)
    assert len(submissions) == 50
    course.submit(submissions)
    before = course.digest()
    log = course.run("autograde", "ps1", seconds=2000, check=False)
    course.run("export")
    failed = set(FAILED.findall(log))
    scores = course.scores()
    report = [
        f"{student}: {'not graded' if student in failed else scores.get(student)}, "
        f"expected {submission.points}"
        for student, submission in submissions.items()
    ]
    kept = os.environ.get("GK_NBGRADER_LOG")
    if kept:
        Path(kept).write_text(log + "\n".join(report))
    assert course.digest() == before
    graded = {s: scores[s] for s in submissions if s not in failed and s in scores}
    expected = {s: each.points for s, each in submissions.items() if each.points is not None}
    assert graded == expected, "\n".join(report)
    parts = log.split("Creating/updating student with ID '")
    said = {part.partition("'")[0]: part for part in parts[1:]}
    for student, submission in submissions.items():
        assert submission.reason in said.get(student, ""), student
    for student, submission in submissions.items():
        made = course.folder / "autograded" / student / "ps1" / NOTEBOOK
        assert made.exists() == (submission.points is not None), student
    for student in ("reads-others", "reads-gradebook", "writes", "reads-host", "network"):
        text = course.printed(student)
        assert MARK not in text
        assert "REACHED" not in text
        assert "root:" not in text
    assert "kernel 4.4.0" in course.printed("other-kernel"), "gVisor's kernel, whatever it named"
    assert MARK in course.printed("links"), "nbgrader has copied it: docs/howto/teacher.md warns"
