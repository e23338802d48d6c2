"""Outputs of a kernel in JupyterLab: listed as they appear, shown in frames that reach nothing."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ..egress.upstream import Fake, serving
from ..sweeps import needs_all
from .conftest import IN_SANDBOXES, KERNEL
from .lab import LabPage
from .looking import (
    EXPOSED,
    STATUS,
    button,
    press,
    serious_violations,
    set_theme,
    tab_to,
    wait_for_text,
)

pytestmark = IN_SANDBOXES

OPTIONS = EXPOSED
PANEL = ".gk-outputs"
TALKS = ".gk-talk"
HUGE = b"\x89PNG\r\n\x1a\n" + struct.pack(
    ">I4sIIBBBBBI", 13, b"IHDR", 23000, 23000, 1, 0, 0, 0, 0, 0
)
"""The beginning of a picture of half a billion pixels."""
MARKUP = "<img src=x onerror=document.title='attacked'>.txt"
WRITE = """
import json, os, matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
os.chdir("outputs")
fig, ax = plt.subplots()
ax.plot([1, 3, 2])
for ending in ("png", "svg", "pdf"):
    fig.savefig(f"plot.{ending}")
pd.DataFrame({"name": ["<b>ann</b>", "bob"], "x": [1.5, 2]}).to_csv("table.csv", index=False)
files = {
    "report.md": "# Report\\n\\n<script>top.postMessage(1, '*')</script>\\n\\n![plot](plot.png)",
    "graph.mermaid": "graph TD\\n A[Start] --> B[End]",
    "data.json": '{"a": [1, 2]}',
    NAME: "text of markup",
    "notes.html": '''<!doctype html><title>Notes</title><h1>Notes</h1><p id="seen"></p>
        <img src="plot.png"><button onclick="count()">count</button><script>
        async function count() {
          const last = await storage.get("count").then(found => found.value, () => 0);
          await storage.set("count", last + 1);
          document.getElementById("seen").textContent = "counted " + (last + 1);
        }
        count();</script>''',
    "app.jsx": '''import React, { useState } from "react";
        import { Camera } from "lucide-react";
        export default function App() {
          const [count, setCount] = useState(0);
          return <button className="bg-red-600" onClick={() => setCount(count + 1)}>
            <Camera /> pressed {count}</button>;
        }''',
    "wrong.jsx": '''export default function App() {
          return <p>{1 +}</p>;
        }''',
}
for name, text in files.items():
    open(name, "w").write(text)
os.chdir("..")
"""

LINKS = """<a id="link" href="https://links.example/?told">Link</a><p id="count"></p><script>
let count = 0;
setInterval(() => {
  if (count === 10) return;
  const link = document.createElement("a");
  link.href = "https://links.example/";
  document.body.append(link);
  link.click();
  document.getElementById("count").textContent = ++count;
}, 50);
</script>"""

TAKES = """<a id="link" href="https://links.example/">Link</a><input id="field" value="x"><script>
document.getElementById("link").addEventListener("click", () => {
  setInterval(() => document.getElementById("field").select(), 50);
});
</script>"""
"""It takes the focus from the question that its link asks."""


@pytest.fixture(scope="module", autouse=True)
def api(request: pytest.FixtureRequest) -> Iterator[Fake]:
    """A server for which the module's Jupyter server has a route for pages."""
    with serving() as fake, pytest.MonkeyPatch.context() as patch:
        url = f"http://127.0.0.1:{fake.port}"
        routes = {"api": {"url": url, "allow_private": True, "artifacts": True}}
        patch.setattr(request.module, "OPTIONS", (*EXPOSED, f"--GVisorEgress.routes={routes!r}"))
        yield fake


def run_command(lab: LabPage, label: str) -> None:
    """Run a command by the palette."""
    ActionChains(lab.driver).key_down(Keys.CONTROL).key_down(Keys.SHIFT).send_keys("c").key_up(
        Keys.SHIFT
    ).key_up(Keys.CONTROL).perform()
    lab.find(".lm-CommandPalette-input").send_keys(label)
    lab.find(".lm-CommandPalette-item.lm-mod-active")
    lab.driver.switch_to.active_element.send_keys(Keys.ENTER)


def choose(lab: LabPage, path: str) -> None:
    """Choose a file in the list."""
    lab.wait_until(
        lambda: lab.driver.execute_script(
            """
            const node = [...document.querySelectorAll(arguments[0] + ' [data-path]')]
              .find(node => node.dataset.path === arguments[1]);
            node?.click();
            return node !== undefined;
            """,
            PANEL,
            path,
        ),
        f"{path} was never listed",
    )
    wait_for_text(lab, f"{PANEL} h2", path)


