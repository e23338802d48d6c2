"""What the extension of JupyterLab and Notebook 7 shows of a sandbox, below a hub's prefix."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from ..sweeps import needs_all
from .conftest import KERNEL, WRONG_SETTING
from .lab import WAIT_SECONDS, LabPage

BASE_URL = "/user/an-n/"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not KERNEL.startswith("gvisor"), reason="GK_TEST_KERNEL names a kernel without a sandbox"
    ),
]

STATUS = ".gk-status"
SIDEBAR = "#gvisor-kernel-sandboxes"


def wait_for_text(lab: LabPage, css: str, text: str) -> str:
    """Wait until the visible element ``css`` contains ``text``; return all of its text."""
    seen = ""

    def look(_: Any) -> bool:
        nonlocal seen
        seen = lab.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText).join('\\n')",
            css,
        )
        return text in seen

    try:
        WebDriverWait(lab.driver, WAIT_SECONDS, poll_frequency=0.1).until(look)
    except BaseException:
        lab.screenshot("timeout")
        pytest.fail(f"{css} never had {text!r}, but {seen!r}")
    return seen


def serious_violations(lab: LabPage, *selectors: str) -> list[str]:
    """Return what axe finds serious or critical in the elements."""
    spec = importlib.util.find_spec("axe_core_python")
    assert spec is not None
    assert spec.origin is not None
    lab.driver.execute_script(Path(spec.origin).with_name("axe.min.js").read_text())
    result = lab.driver.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        axe.run({include: arguments[0].map(css => [css])}).then(done, e => done(String(e)));
        """,
        selectors,
    )
    assert isinstance(result, dict), result
    return [
        f"{found['id']}: {node['html']}: {node['failureSummary']}"
        for found in result["violations"]
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]


def test_a_notebook_shows_its_sandbox(lab: LabPage, display_name: str) -> None:
    lab.pick_kernel(display_name)
    text = wait_for_text(lab, STATUS, " of 4 GB")
    lab.screenshot("sandbox-status")
    assert lab.find(STATUS).get_attribute("aria-label") == f"Sandbox: {text.strip()}; no network"

    lab.find(STATUS).send_keys(Keys.ENTER)
    card = lab.find(".gk-popup").text
    lab.screenshot("sandbox-card")
    for word in ("Memory", "Image", "Mounts", "/workspace", "Start", "gvisor-kernel", "runsc"):
        assert word in card
    assert serious_violations(lab, ".gk-popup", STATUS) == []
    lab.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert lab.driver.find_elements(By.CSS_SELECTOR, ".gk-popup") == []
    assert lab.driver.switch_to.active_element == lab.find(STATUS)

    lab.find('.jp-SideBar [data-id="gvisor-kernel-sandboxes"]').click()
    wait_for_text(lab, f"{SIDEBAR} .gk-row", "CPU ")
    lab.screenshot("sandbox-sidebar")
    assert serious_violations(lab, SIDEBAR) == []


def test_the_launcher_says_image_and_limits(lab: LabPage, display_name: str) -> None:
    card = lab.find(f'.jp-LauncherCard[data-category="Notebook"][title^="{display_name}"]')
    WebDriverWait(lab.driver, WAIT_SECONDS, poll_frequency=0.1).until(
        lambda _: "Runs in a sandbox. Image: " in str(card.get_attribute("title")),
        "the card never said what the sandbox is",
    )


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


@needs_all
def test_a_failed_start_offers_doctor(lab: LabPage) -> None:
    lab.pick_kernel(WRONG_SETTING)
    assert "memory_limit" in lab.dialog()
    lab.find(".jp-Dialog .gk-doctor").click()
    text = wait_for_text(lab, SIDEBAR, "checks are fine")
    lab.screenshot("sandbox-doctor")
    assert "Doctor" in text
    assert serious_violations(lab, SIDEBAR) == []
