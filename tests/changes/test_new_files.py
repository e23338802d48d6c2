"""Files of data that reach the folder at a kernel's end: by the setting ``apply``."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from gvisor_kernel import Sandbox
from gvisor_kernel.changes.apply import undo_apply
from gvisor_kernel.changes.autorun import is_data
from gvisor_kernel.changes.change import MAX_FILE, Applied, Change, Changes, ChangesError
from gvisor_kernel.changes.kernel_changes import KernelChanges
from gvisor_kernel.changes.new_files import MAX_FILES, TOO_LARGE, choose, describe
from gvisor_kernel.guest.lost_files import find_name
from gvisor_kernel.host.folders import Identity
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.kernel.lost_files import MAX_NAMES, VARIABLE, describe_lost, note_lost
from gvisor_kernel.runtimes.base import MountView
from gvisor_kernel.spec.layout import UPLOADS

from ..jupyter.helpers import execute, running_kernel, wait_until
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


DEATHS = {"crash": "import os; os._exit(1)", "memory": "b'1' * 2**30"}


@pytest.mark.parametrize("way", DEATHS)
def test_nothing_is_written_after_a_death(
    folder: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**NEW, "memory_limit": "300M"}
    with running_kernel(settings=settings, start={"cwd": str(folder)}) as (manager, client):
        assert execute(client, "open('clean.csv', 'w').write('1')").status == "ok"
        with caplog.at_level(logging.WARNING):
            client.execute(DEATHS[way])
            wait_until(lambda: not manager.is_alive(), "the kernel's end")
            manager.shutdown_kernel(now=True)
    assert names(folder) == ["old.csv"]
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "the kernel died, so no new file was written to the folder" in said


@pytest.mark.parametrize("code", ["1 / 0", "import time; time.sleep(1000)"])
def test_nothing_is_written_after_a_cell_that_failed_or_did_not_end(
    folder: Path, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a file would never be replaced by the whole one of the next run."""
    with running_kernel(settings=NEW, start={"cwd": str(folder)}) as (manager, client):
        assert execute(client, "open('clean.csv', 'w').write('1')").status == "ok"
        if code == "1 / 0":
            assert execute(client, code).status == "error"
        else:
            client.execute(code)
            while client.get_iopub_msg(timeout=SECONDS)["msg_type"] != "execute_input":
                pass
        with caplog.at_level(logging.WARNING):
            manager.shutdown_kernel(now=True)
    assert names(folder) == ["old.csv"]
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "the last cell failed or had not ended, so no new file was written" in said
    assert "lost with the sandbox: clean.csv" in said


def test_nobody_applies_anything_where_the_setting_is_off(folder: Path) -> None:
    with Sandbox(uploads=folder, apply="off") as sandbox:
        sandbox.run("open('clean.csv', 'w').write('1')")
        (change,) = sandbox.changes().changes
        with pytest.raises(ChangesError, match='its setting apply is "off"'):
            sandbox.apply(change)
    assert names(folder) == ["old.csv"]


