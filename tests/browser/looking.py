"""What the tests of the extension look at: texts, focus, what axe finds, requests, complaints."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from .lab import LabPage

STATUS = ".gk-status"
POPUP = ".gk-popup"
SIDEBAR = "#gvisor-kernel-sandboxes"
CHANGES = ".gk-changes"
MOST_STOPS = 150
"""Presses of Tab after which an element counts as not reached. JupyterLab's page has about 60."""


def text_of(lab: LabPage, css: str) -> str:
    """Return the texts of the elements ``css`` as a person sees them; hidden ones have none."""
    return str(
        lab.driver.execute_script(
            # innerText of an element that is not drawn would be all of its text.
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter(e => e.checkVisibility()).map(e => e.innerText).join('\\n')",
            css,
        )
    )


def wait_for_text(lab: LabPage, css: str, text: str) -> str:
    """Wait until the visible element ``css`` contains ``text``; return all of its text."""
    seen = ""

    def look() -> bool:
        nonlocal seen
        seen = text_of(lab, css)
        return text in seen

    try:
        lab.wait_until(look, "")
    except TimeoutException:
        pytest.fail(f"{css} never had {text!r}, but {seen!r}")
    return seen


def button(lab: LabPage, within: str, label: str) -> WebElement:
    """Wait for the button whose text, or name, begins with ``label``."""
    found: list[WebElement] = []

    def look() -> bool:
        with contextlib.suppress(StaleElementReferenceException):  # drawn again meanwhile
            found[:] = [
                it
                for it in lab.driver.find_elements(
                    By.CSS_SELECTOR, f"{within} button:not(.gk-path)"
                )
                if (it.text or it.get_attribute("aria-label") or "").startswith(label)
                and it.is_displayed()
            ]
        return bool(found)

    lab.wait_until(look, f"{within} never had the button {label}")
    return found[0]


def serious_violations(lab: LabPage, *selectors: str) -> list[str]:
    """Return what axe finds serious or critical in the elements."""
    spec = importlib.util.find_spec("axe_core_python")
    assert spec is not None
    assert spec.origin is not None
    if not lab.driver.execute_script("return 'axe' in window"):
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


def press(lab: LabPage, *keys: str, shift: bool = False) -> None:
    """Press keys where the focus is."""
    chain = ActionChains(lab.driver)
    if shift:
        chain.key_down(Keys.SHIFT)
    chain.send_keys(*keys)
    if shift:
        chain.key_up(Keys.SHIFT)
    chain.perform()


def has_focus(lab: LabPage, css: str, label: str = "") -> bool:
    """Return whether the focus is on an element ``css`` whose text or name begins with that."""
    return bool(
        lab.driver.execute_script(
            """
            const it = document.activeElement;
            const name = it?.getAttribute('aria-label') || it?.innerText || '';
            return !!it && it.matches(arguments[0])
              && (name.startsWith(arguments[1]) || it.innerText.startsWith(arguments[1]));
            """,
            css,
            label,
        )
    )


def tab_to(lab: LabPage, css: str, label: str = "", *, shift: bool = False) -> None:
    """Press Tab until the focus is there, and check that a person sees it there."""
    passed = []
    for _ in range(MOST_STOPS):
        if has_focus(lab, css, label):
            break
        press(lab, Keys.TAB, shift=shift)
        passed.append(lab.driver.execute_script("return document.activeElement.outerHTML")[:80])
    else:
        pytest.fail(f"Tab never came to {css} {label}, but to:\n" + "\n".join(passed[-20:]))
    ring = lab.driver.execute_script(
        """
        const it = document.activeElement;
        const style = getComputedStyle(it), box = it.getBoundingClientRect();
        return [style.outlineStyle, parseFloat(style.outlineWidth), style.outlineColor,
          box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight];
        """
    )
    assert ring[0] != "none", f"{css} {label} shows no focus"
    assert ring[1] > 0
    assert ring[3], f"{css} {label} has the focus and cannot be seen"


def set_theme(lab: LabPage, theme: str) -> None:
    """Choose a theme of the page; the module's server has OPTIONS with EXPOSED."""
    lab.driver.execute_script(
        "jupyterapp.commands.execute('apputils:change-theme', {theme: arguments[0]})", theme
    )
    light = "true" if theme.endswith("Light") else "false"
    lab.find(f'body[data-jp-theme-light="{light}"][data-jp-theme-name="{theme}"]')


def sent_requests(lab: LabPage) -> list[dict[str, Any]]:
    """Return the requests that the browser sent since the last call of this.

    The module has LOGGED (conftest.py).
    """
    found = []
    for entry in lab.driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(message["params"]["request"])
        elif message["method"] == "Network.webSocketCreated":
            found.append({"url": message["params"]["url"], "method": "WEBSOCKET"})
    return found


def hosts_of(requests: Sequence[dict[str, Any]]) -> set[str]:
    """Return the hosts asked; what lies in the page or the browser itself is no request."""
    parts = [urlsplit(request["url"]) for request in requests]
    return {part.netloc for part in parts if part.scheme in ("http", "https", "ws", "wss")}


def complaints(lab: LabPage) -> list[str]:
    """Return the errors that the page wrote to its console since the last call of this.

    The module has LOGGED (conftest.py).
    """
    return [
        entry["message"] for entry in lab.driver.get_log("browser") if entry["level"] == "SEVERE"
    ]