def page_has(lab: LabPage, css: str, text: str = "") -> None:
    """Wait until the page in the frame has an element with a text."""

    def look() -> bool:
        lab.driver.switch_to.default_content()
        try:
            lab.driver.switch_to.frame(lab.driver.find_element(By.CSS_SELECTOR, ".gk-page"))
            lab.driver.switch_to.frame(lab.driver.find_element(By.TAG_NAME, "iframe"))
            return any(
                text in (node.text or node.get_attribute("textContent") or "")
                for node in lab.driver.find_elements(By.CSS_SELECTOR, css)
            )
        except (NoSuchElementException, StaleElementReferenceException):
            return False

    try:
        lab.wait_until(look, f"the page never had {css} with {text!r}")
    finally:
        lab.driver.switch_to.default_content()


def test_outputs_are_shown(lab: LabPage, display_name: str) -> None:
    lab.pick_kernel(display_name)
    lab.wait_for_kernel(display_name)
    run_command(lab, "Show the Outputs of This Kernel")
    wait_for_text(lab, PANEL, "There are no files.")
    lab.find(".jp-Notebook .jp-Cell.jp-mod-active .cm-content").click()
    lab.run(WRITE.replace("NAME", repr(MARKUP)))
    choose(lab, MARKUP)
    wait_for_text(lab, f"{PANEL} pre", "text of markup")
    choose(lab, "data.json")
    wait_for_text(lab, f"{PANEL} pre", '"a": [')
    choose(lab, "plot.png")
    lab.wait_for_colours(lab.find(f'{PANEL} img[alt="plot.png"]'), 2)
    lab.screenshot("outputs-picture")
    (lab.server.folder / "outputs" / "huge.png").write_bytes(HUGE)
    choose(lab, "huge.png")
    wait_for_text(lab, f"{PANEL} .gk-preview", "more than 64 million pixels")
    assert serious_violations(lab, PANEL) == []

    shown = {
        "table.csv": ("td", "<b>ann</b>"),
        "report.md": ("h1", "Report"),
        "graph.mermaid": ("svg text, svg tspan", "Start"),
        "plot.pdf": ("canvas[data-drawn]", ""),
        "plot.svg": ('img[alt="plot.svg"]', ""),
        "app.jsx": ("button.bg-red-600", "pressed 0"),
        "notes.html": ("#seen", "counted 1"),
    }
    for name, (css, text) in shown.items():
        choose(lab, name)
        page_has(lab, css, text)
        lab.screenshot(f"outputs-{name.partition('.')[2]}")
    choose(lab, "notes.html")
    page_has(lab, "#seen", "counted 2")
    choose(lab, "wrong.jsx")
    wait_for_text(lab, f"{PANEL} .gk-notes", "wrong.jsx, line 2: Unexpected token")
    lab.screenshot("outputs-error")
    assert "attacked" not in lab.driver.title
    check_links(lab)


def use_link(lab: LabPage) -> None:
    """Click the link of the page that is shown, as a person does; wait for the question."""
    button(lab, PANEL, "Use this page").click()
    for _ in range(2):
        lab.driver.switch_to.frame(lab.driver.find_elements(By.TAG_NAME, "iframe")[0])
    lab.driver.find_element(By.ID, "link").click()
    lab.driver.switch_to.default_content()
    assert lab.dialog().startswith("Open links.example?")


def check_links(lab: LabPage) -> None:
    """A page that clicks its own links; then one that the person clicks."""
    (lab.server.folder / "outputs" / "links.html").write_text(LINKS)
    choose(lab, "links.html")
    page_has(lab, "#count", "10")
    assert lab.driver.find_elements(By.CSS_SELECTOR, ".jp-Dialog") == []
    use_link(lab)
    wait_for_text(lab, ".jp-Dialog :focus", "Cancel")
    # Keys that the person types elsewhere, or hits by chance, open nothing.
    ActionChains(lab.driver).send_keys(Keys.ENTER).perform()
    gone = "return document.querySelector('.jp-Dialog') === null"
    lab.wait_until(lambda: lab.driver.execute_script(gone), "the question never ended")
    assert len(lab.driver.window_handles) == 1
    choose(lab, "notes.html")
    (lab.server.folder / "outputs" / "takes.html").write_text(TAKES)
    choose(lab, "takes.html")
    page_has(lab, "#link")
    use_link(lab)
    wait_for_text(lab, f"{PANEL} .gk-preview", "it takes the keyboard")
    wait_for_text(lab, ".jp-Dialog :focus", "Cancel")
    ActionChains(lab.driver).send_keys(Keys.ENTER).perform()
    lab.wait_until(lambda: lab.driver.execute_script(gone), "the question got no key")
    assert len(lab.driver.window_handles) == 1