def test_only_names_of_data_are_written() -> None:
    good = ["a.csv", "data/x-1_b.parquet", "Ergebnis_ä.CSV", "a.csv.gz", "m.safetensors", "p.png"]
    bad = [
        "module.py", "step.ipynb", "run.sh", "Makefile", "Makefile.csv", "data", "x.toml", "x.yml",
        ".csv", ".hidden/x.csv", "-rf.csv", "x y.csv", "$(id).csv", "a;b.csv", "a\u202e.csv",
        "a'.csv", "a/-x/b.csv", "x.csv.", "x.csv/", "requirements.txt", "Requirements-dev.TXT",
        "package.json", "tsconfig.json", "kernel.json", "CLAUDE.md", "SKILL.md", "x.pth",
        "evil.dist-info/entry_points.txt", "evil.egg-info/a.txt", "__pycache__/x.csv", "x.desktop",
        ".git/x.csv", "env/x.csv", "a.so", "x.html.exe", "test_results.txt", "voila.json",
        "main.tf.json", "x.auto.tfvars.json", "CMakePresets.json", "serverless.json",
        "metrics.json", "dev-requirements.txt", "requirements/dev.txt", "AGENTS.override.md",
        "QWEN.md", "README.md", "a.html", "a.svg", "a.xml", "a.toml", "a.cfg", "a.ini", "a.pkl",
        "a.joblib", "a.pt", "a.db", "jupyterhub.sqlite", "a.zip", "a.tar.gz", "a.txt.gz", "csv.gz",
        "gz", "a.gz",
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


def run(folder: Path, *argv: str) -> str:
    done = subprocess.run(
        [sys.executable, *argv], cwd=folder, capture_output=True, text=True, timeout=SECONDS
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def add_kernelspec(world: World, name: str, **settings: object) -> None:
    spec = json.loads((world.kernelspecs / DEFAULT_KERNEL / "kernel.json").read_text())
    spec["metadata"]["kernel_provisioner"]["config"] |= settings
    world.add_kernelspec(name, spec)


PAPERMILL = """
import os
import sys
from papermill import execute_notebook
from papermill.cli import papermill
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

def run(step, kernel, *options):
    names = [f"{step}.ipynb", f"{kernel}-{step}.ipynb"]
    papermill([*names, "-k", kernel, "-l", "python", *options], standalone_mode=False)

ask, new = sys.argv[1:]
run("step1", ask, "-p", "apply", "new files")
try:
    run("step2", ask)
except PapermillExecutionError as error:
    print(error)
run("step1", new)
run("step2", new)
os.remove("clean.csv")
config = Config({"GVisorProvisioner": {"apply": "new files"}})
execute_notebook("step1.ipynb", "x.ipynb", kernel_name=ask, language="python", config=config)
print(open("clean.csv").read(), "again")
"""


def test_papermill_runs_two_steps(folder: Path, world: World) -> None:
    """It reads no configuration of Jupyter: a kernelspec decides. Neither parameters nor the
    notebook do. Without the setting the second step says where the file of the first one is."""
    write_steps(folder, {"gvisor": {"apply": "new files"}, "apply": "new files"})
    add_kernelspec(world, "pipes", apply="new files")
    said = run(folder, "-c", PAPERMILL, DEFAULT_KERNEL, "pipes")
    assert "files in /workspace are lost with the sandbox: clean.csv" in said
    assert "1,2 again" in said
    assert "new files were written to the folder: clean.csv (to undo" in said
    first, second = (
        (folder / f"{DEFAULT_KERNEL}-{step}.ipynb").read_text() for step in ("step1", "step2")
    )
    assert "gvisor-kernel" not in "".join(re.findall(r'"text.*', first))
    assert "clean.csv was written by a kernel of this folder, and was lost" in second
    assert "1,2" in (folder / "pipes-step2.ipynb").read_text()
    assert not (folder / "outputs").exists()


def test_nbconvert_passes_the_setting(folder: Path) -> None:
    write_steps(folder, {})
    run(
        *(folder, "-m", "nbconvert", "--to", "notebook", "--execute"),
        f"--ExecutePreprocessor.kernel_name={DEFAULT_KERNEL}",
        *("--GVisorProvisioner.apply=new files", "step1.ipynb"),
    )
    assert (folder / "clean.csv").read_text() == "1,2"


@needs_all
def test_nbmake_runs_two_steps(folder: Path, world: World) -> None:
    """It is no requirement of the tests, as a plugin of pytest would be in all of them."""
    pytest.importorskip("nbmake")
    write_steps(folder, {})
    add_kernelspec(world, "pipes-nbmake", apply="new files")
    run(
        *(folder, "-m", "pytest", "-p", "no:cacheprovider", "--nbmake"),
        *("--nbmake-kernel=pipes-nbmake", "step1.ipynb", "step2.ipynb"),
    )
    assert (folder / "clean.csv").read_text() == "1,2"


# -- what is told of lost files --------------------------------------------------------------------


def view_of(folder: Path) -> MountView:
    status = folder.stat()
    return MountView(str(folder), UPLOADS, True, Identity(status.st_dev, status.st_ino))


def test_names_of_lost_files_are_bounded_and_stay_with_their_folder(
    folder: Path, tmp_path: Path
) -> None:
    view, other = view_of(folder), view_of(tmp_path)
    note_lost(view, ["n" * 1000, "\ud800", *(f"f{number}" for number in range(100)), "x\x1b"])
    note_lost(view, ["f80", "\u202e", "ä"])
    words = json.loads(describe_lost(view)[VARIABLE])
    assert len(words) == MAX_NAMES
    assert list(words)[-3:] == ["f99", "f80", "ä"]
    assert describe_lost(view)[VARIABLE].isascii()
    assert describe_lost(other) == describe_lost(None) == {VARIABLE: ""}
    moved = MountView("/elsewhere", UPLOADS, True, view.identity)
    assert describe_lost(moved) == {VARIABLE: ""}
    for number in range(200):
        note_lost(MountView(f"/{number}", UPLOADS, True, view.identity), ["n" * 100])
    assert describe_lost(view) == {VARIABLE: ""}  # the oldest
    file = state_root() / "lost-files.json"
    assert file.stat().st_size < 50_000
    for wrong in (b"", b"{}", b'{"path": 5}', b'{"a": {"b": "c"}}', b"[" * 100, b"x" * 10**7):
        file.write_bytes(wrong)
        assert describe_lost(view) == {VARIABLE: ""}


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (FileNotFoundError(2, "No such file", "/workspace/a/b.csv"), "a/b.csv"),
        (FileNotFoundError(2, "No such file", "/elsewhere/a/b.csv"), ""),
        (FileNotFoundError(2, "No such file", b"/workspace/../workspace/a"), "a"),
        (FileNotFoundError("polars: no such file: a/b.csv"), "a/b.csv"),
        (FileNotFoundError("no such file: c"), ""),
        (FileNotFoundError("there is a file missing: x.csv"), ""),
        (FileNotFoundError("no such file: a"), "a"),
        (FileNotFoundError("unable to open file (name = 'a', errno = 2)"), "a"),
        (FileNotFoundError("/workspace/a/b.csv"), "a/b.csv"),
        (FileNotFoundError("a/b.csv.gz, x/a/b.csv and a/b.csv/x are missing"), ""),
        (FileNotFoundError("no such file: /elsewhere/a/b.csv"), ""),
        (FileNotFoundError("It needs a/b.csv."), "a/b.csv"),
    ],
)
def test_an_error_names_its_file(error: FileNotFoundError, found: str) -> None:
    assert find_name(error, {"a": "1", "a/b.csv": "2"}) == found


def test_caches_are_no_losses(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = """
import os
for path in ("__pycache__/m.pyc", ".ipynb_checkpoints/a.ipynb", "a/.cache/pip/x", "t/deep/x"):
    os.makedirs(os.path.dirname(path))
    open(path, "w").close()
open("t/CACHEDIR.TAG", "w").close()
"""
    with running_kernel(start={"cwd": str(folder)}) as (manager, client):
        assert not execute(client, code).of_type("stream")
        kernel = manager.provisioner._kernel  # type: ignore[union-attr]
        changes = KernelChanges(kernel)
        left = asyncio.run(changes.find_unkept())
        assert (left.total, left.more) == (0, False)
        assert "t/deep/x" in [change.path for change in asyncio.run(changes.list()).changes]
        with caplog.at_level(logging.WARNING):
            manager.shutdown_kernel()
    assert not [one for one in caplog.records if "/workspace" in one.getMessage()]
