"""A page that leads its frame elsewhere connects to nothing, nor does a person who clicks in it.

A policy of contents is judged after the name was looked up and the connection opened. What counts
is what a listener and the browser's own log see.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from .framing import Host, Shown, embed, host
from .lab import browser

__all__ = ["host"]

pytestmark = pytest.mark.browser

LEAVES = Path(__file__).with_name("frame_leaves.html")


class Listener:
    """A port that notes who connects, and answers nothing."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    self.seen.append(connection.recv(200))
                except OSError:
                    self.seen.append(b"")


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    with closing(listener.socket):
        yield listener


def names_looked_up(log: Path) -> set[str]:
    """Return the names below ``leak.test`` in the browser's log of its network."""
    document: Any = json.loads(log.read_text())
    kinds = {number: name for name, number in document["constants"]["logEventTypes"].items()}
    found = set()
    for event in document["events"]:
        if kinds[event["type"]].startswith(("HOST_RESOLVER", "TCP_CONNECT", "SOCKET")):
            text = json.dumps(event.get("params", {}))
            found |= {part.split("://")[-1] for part in text.split('"') if "leak.test" in part}
    return found


def leave(shown: Shown, listener: Listener, *, used: bool) -> dict[str, str]:
    """Try all ways; return what became of each."""
    shown.show(LEAVES.read_text().replace("PORT", str(listener.port)))
    if used:
        shown.enter()
    shown.wait(lambda: "done" in shown.heard() or shown.messages("left"))
    return shown.heard()


@pytest.fixture
def logged(programs: tuple[str, str], tmp_path: Path) -> Iterator[tuple[webdriver.Chrome, Path]]:
    """A browser that resolves all test names to this computer, and its log."""
    log = tmp_path / "net.json"
    flags = (f"--log-net-log={log}", "--host-resolver-rules=MAP *.leak.test 127.0.0.1")
    with browser(*programs, tmp_path / "profile", *flags) as driver:
        yield driver, log


def test_a_page_that_goes_elsewhere_connects_to_nothing(
    host: Host, logged: tuple[webdriver.Chrome, Path], listener: Listener
) -> None:
    driver, log = logged
    for used in (False, True):
        heard = leave(embed(host, driver), listener, used=used)
        assert heard.get("done") == str(len(heard) - 1), heard
    assert len(driver.window_handles) == 1
    driver.quit()
    assert listener.seen == []
    assert names_looked_up(log) == set()


@pytest.mark.parametrize(("query", "reached"), [("", 0), ("?control", 2)])
def test_a_frame_tells_whether_the_browser_obeys(
    host: Host, driver: webdriver.Chrome, query: str, reached: int
) -> None:
    shown = embed(host, driver, query)
    shown.driver.execute_script("show('html', '', {}, '', [], 'try')")
    (tried,) = shown.wait(lambda: shown.messages("tried"))
    assert tried["reached"] == reached
    assert shown.messages("ready") == []
    assert sum(path.startswith("/frame/probe") for path in host.paths) == reached


def test_a_frame_that_came_without_the_header_holds_no_page(
    host: Host, driver: webdriver.Chrome
) -> None:
    """As behind a proxy that takes it from some answers: the browser was tried with another."""
    shown = embed(host, driver, "?control")
    shown.show("<script>top.postMessage(['ran', 1], '*')</script>")
    shown.wait(lambda: shown.messages("unfit") or shown.messages("shown"))
    assert (shown.messages("ready"), shown.heard()) == ([], {})


CLICKS = """<style>a, svg { display: block; font-size: 60px }</style>
<a id="plain" href="URL/plain">plain</a>
<div id="holder"></div>
<svg width="300" height="80"><a id="svg"><text y="60">drawn</text></a></svg>
<script>
// What the guards would call, if they called what a page can replace.
Array.prototype.find = () => undefined;
Element.prototype.matches = () => false;
Element.prototype.removeAttribute = () => {};
Event.prototype.preventDefault = () => {};
Event.prototype.composedPath = () => [];
Event.prototype.stopPropagation = () => {};
const root = holder.attachShadow({ mode: 'closed' });
root.innerHTML = '<a href="URL/shadow" style="display: block; font-size: 60px">inside</a>';
const name = 'http://www.w3.org/1999/xlink';
svg.setAttributeNS(name, 'p:href', 'URL/svg');
for (const kind of ['pointerdown', 'mousedown', 'mouseup', 'click', 'auxclick']) {
  addEventListener(kind, () => {
    plain.setAttribute('href', 'URL/again');
    root.firstChild.setAttribute('href', 'URL/again');
    svg.setAttributeNS(name, 'p:href', 'URL/again');
  }, true);
}
top.postMessage(['here', 1], '*');
</script>"""


def test_no_click_on_a_link_opens_a_window(
    host: Host, driver: webdriver.Chrome, listener: Listener
) -> None:
    shown = embed(host, driver)
    url = f"http://127.0.0.1:{listener.port}"
    shown.show(CLICKS.replace("URL", url))
    shown.wait(lambda: shown.messages("shown"))
    shown.enter()
    shown.go_inside()
    for target in ("plain", "holder", "svg"):
        element = driver.find_element(By.ID, target)
        for keys in ((), (Keys.CONTROL,), (Keys.SHIFT,), (Keys.ALT,), (Keys.CONTROL, Keys.SHIFT)):
            actions = ActionChains(driver)
            for key in keys:
                actions.key_down(key)
            actions.click(element)
            for key in keys:
                actions.key_up(key)
            actions.perform()
        middle = ActionChains(driver)
        middle.w3c_actions.pointer_action.move_to(element)
        middle.w3c_actions.pointer_action.pointer_down(button=1)
        middle.w3c_actions.pointer_action.pointer_up(button=1)
        middle.perform()
    driver.switch_to.default_content()
    shown.wait(lambda: len(shown.messages("link")) >= 18)
    assert len(driver.window_handles) == 1
    assert listener.seen == []
