"""What a page says of files that are not kept, of a home, and of notebooks that are not trusted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import uuid
from pathlib import Path
from typing import Any

from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from gvisor_kernel.runtimes.state.listed import find_all

from ..sweeps import needs_all
from .conftest import IN_SANDBOXES, KERNEL
from .lab import LabPage
from .test_extension import STATUS, serious_violations, wait_for_text

pytestmark = IN_SANDBOXES

MARKUP = "<img src=x onerror=document.title='attacked'>"
UNKEPT = ".gk-unkept"
WITHOUT = "python3"
"""A kernelspec whose kernels have no sandbox."""


def write_notebook(path: Path, kernel: str, source: str = "", kind: str = "code") -> None:
    """Write a notebook as somebody else would: nobody here has signed it."""
    path.parent.mkdir(exist_ok=True)
    cell: dict[str, Any] = {
        "cell_type": kind,
        "id": uuid.uuid4().hex[:8],
        "metadata": {"trusted": True},  # what a file says of itself counts for nothing
        "source": source,
        **({"execution_count": None, "outputs": []} if kind == "code" else {}),
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
    """End them as another client would; a kernel may just be starting, or be gone already."""

    def end() -> bool:
        for kind in ("sessions", "kernels"):
            for one in lab.server.request("GET", f"api/{kind}"):
                with contextlib.suppress(urllib.error.HTTPError):
                    lab.server.request("DELETE", f"api/{kind}/{one['id']}")
        return kernels(lab) == []

    lab.wait_until(end, "kernels never ended")


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


def test_files_that_are_not_kept_are_told_before_and_after(lab: LabPage) -> None:
    write_notebook(lab.server.folder / "files" / "made.ipynb", KERNEL)
    open_notebook(lab, "files/made.ipynb")
    wait_for_text(lab, STATUS, " of 4 GB")
    make_files(lab, 12)
    # Each further file is as visible as the first one.
    assert f"+12: {MARKUP}0.txt" in wait_for_text(lab, UNKEPT, "12 files not kept")
    lab.run("open('one more.txt', 'w').write('x')")
    assert "+1: " in wait_for_text(lab, UNKEPT, "13 files not kept")
    lab.run("import os; os.remove('one more.txt')")
    wait_for_text(lab, UNKEPT, "12 files not kept")
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
    press(lab, ".jp-toastContainer", "Show files")
    assert f"{MARKUP}0.txt" in wait_for_text(lab, ".jp-Dialog", "and 2 more")
    lab.screenshot("unkept-gone")
    assert "attacked" not in lab.driver.title
    assert "the sandbox of made.ipynb" in text


def test_untrusted_notebook_starts_nothing_before_the_choice(desk: LabPage) -> None:
    lab = desk
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


@needs_all
def test_choice_without_sandbox_stands(lab: LabPage) -> None:
    """Also if Jupyter is set to start kernels by itself, and until the file is another one."""
    end_kernels(lab)
    settings = lab.server.base / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"autoStartDefaultKernel": true}')
    path = lab.server.folder / "choice" / "stranger.ipynb"
    write_notebook(path, WITHOUT)
    open_notebook(lab, "choice/stranger.ipynb")
    wait_for_text(lab, ".jp-Dialog", "neither saved nor trusted")
    press(lab, ".jp-Dialog", "No Kernel")
    lab.run("1 + 1")  # what would start the preferred kernel is ours now
    lab.wait_until(lambda: kernels(lab) == [KERNEL], "our kernel never started")
    end_kernels(lab)

    write_notebook(path, WITHOUT, "2")  # another file of the same name
    open_notebook(lab, "choice/stranger.ipynb")
    wait_for_text(lab, ".jp-Dialog", "neither saved nor trusted")
    choice = lab.find(".jp-Dialog-body select")
    Select(choice).select_by_value(json.dumps({"name": WITHOUT}, separators=(",", ":")))
    press(lab, ".jp-Dialog", "Select")
    lab.wait_until(lambda: kernels(lab) == [WITHOUT], "the chosen kernel never started")
    end_kernels(lab)
    open_notebook(lab, "choice/stranger.ipynb")
    lab.wait_until(lambda: kernels(lab) == [WITHOUT], "the kernel was asked for again")
    end_kernels(lab)
    (settings / "tracker.jupyterlab-settings").unlink()


@needs_all
def test_trusted_and_new_notebooks_are_left_alone(lab: LabPage) -> None:
    end_kernels(lab)
    path = lab.server.folder / "own" / "mine.ipynb"
    write_notebook(path, WITHOUT)
    subprocess.run([sys.executable, "-m", "jupyter", "trust", str(path)], check=True)
    open_notebook(lab, "own/mine.ipynb")
    lab.wait_until(lambda: kernels(lab) == [WITHOUT], "the notebook's own kernel never started")
    end_kernels(lab)
    lab.open()
    lab.find('.jp-LauncherCard[data-category="Notebook"][title^="Python 3 (ipykernel)"]').click()
    lab.wait_until(lambda: kernels(lab) == [WITHOUT], "the new notebook's kernel never started")
    assert lab.driver.find_elements(By.CSS_SELECTOR, ".jp-Dialog") == []
    end_kernels(lab)


@needs_all
def test_notebook_without_code_is_asked_about_until_it_is_signed(lab: LabPage) -> None:
    end_kernels(lab)
    path = lab.server.folder / "text" / "words.ipynb"
    write_notebook(path, WITHOUT, "words", "markdown")
    open_notebook(lab, "text/words.ipynb")
    wait_for_text(lab, ".jp-Dialog", "neither saved nor trusted")
    assert kernels(lab) == []
    press(lab, ".jp-Dialog", "No Kernel")
    write_notebook(path, WITHOUT, "other words", "markdown")
    subprocess.run([sys.executable, "-m", "jupyter", "trust", str(path)], check=True)
    open_notebook(lab, "text/words.ipynb")
    lab.wait_until(lambda: kernels(lab) == [WITHOUT], "the notebook's own kernel never started")
    assert lab.driver.find_elements(By.CSS_SELECTOR, ".jp-Dialog") == []
    end_kernels(lab)


@needs_all
def test_notebook_7_asks_and_tells_too(lab: LabPage) -> None:
    end_kernels(lab)
    write_notebook(lab.server.folder / "seven" / "stranger.ipynb", WITHOUT)
    open_notebook(lab, "seven/stranger.ipynb", "notebooks")
    wait_for_text(lab, ".jp-Dialog", "neither saved nor trusted")
    assert kernels(lab) == []
    lab.screenshot("untrusted-notebook-7")
    press(lab, ".jp-Dialog", "Select")
    wait_for_text(lab, STATUS, " of 4 GB")
    make_files(lab, 2)
    wait_for_text(lab, UNKEPT, "2 files not kept")
    lab.screenshot("unkept-notebook-7")
    open_menu(lab, "Kernel", "Shut Down Kernel")
    wait_for_text(lab, ".jp-Dialog", "2 files in /workspace will be gone")
    press(lab, ".jp-Dialog", "Cancel")
    end_kernels(lab)
    text = wait_for_text(lab, ".jp-Dialog", "2 files are gone")
    lab.screenshot("unkept-gone-notebook-7")
    assert f"{MARKUP}1.txt" in text
    assert "attacked" not in lab.driver.title


@needs_all
def test_dark_page_asks_before_a_stop_and_leads_to_changes(lab: LabPage, display_name: str) -> None:
    end_kernels(lab)
    theme = lab.server.base / "settings" / "@jupyterlab" / "apputils-extension"
    theme.mkdir(parents=True)
    (theme / "themes.jupyterlab-settings").write_text('{"theme": "JupyterLab Dark"}')
    write_notebook(lab.server.folder / "dark" / "stranger.ipynb", WITHOUT)
    open_notebook(lab, "dark/stranger.ipynb")
    lab.find('body[data-jp-theme-light="false"]')
    wait_for_text(lab, ".jp-Dialog", "neither saved nor trusted")
    lab.screenshot("untrusted-dark")
    assert serious_violations(lab, ".jp-Dialog-content") == []
    press(lab, ".jp-Dialog", "Select")
    wait_for_text(lab, STATUS, " of 4 GB")
    make_files(lab, 3)
    wait_for_text(lab, UNKEPT, "3 files not kept")
    assert serious_violations(lab, STATUS, UNKEPT) == []
    lab.find(STATUS).click()
    press(lab, ".gk-popup", "End Sandbox")
    wait_for_text(lab, ".jp-Dialog", "3 files in /workspace will be gone")
    lab.screenshot("unkept-stop-dark")
    assert serious_violations(lab, ".jp-Dialog-content") == []
    press(lab, ".jp-Dialog", "Changes")
    wait_for_text(lab, ".gk-changes", "3 changes.")
    assert kernels(lab) == [KERNEL]

    # Applied, they are kept: nothing is asked about files, and nothing told afterwards.
    lab.find('input[aria-label^="All changes"]').click()
    press(lab, ".gk-changes", "Apply selected (3)")
    wait_for_text(lab, ".gk-changes", "3 changes applied.")
    lab.find('.lm-TabBar-tab[data-id] .jp-NotebookIcon, .lm-TabBar-tab[title*="stranger"]').click()
    lab.wait_until(
        lambda: not lab.driver.find_element(By.CSS_SELECTOR, UNKEPT).is_displayed(),
        "the files were still counted",
    )
    (theme / "themes.jupyterlab-settings").unlink()
    end_kernels(lab)


def test_dead_sandbox_and_a_stopped_one(lab: LabPage) -> None:
    """A death asks nobody; a kernel that dies alone leaves the files where they are."""
    end_kernels(lab)
    write_notebook(lab.server.folder / "death" / "made.ipynb", KERNEL)
    open_notebook(lab, "death/made.ipynb")
    wait_for_text(lab, STATUS, " of 4 GB")
    make_files(lab, 2)
    wait_for_text(lab, UNKEPT, "2 files not kept")
    lab.run("import os; os._exit(1)")
    press(lab, ".jp-Dialog", "Ok")
    wait_for_text(lab, UNKEPT, "2 files not kept")

    [sandbox] = lab.server.request("GET", "gvisor-kernel/api/sandboxes")["sandboxes"]
    [record] = [one.record for one in find_all() if one.id == sandbox["id"]]
    os.kill(record.processes["sentry"].pid, signal.SIGKILL)
    wait_for_text(lab, ".jp-toastContainer", "2 files in /workspace are gone")
    lab.wait_until(
        lambda: not lab.driver.find_element(By.CSS_SELECTOR, UNKEPT).is_displayed(),
        "files of the sandbox that died were still counted",
    )
    lab.screenshot("unkept-death")

    open_notebook(lab, "death/made.ipynb")  # JupyterLab may have a dialog open
    wait_for_text(lab, STATUS, " of 4 GB")
    make_files(lab, 3)
    wait_for_text(lab, UNKEPT, "3 files not kept")
    lab.find(STATUS).click()
    press(lab, ".gk-popup", "End Sandbox")
    wait_for_text(lab, ".jp-Dialog", "3 files in /workspace will be gone")
    press(lab, ".jp-Dialog", "End Sandbox")
    lab.wait_until(lambda: kernels(lab) == [], "the sandbox was never stopped")


@needs_all
def test_home_is_named(lab: LabPage) -> None:
    end_kernels(lab)
    home = Path(os.environ["HOME"])
    (lab.server.folder / "home").symlink_to(home)
    write_notebook(home / "lost.ipynb", KERNEL)
    try:
        open_notebook(lab, "home/lost.ipynb")
        lab.find(f"{STATUS} .gk-home")
        # Before its kernel is known there is no card.
        assert "sees no files" in wait_for_text(lab, STATUS, " of 4 GB")
        lab.find(STATUS).click()
        text = wait_for_text(lab, ".gk-popup", "Move the notebook and its files")
        lab.screenshot("home")
        assert "directly in a home folder" in text
        assert serious_violations(lab, STATUS, ".gk-popup") == []
    finally:
        end_kernels(lab)
        (home / "lost.ipynb").unlink()
        (lab.server.folder / "home").unlink()


@needs_all
def test_cards_of_a_folder_with_notebooks_from_elsewhere(lab: LabPage, display_name: str) -> None:
    end_kernels(lab)
    write_notebook(lab.server.folder / "launch" / "stranger.ipynb", WITHOUT)
    lab.driver.get(
        f"{lab.server.url}lab/workspaces/auto-test/tree/launch?reset&token={lab.server.token}"
    )
    card = lab.find(f'.jp-LauncherCard[data-category="Notebook"][title^="{display_name}"]')
    lab.wait_until(
        lambda: "neither saved nor trusted" in str(card.get_attribute("title")),
        "the card never said why it is first",
    )
    assert "Limits: memory 4 GB, files 2 GB, 512 processes" in str(card.get_attribute("title"))
    other = lab.find('.jp-LauncherCard[data-category="Notebook"][title^="Python 3 (ipykernel)"]')
    assert card.location["x"] < other.location["x"] or card.location["y"] < other.location["y"]
    lab.screenshot("launcher-elsewhere")