TALK = """<h1>Talk</h1><p id="seen"></p><p id="none"></p><p id="last"></p><script>
const say = (id, text) => { document.getElementById(id).textContent = text; };
const ask = path => fetch("API" + path, { method: "POST", body: "hello" });
fetch("https://api.other.example/").catch(error => say("none", error.message));
(async () => {
  try {
    const reader = (await ask("/v1/events")).body.getReader();
    for (let text = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      say("seen", (text += new TextDecoder().decode(value)));
    }
  } catch (error) {
    say("seen", error.message);
  }
  const tell = it => say("last", it.status ?? it.message);
  setInterval(() => ask("/v1/x").then(tell, tell), 100);
})();
</script>"""


def write_talk(folder: Path, api: Fake) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "talk.html").write_text(TALK.replace("API", f"http://127.0.0.1:{api.port}"))


def open_as_page(lab: LabPage, folder: str) -> None:
    """Open the only file of a folder by the file browser's menu."""
    lab.driver.get(
        f"{lab.server.url}lab/workspaces/auto-test/tree/{folder}?reset&token={lab.server.token}"
    )
    item = lab.find('.jp-DirListing-item[data-isdir="false"]')
    ActionChains(lab.driver).context_click(item).perform()
    lab.find_menu("Open as a Page Without Network").click()


def test_a_page_talks_by_a_route_until_it_is_stopped(desk: LabPage, api: Fake) -> None:
    api.go.clear()
    write_talk(desk.server.folder / "talk", api)
    open_as_page(desk, "talk")
    # The server of the API waits in the middle of its answer.
    page_has(desk, "#seen", "data: 0")
    page_has(desk, "#none", "Pages have no route to https://api.other.example.")
    host = f"127.0.0.1:{api.port}"
    wait_for_text(desk, TALKS, f"This page talks to {host}: 1 request, 5 B sent, 9 B received")
    desk.screenshot("outputs-talk")
    assert serious_violations(desk, TALKS) == []
    button(desk, TALKS, "Stop").click()
    page_has(desk, "#seen", "The person has stopped the requests of this page.")
    page_has(desk, "#last", "The person has stopped the requests of this page.")
    wait_for_text(desk, TALKS, f"You stopped this page; it talked to {host}: 1 request")
    assert [seen.path for seen in api.seen] == ["/v1/events"]
    button(desk, TALKS, "Allow again").click()
    page_has(desk, "#last", "200")
    assert api.seen[-1].body == b"hello"


UNSEEN = """<script>
(async () => {
  for (let round = 0; round < 20; round++) {
    const stop = new AbortController();
    setTimeout(() => stop.abort(), round);
    await fetch("API/v1/told" + round, { signal: stop.signal }).catch(() => 0);
  }
  fetch("API/v1/last");
  setTimeout(() => { location = "about:blank"; }, 20);
})();
</script>"""
"""A page that gives up each request at once, and then itself."""


@needs_all
def test_a_page_does_not_talk_unseen(desk: LabPage, api: Fake) -> None:
    folder = desk.server.folder / "unseen"
    folder.mkdir()
    (folder / "page.html").write_text(UNSEEN.replace("API", f"http://127.0.0.1:{api.port}"))
    before = len(api.seen)
    open_as_page(desk, "unseen")
    wait_for_text(desk, ".gk-notes", "The page tried to go elsewhere")
    text = wait_for_text(desk, TALKS, f"This page talked to 127.0.0.1:{api.port}")
    assert "Stop" not in text
    said = re.search(r"(\d+) request", text)
    assert said is not None
    assert len(api.seen) - before <= int(said[1]) <= 21


