"""What the extension of JupyterLab and Notebook 7 shows of a sandbox, below a hub's prefix."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ..sweeps import needs_all
from .conftest import KERNEL, WRONG_SETTING
from .lab import LabPage

BASE_URL = "/user/an-n/"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not KERNEL.startswith("gvisor"), reason="GK_TEST_KERNEL names a kernel without a sandbox"
    ),
]

STATUS = ".gk-status"
SIDEBAR = "#gvisor-kernel-sandboxes"

MARKUP = "<img src=x onerror=document.title='attacked'>.txt"
DOUBLE = """
const real = window.fetch;
const svg = "<svg xmlns='http://www.w3.org/2000/svg' width='60' height='40'>" +
  "<script>top.document.title = 'attacked'</script>" +
  "<circle cx='30' cy='20' r='15' fill='COLOUR'/></svg>";
const file = {kind: "changed", type: "file", size: 40, old_size: 30, conflict: null};
const changes = [
  {...file, path: MARKUP, state: "1"},
  {...file, path: "plot.svg", state: "2"},
  {...file, path: "data/table.csv", state: "3",
   conflict: "The file on disk has changed since the sandbox began."},
];
window.fetch = async (input, init) => {
  const url = new URL(input instanceof Request ? input.url : input, location.href);
  const path = url.pathname.split("/gvisor-kernel/api/")[1] ?? "";
  const answer = it => new Response(typeof it === "string" ? it : JSON.stringify(it));
  if (path === "openapi.json") return answer({paths: {"/kernels/{kernel_id}/changes": {}}});
  if (path.endsWith("/changes")) return answer({changes, more: false, total: changes.length});
  if (path.endsWith("/apply")) return answer({
    applied: [MARKUP], undo: "u", refused: [{path: "data/table.csv", reason: "It has changed."}]});
  if (path.endsWith("/content")) {
    const old = url.searchParams.get("side") === "old";
    return answer(url.searchParams.get("path") === "plot.svg"
      ? svg.replace("COLOUR", old ? "gray" : "orange")
      : old ? "one\\n<b>two</b>\\n" : "one\\n<b onclick=x>TWO</b>\\n");
  }
  return real(input, init);
};
""".replace("MARKUP", json.dumps(MARKUP))
"""The server's half of changes, in the page."""


def wait_for_text(lab: LabPage, css: str, text: str) -> str:
    """Wait until the visible element ``css`` contains ``text``; return all of its text."""
    seen = ""

    def look() -> bool:
        nonlocal seen
        seen = lab.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText).join('\\n')",
            css,
        )
        return text in seen

    try:
        lab.wait_until(look, "")
    except TimeoutException:
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
    # Before the kernel starts: the launcher's card, and the wish that it be made ready.
    card = lab.find(f'.jp-LauncherCard[data-category="Notebook"][title^="{display_name}"]')
    lab.wait_until(
        lambda: "Runs in a sandbox. Image: " in str(card.get_attribute("title")),
        "the card never said what the sandbox is",
    )
    lab.wait_until(
        lambda: lab.driver.execute_script(
            "return performance.getEntriesByType('resource')"
            ".some(it => it.name.includes('/api/warm') && it.responseStatus === 202)"
        ),
        "the server was never told which kernel may come next",
    )

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
    assert "Doctor" in text
    assert serious_violations(lab, SIDEBAR) == []


@needs_all
def test_changes_are_looked_at_and_applied(lab: LabPage, display_name: str) -> None:
    lab.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": DOUBLE})
    lab.open()
    lab.pick_kernel(display_name)
    wait_for_text(lab, STATUS, " of 4 GB")
    lab.find(STATUS).click()
    popup = lab.find(".gk-popup")
    [changes] = [
        it for it in popup.find_elements(By.CSS_SELECTOR, "button") if it.text == "Changes"
    ]
    changes.click()
    text = wait_for_text(lab, ".gk-changes", "table.csv")
    assert MARKUP in text
    assert "has changed since the sandbox began" in text

    lab.find("button.gk-path").click()
    assert "+ <b onclick=x>TWO</b>" in wait_for_text(lab, ".gk-difference", "TWO")
    lab.screenshot("changes-text")
    lab.driver.find_elements(By.CSS_SELECTOR, "button.gk-path")[1].click()
    lab.wait_until(
        lambda: lab.driver.execute_script(
            "const all = [...document.querySelectorAll('.gk-pictures img')];"
            "return all.length === 2 && all.every(it => it.complete && it.naturalWidth > 0)"
        ),
        "the pictures were never drawn",
    )
    lab.screenshot("changes-picture")

    lab.find('input[aria-label="All changes"]').click()
    lab.find('input[aria-label="Also apply conflicts"]').send_keys(Keys.SPACE)
    [apply] = [
        it
        for it in lab.driver.find_elements(By.CSS_SELECTOR, ".gk-changes button")
        if it.text.startswith("Apply 3")
    ]
    apply.send_keys(Keys.ENTER)
    wait_for_text(lab, ".gk-changes [role=status]", "1 refused.")
    assert serious_violations(lab, ".gk-changes") == []
    assert "attacked" not in lab.driver.title


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
