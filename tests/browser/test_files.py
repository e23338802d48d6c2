"""What a page says of files that are not kept, of a home, and of notebooks that are not trusted."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from .conftest import KERNEL
from .lab import LabPage
from .test_extension import STATUS, serious_violations, wait_for_text

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not KERNEL.startswith("gvisor"), reason="GK_TEST_KERNEL names a kernel without a sandbox"
    ),
]

MARKUP = "<img src=x onerror=document.title='attacked'>"
UNKEPT = ".gk-unkept"
WITHOUT = "python3"
"""A kernelspec whose kernels have no sandbox."""


def write_notebook(path: Path, kernel: str, source: str = "") -> None:
    """Write a notebook as somebody else would: nobody here has signed it."""
    path.parent.mkdir(exist_ok=True)
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": uuid.uuid4().hex[:8],
        "metadata": {"trusted": True},  # what a file says of itself counts for nothing
        "outputs": [],
        "source": source,
    }
    spec = {"name": kernel, "display_name": kernel, "language": "python"}
    document = {
        "cells": [cell],
        "metadata": {"kernelspec": spec, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(document))


def open_notebook(lab: LabPage, name: str, page: str = "lab/workspaces/auto-test/tree") -> None:
    reset = "reset&" if page.startswith("lab") else ""
    lab.driver.get(f"{lab.server.url}{page}/{name}?{reset}token={lab.server.token}")
    lab.find(".jp-Notebook .jp-Cell")


def kernels(lab: LabPage) -> list[str]:
    return [one["name"] for one in lab.server.request("GET", "api/kernels")]


def end_kernels(lab: LabPage) -> None:
    for one in lab.server.request("GET", "api/sessions"):
        lab.server.request("DELETE", f"api/sessions/{one['id']}")


def press(lab: LabPage, css: str, label: str) -> None:
    """Click the button ``label`` in the visible element ``css``."""

    def find() -> list[WebElement]:
        buttons = lab.driver.find_elements(By.CSS_SELECTOR, f"{css} button")
        return [it for it in buttons if it.is_displayed() and it.text.strip() == label]

    lab.wait_until(find, f"{css} has no button {label!r}")
    find()[0].click()


def open_menu(lab: LabPage, menu: str, entry: str) -> None:
    lab.find_menu(menu).click()
    lab.find_menu(entry).click()


def make_files(lab: LabPage, count: int) -> None:
    names = [f"{MARKUP}{number}.txt" for number in range(count)]
    lab.run(f"for name in {names!r}: open(name, 'w').write('x')")


def test_files_that_are_not_kept_are_told_before_and_after(lab: LabPage, display_name: str) -> None:
    write_notebook(lab.server.folder / "files" / "made.ipynb", KERNEL)
    open_notebook(lab, "files/made.ipynb")
    wait_for_text(lab, STATUS, " of 4 GB")
    make_files(lab, 12)
    assert wait_for_text(lab, UNKEPT, "12 files not kept") == "12 files not kept"
    assert serious_violations(lab, STATUS, UNKEPT) == []
    lab.screenshot("unkept-status")

    # Before: the menu of Jupyter, too.
    open_menu(lab, "Kernel", "Shut Down Kernel")
    text = wait_for_text(lab, ".jp-Dialog", "12 files in /workspace will be gone")
    assert f"{MARKUP}0.txt" in text
    assert "and 2 more" in text
    lab.screenshot("unkept-shutdown")
    assert serious_violations(lab, ".jp-Dialog-content") == []
    press(lab, ".jp-Dialog", "Cancel")
    assert kernels(lab) == [KERNEL]

    # Afterwards: where nobody could be asked.
    end_kernels(lab)
    text = wait_for_text(lab, ".jp-toastContainer", "12 files in /workspace are gone")
    lab.screenshot("unkept-gone")
    press(lab, ".jp-toastContainer", "Show files")
    assert f"{MARKUP}0.txt" in wait_for_text(lab, ".jp-Dialog", "and 2 more")
    assert "attacked" not in lab.driver.title
    assert display_name in text


def test_untrusted_notebook_starts_nothing_before_the_choice(lab: LabPage) -> None:
    end_kernels(lab)
    write_notebook(lab.server.folder / "elsewhere" / "stranger.ipynb", WITHOUT)
    open_notebook(lab, "elsewhere/stranger.ipynb")
    text = wait_for_text(lab, ".jp-Dialog", "neither saved nor trusted")
    assert "in a sandbox" in text
    assert kernels(lab) == []
    choice = Select(lab.find(".jp-Dialog-body select"))
    assert json.loads(str(choice.first_selected_option.get_attribute("value"))) == {"name": KERNEL}
    lab.screenshot("untrusted-lab")
    assert serious_violations(lab, ".jp-Dialog-content") == []
    press(lab, ".jp-Dialog", "Select")
    wait_for_text(lab, STATUS, " of 4 GB")
    assert kernels(lab) == [KERNEL]
    end_kernels(lab)
