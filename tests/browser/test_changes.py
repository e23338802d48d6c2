"""The panel "Changes" with a real kernel: looked at, applied, taken back, by keys alone."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from ..sweeps import needs_all
from .conftest import IN_SANDBOXES, KERNEL
from .lab import EXPOSED, LabPage, LabServer
from .looking import (
    CHANGES,
    STATUS,
    button,
    has_focus,
    press,
    serious_violations,
    set_theme,
    tab_to,
    text_of,
    wait_for_text,
)

BASE_URL = "/user/an-n/"
OPTIONS = EXPOSED

pytestmark = [*IN_SANDBOXES, needs_all]

IMAGE = "<img src=x onerror=document.title='attacked'>.txt"
BACKWARDS = "invoice\u202efdp.txt"
TWO_LINES = "one\ntwo<img src=x onerror=document.title='attacked'>.txt"
ODD = (IMAGE, BACKWARDS, TWO_LINES, "<b onclick=x>.ipynb", "<svg onload=x>.svg")
SHOWN = {BACKWARDS: r"invoice\u202efdp.txt", TWO_LINES: TWO_LINES.replace("\n", r"\n")}
"""Names that are not shown as they are: nobody could read them."""
FOLDER = "<i>work"
GREY = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAD0lEQVR42mNoQAUMQxkFAOqEQAGUs3RYAAAAAElFTkSuQmCC"
)
DIFFERENCE = ".gk-difference"
TITLE = "return document.title"


def notebook(*sources: str) -> dict[str, Any]:
    return {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{number}",
                "source": source,
                "metadata": {},
                "outputs": [],
                "execution_count": None,
            }
            for number, source in enumerate(sources)
        ],
        "metadata": {"kernelspec": {"name": KERNEL, "display_name": KERNEL, "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


WORK = f"""
import json, os, pathlib
import matplotlib; matplotlib.use("agg")
from matplotlib import pyplot
pathlib.Path("table.csv").write_text("a,b\\n1,2\\n3,<b>5</b>\\n")
pathlib.Path("disk.txt").write_text("from the kernel\\n")
other = json.loads(pathlib.Path("other.ipynb").read_text())
other["cells"][1]["source"] = "<script>top.document.title='attacked'</script>"
pathlib.Path("other.ipynb").write_text(json.dumps(other))
pathlib.Path("gone.txt").unlink()
pathlib.Path("Makefile").write_text("all:\\n\\ttouch ran\\n")
pathlib.Path("new").mkdir()
pathlib.Path("new/page.html").write_text("<h1 onclick=x>new</h1>")
os.symlink("/etc/passwd", "link.txt")
pyplot.figure(figsize=(1, 1)); pyplot.plot([1, 2]); pyplot.savefig("plot.png")
for name in {list(ODD)!r}:
    pathlib.Path(name).write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>"
        "top.document.title='attacked'</script><circle r='9' fill='orange'/></svg>")
