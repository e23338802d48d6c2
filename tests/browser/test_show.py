"""``show`` in a cell of JupyterLab and Notebook: the page runs, and keeps what its kernel keeps."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from ..sweeps import needs_all
from .conftest import IN_SANDBOXES
from .lab import LabPage
from .test_outputs import page_has

pytestmark = IN_SANDBOXES
SHOW = """
from gvisor_sandbox import show, storage
open("outputs/score.html", "w").write('''<!doctype html><p id="seen">none</p><script>
  storage.get("best").then(found => {
    document.getElementById("seen").textContent = "best " + found.value;
    return storage.set("seen", true);
  }, error => document.getElementById("seen").textContent = error);</script>''')
storage.page("score.html").set("best", 42)
show("score.html")
"""


@needs_all
def test_a_page_is_shown_in_its_cell(lab: LabPage, display_name: str) -> None:
    lab.pick_kernel(display_name)
    lab.wait_for_kernel(display_name)
    lab.run(SHOW)
    page_has(lab, "#seen", "best 42")
    lab.screenshot("show")


@needs_all
@pytest.mark.parametrize("page", ["lab/workspaces/auto-test/tree", "notebooks"])
def test_a_page_is_shown_when_its_notebook_is_opened_without_a_kernel(
    desk: LabPage, display_name: str, page: str
) -> None:
    folder = desk.server.folder / page.partition("/")[0]
    (folder / "outputs").mkdir(parents=True)
    (folder / "outputs" / "plain.html").write_text("<!doctype html><p id=seen>shown</p>")
    write_notebook(folder / "kept.ipynb", "plain.html")
    path = f"{folder.name}/kept.ipynb"
    desk.driver.get(f"{desk.server.url}{page}/{path}?token={desk.server.token}")
    page_has(desk, "#seen", "shown")
    desk.driver.refresh()
    page_has(desk, "#seen", "shown")
    desk.screenshot(f"show-{folder.name}")


def write_notebook(path: Path, shown: str) -> None:
    """Write a notebook whose cell has shown a page, and whose kernel is not there."""
    data = {"application/vnd.gvisor-kernel.output+json": {"path": shown}, "text/plain": shown}
    output = nbformat.v4.new_output("display_data", data)
    cell = nbformat.v4.new_code_cell("show()", outputs=[output], execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
