"""Files of data that reach the folder at a kernel's end: by the setting ``apply``."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from gvisor_kernel import Sandbox
from gvisor_kernel.changes.apply import undo_apply
from gvisor_kernel.changes.autorun import is_data
from gvisor_kernel.changes.change import MAX_FILE, Applied, Change, Changes, ChangesError
from gvisor_kernel.changes.new_files import MAX_FILES, TOO_LARGE, choose, describe

from ..jupyter.helpers import execute, running_kernel
from ..patience import scale_seconds
from ..sweeps import needs_all
from ..world import DEFAULT_KERNEL, World

SECONDS = scale_seconds(120)
NEW = {"apply": "new files"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A notebook's folder."""
    place = tmp_path / "notebooks"
    place.mkdir()
    (place / "old.csv").write_text("old")
    return place


def names(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


WRITES = """
import os
from pathlib import Path
for path in ("clean.csv", "a/b/big.npy", "old.csv", "conftest.py", "step3.ipynb", ".envrc"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(path)
os.chmod("clean.csv", 0o777)
os.symlink("/etc/passwd", "link.csv")
os.link("clean.csv", "hard.csv")
os.mkdir("empty")
"""


@pytest.mark.parametrize("now", [False, True])
def test_new_data_is_written_at_the_end_and_can_be_undone(
    folder: Path, now: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with running_kernel(settings=NEW, start={"cwd": str(folder)}) as (manager, client):
        written = execute(client, WRITES)
        assert written.status == "ok"
        assert not written.of_type("stream")
        if not now:
            manager.restart_kernel(now=False)
            client.wait_for_ready(timeout=SECONDS)
            assert names(folder) == ["old.csv", "outputs"]
        with caplog.at_level(logging.WARNING):
            manager.shutdown_kernel(now=now)
    assert names(folder) == ["a", "a/b", "a/b/big.npy", "clean.csv", "hard.csv", "old.csv"]
    assert (folder / "old.csv").read_text() == "old"
    assert (folder / "clean.csv").stat().st_mode & 0o7111 == 0
    (said,) = [r.getMessage() for r in caplog.records if "were written" in r.getMessage()]
    assert "written to the folder: clean.csv, hard.csv, a/b/big.npy (to undo: gvisor-" in said
    for path, reason in (
        ("conftest.py", "it may run later without being opened"),
        ("old.csv", "the folder has one of that name"),
        ("step3.ipynb", "by its name it is no file of data"),
        ("link.csv", "the sandbox has a link"),
    ):
        assert f"{path} ({reason}" in said
    undone = undo_apply(said.rpartition("gvisor-kernel undo ")[2].partition(")")[0])
    assert not undone.refused
    assert names(folder) == ["old.csv"]


@pytest.mark.parametrize("way", ["crash", "memory", "off", "ask"])
def test_nothing_is_written_after_a_death_or_without_the_setting(
    folder: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, object] = {"apply": way} if way in ("off", "ask") else dict(NEW)
    with running_kernel(
        settings={**settings, "memory_limit": "300M"}, start={"cwd": str(folder)}
    ) as (manager, client):
        assert execute(client, "open('clean.csv', 'w').write('1')").status == "ok"
        with caplog.at_level(logging.WARNING):
            if way == "crash":
                execute(client, "import os; os._exit(1)")
            elif way == "memory":
                execute(client, "b'1' * 2**30")
            manager.shutdown_kernel(now=True)
    assert names(folder) == ["old.csv"]
    said = " ".join(record.getMessage() for record in caplog.records)
    assert ("so no new file was written to the folder" in said) == (way in ("crash", "memory"))


def test_nobody_applies_anything_where_the_setting_is_off(folder: Path) -> None:
    with Sandbox(uploads=folder, apply="off") as sandbox:
        sandbox.run("open('clean.csv', 'w').write('1')")
        (change,) = sandbox.changes().changes
        with pytest.raises(ChangesError, match='its setting apply is "off"'):
            sandbox.apply(change)
    assert names(folder) == ["old.csv"]


def test_only_names_of_data_are_written() -> None:
    good = ["a.csv", "data/x-1_b.parquet", "Ergebnis_ä.CSV", "metrics.json", "README.md", "m.pt"]
    bad = [
        "module.py", "step.ipynb", "run.sh", "Makefile", "Makefile.csv", "data", "x.toml", "x.yml",
        ".csv", ".hidden/x.csv", "-rf.csv", "x y.csv", "$(id).csv", "a;b.csv", "a\u202e.csv",
        "a'.csv", "a/-x/b.csv", "x.csv.", "x.csv/", "requirements.txt", "Requirements-dev.TXT",
        "package.json", "tsconfig.json", "kernel.json", "CLAUDE.md", "SKILL.md", "x.pth",
        "evil.dist-info/entry_points.txt", "evil.egg-info/a.txt", "__pycache__/x.csv", "x.desktop",
        ".git/x.csv", "env/x.csv", "a.so", "x.html.exe",
    ]  # fmt: skip
    assert [path for path in good if not is_data(path)] == []
    assert [path for path in bad if is_data(path)] == []


def test_the_files_at_one_end_are_bounded() -> None:
    changes = [Change(f"{n}.csv", "added", "file", 1, None, "absent x") for n in range(2000)]
    large = Change("large.csv", "added", "file", MAX_FILE + 1, None, "absent x")
    chosen, refused = choose(Changes((large, *changes), False, 2001))
    assert len(chosen) == MAX_FILES
    assert (refused[0].path, refused[0].reason) == ("large.csv", TOO_LARGE)
    assert len(refused) == 1001
    half = [Change(f"{n}.csv", "added", "file", MAX_FILE, None, "absent x") for n in range(9)]
    chosen, _ = choose(Changes(tuple(half), False, 9))
    assert len(chosen) == 4
    words = describe(Applied((), refused, None), Changes((), True, 0))
    assert len(words) < 2000
    assert "large.csv (it has more than 256 MiB)" in words


# -- the programs ----------------------------------------------------------------------------------

STEPS = {
    "step1": "from pathlib import Path; Path('clean.csv').write_text('1,2')",
    "step2": "print(open('clean.csv').read())",
}


def write_steps(folder: Path, metadata: dict[str, object]) -> None:
    for name, code in STEPS.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        notebook.metadata.update(metadata)
        nbformat.write(notebook, folder / f"{name}.ipynb")


def run(folder: Path, *argv: str, ok: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=folder, capture_output=True, text=True, timeout=SECONDS
    )
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, said
    return said


def add_kernelspec(world: World, name: str, **settings: object) -> None:
    spec = json.loads((world.kernelspecs / DEFAULT_KERNEL / "kernel.json").read_text())
    spec["metadata"]["kernel_provisioner"]["config"] |= settings
    world.add_kernelspec(name, spec)


def test_papermill_runs_two_steps(folder: Path, world: World) -> None:
    """papermill reads no configuration of Jupyter: a kernelspec says it."""
    write_steps(folder, {"gvisor": {"apply": "new files"}, "apply": "new files"})
    add_kernelspec(world, "pipes", apply="new files")
    steps = [("papermill", f"{name}.ipynb", f"{name}-done.ipynb", "-k") for name in STEPS]
    run(folder, *steps[0], DEFAULT_KERNEL, "-p", "apply", "new files")  # decides nothing
    assert not (folder / "clean.csv").exists()
    said = run(folder, *steps[1], DEFAULT_KERNEL, ok=False)
    said = run(folder, *steps[0], "pipes")
    assert "new files were written to the folder: clean.csv" in said
    run(folder, *steps[1], "pipes")
    assert "1,2" in (folder / "step2-done.ipynb").read_text()
    assert not (folder / "outputs").exists()


def test_nbconvert_passes_the_setting(folder: Path) -> None:
    write_steps(folder, {})
    setting = "--GVisorProvisioner.apply=new files"
    for name in STEPS:
        program = ("nbconvert", "--to", "notebook", "--execute", f"--output={name}-done")
        kernel = f"--ExecutePreprocessor.kernel_name={DEFAULT_KERNEL}"
        run(folder, *program, kernel, setting, f"{name}.ipynb")
    assert "1,2" in (folder / "step2-done.ipynb").read_text()


@needs_all
def test_nbmake_runs_two_steps(folder: Path, world: World) -> None:
    write_steps(folder, {})
    add_kernelspec(world, "pipes-nbmake", apply="new files")
    run(folder, "pytest", "-p", "no:cacheprovider", "--nbmake", "--nbmake-kernel=pipes-nbmake",
        "step1.ipynb", "step2.ipynb")  # fmt: skip
    assert (folder / "clean.csv").read_text() == "1,2"