print("done")
"""


@pytest.fixture(scope="module")
def folder(server: LabServer) -> Path:
    """A folder of the server's, with files to change."""
    folder = server.folder / FOLDER
    folder.mkdir()
    (folder / "table.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / "disk.txt").write_text("old\n")
    (folder / "gone.txt").write_text("to be removed\n")
    (folder / "plot.png").write_bytes(GREY)
    (folder / "other.ipynb").write_text(json.dumps(notebook("1", "2", "3")))
    (folder / "run.ipynb").write_text(json.dumps(notebook("")))
    return folder


@pytest.fixture(scope="module")
def panel(desk: LabPage, server: LabServer, folder: Path) -> LabPage:
    """A kernel that has changed all of that, and the panel with its changes."""
    desk.open_path(f"{FOLDER}/run.ipynb")
    wait_for_text(desk, STATUS, " of 4 GB")
    desk.run(WORK)
    assert "done" in desk.output(1).text
    desk.find(STATUS).click()
    button(desk, ".gk-popup", "Changes").click()
    wait_for_text(desk, CHANGES, "table.csv")
    return desk


def look_again(lab: LabPage) -> None:
    mark = "document.querySelectorAll('.gk-changes tbody tr').forEach(it => it.className = 'old')"
    lab.driver.execute_script(mark)
    button(lab, CHANGES, "Refresh").click()
    lab.wait_until(
        lambda: not lab.driver.find_elements(By.CSS_SELECTOR, f"{CHANGES} tr.old"),
        "the list never came back",
    )


def rows(lab: LabPage) -> dict[str, str]:
    """Return the list: what is said of each file."""
    found = lab.driver.execute_script(
        """
        return [...document.querySelectorAll('.gk-changes tr:has(.gk-path)')].map(row =>
          [row.querySelector('.gk-path').textContent,
           [...row.cells].slice(1).map(it => it.innerText).join(' | ')]);
        """
    )
    return dict(found)


def compare(lab: LabPage, path: str) -> str:
    """Click a file and return the difference that is shown."""
    lab.driver.execute_script(
        "[...document.querySelectorAll('button.gk-path')]"
        ".find(it => it.textContent === arguments[0]).click()",
        path,
    )
    lab.wait_until(
        lambda: lab.driver.execute_script(
            "const it = document.querySelector('.gk-difference');"
            "return it.querySelector('h2')?.textContent === arguments[0]"
            " && !it.innerText.includes('Reading.')",
            path,
        ),
        f"the difference of {path} never came",
    )
    return text_of(lab, DIFFERENCE)


def test_each_kind_of_change_is_shown(panel: LabPage) -> None:
    listed = rows(panel)
    panel.screenshot("changes-list")
    for path, word in {
        "table.csv": "changed",
        "gone.txt": "removed",
        "new/page.html": "added",
        "new": "added folder",
        "plot.png": "changed",
        "link.txt": "cannot be applied",
        "Makefile": "added",
        **{SHOWN.get(name, name): "added" for name in ODD},
    }.items():
        assert word in listed.get(path, ""), (path, listed)
    assert panel.driver.find_elements(By.CSS_SELECTOR, f"{CHANGES} tbody img, {CHANGES} i") == []
    apart = panel.driver.find_elements(By.CSS_SELECTOR, f"{CHANGES} tbody")[1].text
    assert "May run later without being opened" in apart
    assert "Makefile" in apart


def test_differences_are_text(panel: LabPage) -> None:
    text = compare(panel, "table.csv")
    assert "- 3,4" in text
    assert "+ 3,<b>5</b>" in text
    panel.screenshot("changes-text")
    text = compare(panel, "other.ipynb")
    assert "Cell 2 (code), changed" in text
    assert "+ <script>" in text
    panel.screenshot("changes-notebook")
    assert "- to be removed" in compare(panel, "gone.txt")
    for path in ODD[:4]:
        compare(panel, SHOWN.get(path, path))
    panel.screenshot("changes-markup")
    assert "attacked" not in panel.driver.execute_script(TITLE)


def wait_for_pictures(lab: LabPage, tag: str, count: int) -> None:
    """Wait until so many frames have each drawn a picture."""

    def drawn(frame: WebElement) -> bool:
        try:
            lab.driver.switch_to.frame(frame)
            lab.driver.switch_to.frame(lab.driver.find_element(By.TAG_NAME, "iframe"))
            script = f"const it = document.querySelector('{tag}'); return it?.offsetWidth > 0"
            return bool(lab.driver.execute_script(script))
        except (NoSuchElementException, StaleElementReferenceException):
            return False
        finally:
            lab.driver.switch_to.default_content()

    def look() -> bool:
        frames = lab.driver.find_elements(By.CSS_SELECTOR, ".gk-pictures iframe")
        return len(frames) == count and all(drawn(frame) for frame in frames)

    lab.wait_until(look, f"there were never {count} pictures")


def test_a_picture_is_shown_before_and_after(panel: LabPage) -> None:
    compare(panel, "plot.png")
    wait_for_pictures(panel, "img", 2)
    panel.screenshot("changes-picture")
    assert "+ <svg" in compare(panel, "<svg onload=x>.svg")
    assert panel.driver.find_elements(By.CSS_SELECTOR, f"{CHANGES} iframe") == []
    button(panel, DIFFERENCE, "Show as picture").click()
    wait_for_pictures(panel, "canvas", 1)
    panel.screenshot("changes-drawing")
    assert panel.driver.find_elements(By.CSS_SELECTOR, f"{CHANGES} img") == []
    assert "attacked" not in panel.driver.execute_script(TITLE)


def test_axe_finds_nothing_serious_in_light_and_dark(panel: LabPage) -> None:
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        set_theme(panel, theme)
        for path in ("table.csv", "other.ipynb", "plot.png"):
            compare(panel, path)
            assert serious_violations(panel, CHANGES) == [], (theme, path)
        compare(panel, "table.csv")
        panel.screenshot(f"changes-{theme.split()[-1].lower()}")


def test_keys_alone_tick_look_apply_and_undo(panel: LabPage, folder: Path) -> None:
    """From the item in the status bar to the panel and back, in a file that nobody else has."""
    (folder / "disk.txt").write_text("changed meanwhile\n")
    panel.to_notebook()
    panel.find(STATUS).click()  # where the walk begins
    panel.find(".gk-popup")
    press(panel, Keys.ESCAPE)
    assert has_focus(panel, STATUS)
    press(panel, Keys.ENTER)
    panel.find(".gk-popup")
    tab_to(panel, ".gk-popup button", "Changes")
    press(panel, Keys.ENTER)
    panel.wait_until(
        lambda: panel.driver.execute_script(
            "return !!document.activeElement.closest('.gk-panel:has(.gk-changes)')"
        ),
        "the panel never had the focus",
    )
    tab_to(panel, f"{CHANGES} button", "Refresh")
    press(panel, Keys.ENTER)
    wait_for_text(panel, f"{CHANGES} .gk-conflict", "disk.txt")
    tab_to(panel, "button.gk-path", "disk.txt")
    press(panel, Keys.ENTER)
    wait_for_text(panel, DIFFERENCE, "changed meanwhile")
    panel.screenshot("changes-conflict")

    tab_to(panel, "input", "Choose disk.txt", shift=True)
    press(panel, Keys.SPACE)
    tab_to(panel, f"{CHANGES} button", "Apply selected (1)", shift=True)
    press(panel, Keys.ENTER)
    assert "disk.txt: " in wait_for_text(panel, f"{CHANGES} [role=status]", "1 refused.")
    panel.screenshot("changes-refused")
    assert (folder / "disk.txt").read_text() == "changed meanwhile\n"
    assert has_focus(panel, f"{CHANGES} *"), "the focus was lost"

    tab_to(panel, "input", "Choose disk.txt")
    press(panel, Keys.SPACE)
    tab_to(panel, 'input[aria-label^="Also apply conflicts"]', shift=True)
    press(panel, Keys.SPACE)
    tab_to(panel, f"{CHANGES} button", "Apply selected (1)", shift=True)
    press(panel, Keys.ENTER)
    wait_for_text(panel, f"{CHANGES} [role=status]", "1 change applied.")
    panel.screenshot("changes-applied")
    assert (folder / "disk.txt").read_text() == "from the kernel\n"
    assert "disk.txt" not in rows(panel)
    tab_to(panel, f"{CHANGES} button", "Undo", shift=True)
    press(panel, Keys.ENTER)
    wait_for_text(panel, f"{CHANGES} [role=status]", "Undone")
    panel.screenshot("changes-undone")
    assert (folder / "disk.txt").read_text() == "changed meanwhile\n"
    assert has_focus(panel, f"{CHANGES} *"), "the focus was lost"


def test_all_that_can_be_is_applied(panel: LabPage, folder: Path) -> None:
    look_again(panel)
    panel.find('input[aria-label^="All changes"]').click()
    button(panel, CHANGES, "Apply selected").click()
    text = wait_for_text(panel, f"{CHANGES} [role=status]", "applied.")
    panel.screenshot("changes-all-applied")
    assert button(panel, CHANGES, "Undo").is_enabled()
    assert not (folder / "gone.txt").exists()
    assert (folder / "table.csv").read_text().endswith("3,<b>5</b>\n")
    for name in ODD:
        assert (folder / name).is_file(), text
    assert not os.path.lexists(folder / "link.txt")
    assert not (folder / "Makefile").exists(), "it may run by itself"
    panel.find('input[aria-label="Choose Makefile"]').click()
    button(panel, CHANGES, "Apply selected (1)").click()
    panel.wait_until((folder / "Makefile").exists, "what was ticked by hand was not applied")
    assert "attacked" not in panel.driver.execute_script(TITLE)


def test_the_panel_fits_a_narrow_window(panel: LabPage) -> None:
    size = panel.driver.get_window_size()
    try:
        panel.driver.set_window_size(520, 800)
        panel.screenshot("changes-narrow")
        for label in ("Apply selected", "Apply the rest", "Undo", "Refresh"):
            box = button(panel, CHANGES, label).rect
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 520, label
    finally:
        panel.driver.set_window_size(size["width"], size["height"])


@pytest.mark.timeout(300)
def test_twenty_thousand_changed_files_leave_the_page_usable(panel: LabPage) -> None:
    panel.to_notebook()
    panel.run(
        "import pathlib\n"
        "for number in range(20_000):\n"
        "    pathlib.Path(f'many-{number:05}.txt').write_text('x')\n"
        "print('many')"
    )
    assert "many" in panel.output(2).text
    panel.find(STATUS).click()
    button(panel, ".gk-popup", "Changes").click()
    look_again(panel)
    text = wait_for_text(panel, f"{CHANGES} [role=status]", "The first")
    panel.screenshot("changes-many")
    print(text)
    panel.find('input[aria-label^="All changes"]').click()
    assert button(panel, CHANGES, "Apply selected").is_enabled()
    panel.find('input[aria-label^="All changes"]').click()
    panel.to_notebook()
    panel.run("print('still here')")
    assert "still here" in panel.output(3).text