@needs_all
def test_notebook_7_shows_them_by_keys_and_in_the_dark(lab: LabPage, api: Fake) -> None:
    notebook = {
        "cells": [],
        "metadata": {"kernelspec": {"name": KERNEL, "display_name": KERNEL}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    folder = lab.server.folder / "seven"
    (folder / "outputs").mkdir(parents=True)
    (folder / "outputs" / "page.html").write_text("<h1>A page</h1><script>nope()</script>")
    (folder / "seven.ipynb").write_text(json.dumps(notebook))
    lab.driver.get(f"{lab.server.url}notebooks/seven/seven.ipynb?token={lab.server.token}")
    wait_for_text(lab, STATUS, " of 4 GB")
    lab.find(STATUS).send_keys(Keys.ENTER)
    tab_to(lab, ".gk-popup button", "Outputs")
    press(lab, Keys.ENTER)
    wait_for_text(lab, PANEL, "page.html")
    tab_to(lab, f"{PANEL} button", "page.html")
    press(lab, Keys.ENTER)
    page_has(lab, "h1", "A page")
    wait_for_text(lab, f"{PANEL} .gk-notes", "page.html, line 1: nope is not defined")
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        set_theme(lab, theme)
        lab.screenshot(f"outputs-seven-{theme.split()[-1].lower()}")
        assert serious_violations(lab, PANEL) == [], theme
    # The file changes, and another one appears.
    (folder / "outputs" / "later.txt").write_text("later")
    wait_for_text(lab, PANEL, "later.txt")
    api.go.clear()
    write_talk(folder / "outputs", api)
    choose(lab, "talk.html")
    page_has(lab, "#seen", "data: 0")
    wait_for_text(lab, TALKS, f"This page talks to 127.0.0.1:{api.port}: 1 request")


@needs_all
def test_a_page_is_opened_without_a_kernel(lab: LabPage) -> None:
    folder = lab.server.folder / "old"
    folder.mkdir()
    (folder / "old.html").write_text("<h1>Old</h1>")
    kernels = len(lab.server.request("GET", "api/kernels"))
    open_as_page(lab, "old")
    page_has(lab, "h1", "Old")
    assert len(lab.server.request("GET", "api/kernels")) == kernels


THIEF = """<input id="box"><p id="keys"></p><script>
var box = document.getElementById("box");
addEventListener("keydown", event => document.getElementById("keys").textContent += event.key);
addEventListener("message", () => 0);
setInterval(TAKE, 20);
</script>"""
"""A page that takes the focus by ``TAKE``, again and again, and notes the keys that it gets."""


def type_in_cell(lab: LabPage, text: str) -> None:
    lab.find(".jp-Notebook .jp-Cell.jp-mod-active .cm-content").click()
    for letter in text:
        ActionChains(lab.driver).send_keys(letter).pause(0.05).perform()


def in_page(lab: LabPage, script: str) -> str:
    """Return the value of a script in the page."""
    lab.driver.switch_to.frame(lab.driver.find_element(By.CSS_SELECTOR, ".gk-page"))
    lab.driver.switch_to.frame(lab.driver.find_element(By.TAG_NAME, "iframe"))
    try:
        return str(lab.driver.execute_script(script))
    finally:
        lab.driver.switch_to.default_content()


def stolen(lab: LabPage) -> str:
    """Return the keys that the page got."""
    return in_page(lab, "return document.getElementById('keys').textContent")


@needs_all
def test_a_page_gets_the_keyboard_from_the_person_alone(lab: LabPage, display_name: str) -> None:
    lab.pick_kernel(display_name)
    lab.wait_for_kernel(display_name)
    run_command(lab, "Show the Outputs of This Kernel")
    lab.find(PANEL)
    page = THIEF.replace("TAKE", "() => box.focus()")
    (lab.server.folder / "outputs" / "thief.html").write_text(page)
    choose(lab, "thief.html")
    page_has(lab, "#box")
    type_in_cell(lab, "secret")
    cell = ".jp-Notebook .jp-Cell.jp-mod-active .cm-content"
    assert lab.find(cell).text == "secret"
    assert stolen(lab) == ""
    button(lab, PANEL, "Use this page").click()
    has_it = "return document.hasFocus() && document.activeElement === box"
    lab.wait_until(lambda: in_page(lab, has_it) == "True", "the page never had the focus")
    ActionChains(lab.driver).send_keys("x").perform()
    lab.wait_until(lambda: stolen(lab) == "x", "the person could not use the page")
    type_in_cell(lab, "more")
    assert stolen(lab) == "x"
    assert sorted(lab.find(cell).text) == sorted("secretmore")
    # By other ways than focus(): the page is ended.
    page = THIEF.replace("TAKE", "() => box.select()")
    (lab.server.folder / "outputs" / "other.html").write_text(page)
    choose(lab, "other.html")
    wait_for_text(lab, f"{PANEL} .gk-notes", "it takes the keyboard")
    type_in_cell(lab, "end")
    assert sorted(lab.find(cell).text) == sorted("secretmoreend")
