"""What the extension of JupyterLab and Notebook 7 shows of a sandbox, below a hub's prefix."""

from __future__ import annotations

import json

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ..sweeps import needs_all
from .conftest import IN_SANDBOXES, KERNEL, WRONG_SETTING
from .lab import LabPage
from .looking import (
    CHANGES,
    POPUP,
    SIDEBAR,
    STATUS,
    has_focus,
    press,
    serious_violations,
    tab_to,
    text_of,
    wait_for_text,
)
from .test_jupyterlab import show_text_and_a_picture

BASE_URL = "/user/an-n/"

pytestmark = IN_SANDBOXES


def test_a_notebook_shows_its_sandbox(desk: LabPage, display_name: str) -> None:
    lab = desk
    lab.open()
    # Before the kernel starts: the launcher's card, and the request to make it ready.
    card = f'.jp-LauncherCard[data-category="Notebook"][title^="{display_name}"]'
    lab.find(f"{card}[title*='Runs in a sandbox. Image: ']")
    lab.wait_until(
        lambda: lab.driver.execute_script(
            "return performance.getEntriesByType('resource')"
            ".some(it => it.name.includes('/api/warm') && it.responseStatus === 202)"
        ),
        "the server was never told which kernel may come next",
    )

    lab.pick_kernel(display_name)
    lab.wait_for_kernel(display_name)
    show_text_and_a_picture(lab)
    wait_for_text(lab, STATUS, " of 4 GB")
    lab.screenshot("sandbox-status")
    name = "const it = document.querySelector('.gk-status'); return [it.ariaLabel, it.innerText]"
    label, text = lab.driver.execute_script(name)  # the figure may change between two looks
    assert label == f"Sandbox: {text.strip()}; no network"

    lab.find(STATUS).send_keys(Keys.ENTER)
    card = wait_for_text(lab, POPUP, "Not kept")  # asked for a moment after the last cell
    lab.screenshot("sandbox-card")
    for word in ("Memory", "Network", "Folder", "Not kept", "End Sandbox", "Details"):
        assert word in card
    for word in ("Identity", "Mounts", "Versions"):  # folded
        assert word not in card
    assert serious_violations(lab, ".gk-popup", STATUS) == []
    lab.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert lab.driver.find_elements(By.CSS_SELECTOR, ".gk-popup:popover-open") == []
    assert lab.driver.switch_to.active_element == lab.find(STATUS)

    lab.find('.jp-SideBar [data-id="gvisor-kernel-sandboxes"]').click()
    assert wait_for_text(lab, f"{SIDEBAR} .gk-row", "CPU ").startswith("Untitled.ipynb")
    assert text_of(lab, f"{SIDEBAR} .jp-AccordionPanel-title") == "SANDBOXES\nDOCTOR"
    lab.screenshot("sandbox-sidebar")
    assert serious_violations(lab, SIDEBAR) == []

    # Keys alone: what the kernel wrote is looked at, applied and taken back.
    name = "<img src=x onerror=document.title='attacked'>.txt"
    lab.run(f"open({name!r}, 'w').write('<b>new</b>'); print('written')")
    assert "written" in lab.output(3).text
    lab.find(STATUS).send_keys(Keys.ENTER)
    tab_to(lab, ".gk-popup button", "Changes")
    press(lab, Keys.ENTER)
    wait_for_text(lab, CHANGES, name)
    lab.wait_until(lambda: has_focus(lab, ".gk-panel"), "the panel never had the focus")
    tab_to(lab, "button.gk-path", name)
    press(lab, Keys.ENTER)
    wait_for_text(lab, ".gk-difference", "+ <b>new</b>")
    tab_to(lab, "input", f"Choose {name}", shift=True)
    press(lab, Keys.SPACE)
    tab_to(lab, f"{CHANGES} button", "Apply selected (1)", shift=True)
    press(lab, Keys.ENTER)
    wait_for_text(lab, f"{CHANGES} [role=status]", "1 change applied.")
    lab.screenshot("sandbox-changes")
    assert serious_violations(lab, CHANGES) == []
    file = lab.server.folder / name
    assert file.read_text() == "<b>new</b>"
    tab_to(lab, f"{CHANGES} button", "Undo", shift=True)
    press(lab, Keys.ENTER)
    wait_for_text(lab, f"{CHANGES} [role=status]", "Undone")
    assert not file.exists()

    # The list follows the kernel, and the menus lead to it and to the transcript.
    lab.to_notebook()
    lab.run("open('later.txt', 'w').write('x')")
    for label in ("Kernel", "Sandbox Changes"):
        lab.find_menu(label).click()
    wait_for_text(lab, f"{CHANGES} tbody", "later.txt")
    lab.to_notebook()
    for label in ("View", "Sandbox Transcript"):
        lab.find_menu(label).click()
    wait_for_text(lab, ".gk-lines", "later.txt")
    assert "attacked" not in lab.driver.execute_script("return document.title")


@needs_all
def test_notebook_7_shows_the_sandbox_in_its_menu(lab: LabPage) -> None:
    notebook = {
        "cells": [],
        "metadata": {"kernelspec": {"name": KERNEL, "display_name": KERNEL}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (lab.server.folder / "seven.ipynb").write_text(json.dumps(notebook))
    lab.driver.get(f"{lab.server.url}notebooks/seven.ipynb?token={lab.server.token}")
    wait_for_text(lab, STATUS, " of 4 GB")
    lab.find(STATUS).click()
    assert "Memory" in lab.find(".gk-popup").text
    lab.screenshot("sandbox-notebook-7")
    assert serious_violations(lab, ".gk-popup", STATUS) == []
    lab.driver.switch_to.active_element.send_keys(Keys.ESCAPE)

    for label in ("View", "Left Sidebar", "Show Sandboxes"):
        lab.find_menu(label).click()
    wait_for_text(lab, f"{SIDEBAR} .gk-row", " of 4 GB")


@needs_all
def test_a_failed_start_offers_doctor(lab: LabPage) -> None:
    lab.pick_kernel(WRONG_SETTING)
    assert "memory_limit" in lab.dialog()
    lab.find(".jp-Dialog .gk-doctor").click()
    text = wait_for_text(lab, SIDEBAR, "checks are fine")
    lab.screenshot("sandbox-doctor")
    assert "DOCTOR" in text
    assert serious_violations(lab, SIDEBAR) == []


@needs_all
def test_dark_colours_can_be_read(lab: LabPage, display_name: str) -> None:
    settings = lab.server.base / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    theme = settings / "themes.jupyterlab-settings"
    theme.write_text(json.dumps({"theme": "JupyterLab Dark"}))
    try:
        lab.open()
        lab.find('body[data-jp-theme-light="false"]')
        lab.pick_kernel(display_name)
        wait_for_text(lab, STATUS, " of 4 GB")
        lab.find('.jp-SideBar [data-id="gvisor-kernel-sandboxes"]').click()
        wait_for_text(lab, f"{SIDEBAR} .gk-row", "CPU ")
        lab.find(STATUS).click()
        lab.find(".gk-popup")
        lab.screenshot("sandbox-dark")
        assert serious_violations(lab, ".gk-popup", STATUS, SIDEBAR) == []
    finally:
        theme.unlink()
