"""Runs each notebook of the project by nbclient, in the kernelspec that it names.

``scripts/demo`` runs the tour. ``scripts/test --all`` builds the image ``full`` for its notebook,
unless ``GK_TEST_IMAGES`` names a folder, used as XDG_DATA_HOME, in which it was built.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from gvisor_kernel.cli.main import main
from gvisor_kernel.kernel.command import host_path

from ..images import full_image
from ..sweeps import needs_all
from ..world import PROJECT
from .helpers import SANDBOXED

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="another kernel than ours")

PNG, ZIP = b"\x89PNG\r\n", b"PK\x03\x04"
KEPT = {
    "agent": {"revenue.png": PNG, "revenue.xlsx": ZIP},
    "bash": {"library.tgz": b"\x1f\x8b"},
    "data-analysis": {"correlation.png": PNG, "growth.png": PNG, "summary.csv": b",years,growth"},
    "full": {
        "page.png": PNG,
        "petals.html": b"<!doctype html>",
        "report.docx": ZIP,
        "report.pdf": b"%PDF-",
        "report.png": PNG,
    },
    "java": {"mandelbrot.png": PNG},
    "typescript": {"epidemic.svg": b"<svg "},
}
"""The files that each notebook leaves in outputs, and the first bytes of each."""
LONG = ("agent", "bash", "java")
"""Notebooks that take long, and are tested by tests/api/test_examples.py and
test_languages.py."""
MARKS = {
    "full": [pytest.mark.once, pytest.mark.timeout(full_image.BUILD)],
    **dict.fromkeys(LONG, needs_all),
}
MISSING = {
    "bash": not find_spec("bash_kernel") and "bash_kernel is not installed",
    "full": full_image.why_not(),
    "java": not (find_spec("jjava") and shutil.which("java", path=host_path("/usr/bin/python3")))
    and "jjava, the kernel of Java, or java itself is not installed",
    "typescript": not find_spec("deno") and "deno, the kernel of TypeScript, is not installed",
}
PLAIN = {"application/json", "image/png", "image/svg+xml", "text/html", "text/plain"}


@pytest.fixture
def kernel_name(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The kernelspec that a notebook names, installed as users do, but without snapshots."""
    if reason := MISSING.get(name):
        pytest.skip(reason)
    wanted = nbformat.read(PROJECT / "notebooks" / f"{name}.ipynb", as_version=4)
    kernel = str(wanted.metadata.kernelspec.name)
    if kernel in ("gvisor-python", "python3"):  # the run's own; a local one that has sandboxes
        yield kernel
        return
    try:
        if name == "full":
            images = full_image.GIVEN or full_image.build(tmp_path)
            monkeypatch.setenv("XDG_DATA_HOME", str(images))
        choice = ["--image", "full"] if name == "full" else ["--language", name]
        installing = ["install", "--user", "--name", kernel, *choice, "--set", "snapshot=off"]
        assert main(installing) == 0
        yield kernel
        assert main(["uninstall", "--user", "--name", kernel]) == 0
    finally:
        full_image.remove(tmp_path)


# nbclient calls it for kernels whose dates have an unusual format, as these have.
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
@pytest.mark.parametrize("name", [pytest.param(n, marks=MARKS.get(n, ())) for n in KEPT])
def test_notebook_runs(name: str, kernel_name: str, folder: Path) -> None:
    """Its cells check their results, so a failure raises an error in the notebook."""
    notebook = nbformat.read(PROJECT / "notebooks" / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=150, resources={"metadata": {"path": str(folder)}})
    client.execute()
    for file, beginning in KEPT[name].items():
        assert (folder / "outputs" / file).read_bytes().startswith(beginning), file
    shown = {
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    }
    assert shown <= PLAIN
    assert any(kind.startswith("image/") for kind in shown) or name == "bash"


def test_the_image_full_and_its_notebook_are_those_that_were_last_run() -> None:
    """Whoever changes one of them builds it, and says so in docs/images.md."""
    _, made_of = last = full_image.last_built()
    assert made_of == full_image.digest(), (
        f"changed since {last}: run {full_image.RUN}, then write the date and the digest"
        f" {full_image.digest()} into docs/images.md"
    )


def test_each_notebook_is_run_and_has_no_outputs() -> None:
    names = {path.stem: path for path in (PROJECT / "notebooks").glob("*.ipynb")}
    assert set(names) == {*KEPT, "tour"}
    for path in names.values():
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert not any(cell.get("outputs") for cell in notebook.cells), path.name
