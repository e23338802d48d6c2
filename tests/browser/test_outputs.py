"""Outputs of a kernel in JupyterLab: listed as they appear, shown in frames that reach nothing."""

from __future__ import annotations

import base64
from pathlib import Path

from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ..sweeps import needs_all
from .conftest import IN_SANDBOXES, KERNEL
from .lab import LabPage
from .looking import serious_violations, wait_for_text
from .test_files import write_notebook

pytestmark = IN_SANDBOXES

PANEL = ".gk-outputs"
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAD0lEQVR42mNoQAUMQxkFAOqEQAGUs3RYAAAAAElFTkSuQmCC"
)
MARKUP = "<img src=x onerror=document.title='attacked'>.txt"
WRITE = """
import os
os.chdir("outputs")
open("plot.png", "wb").write(PNG)
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
  setInterval(() => { location.hash = location.hash === "#field" ? "" : "#field"; }, 50);
});
</script>"""
"""It takes the focus from the question that its link asks."""


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


def open_as_page(lab: LabPage, folder: str) -> None:
    """Open the only file of a folder by the file browser's menu."""
    lab.driver.get(
        f"{lab.server.url}lab/workspaces/auto-test/tree/{folder}?reset&token={lab.server.token}"
    )
    item = lab.find('.jp-DirListing-item[data-isdir="false"]')
    ActionChains(lab.driver).context_click(item).perform()
    lab.find_menu("Open as a Page Without Network").click()


def test_outputs_are_shown(desk: LabPage, display_name: str) -> None:
    lab = desk
    write_notebook(lab.server.folder / "shown" / "run.ipynb", KERNEL)
    lab.open_path("shown/run.ipynb")
    lab.wait_for_kernel(display_name)
    run_command(lab, "Show the Outputs of This Kernel")
    wait_for_text(lab, PANEL, "There are no files.")
    source = WRITE
    lab.find(".jp-Notebook .jp-Cell.jp-mod-active .cm-content").click()
    for name, value in (("NAME", MARKUP), ("PNG", PICTURE)):
        source = source.replace(name, repr(value))
    lab.run(source)
    choose(lab, MARKUP)
    wait_for_text(lab, f"{PANEL} pre", "text of markup")
    choose(lab, "data.json")
    wait_for_text(lab, f"{PANEL} pre", '"a": [')
    folder = lab.server.folder / "shown" / "outputs"
    (folder / "none.png").write_bytes(b"no picture")
    choose(lab, "none.png")
    wait_for_text(lab, f"{PANEL} .gk-notes", "This file cannot be drawn by this browser")
    assert serious_violations(lab, PANEL) == []

    # Drawings, tables, films and PDF: test_media.py, test_frame.py and test_doors.py.
    shown = {
        "report.md": ("h1", "Report"),
        "graph.mermaid": ("svg text, svg tspan", "Start"),
        "plot.png": ('img[alt="plot.png"]', ""),
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
    check_links(lab, folder)


def click_link(lab: LabPage) -> None:
    """Click a page's link, at its top: one click enters the page and goes on to the link."""
    layer = lab.find(f"{PANEL} .gk-page-layer")
    left, top = (-layer.size[side] // 2 for side in ("width", "height"))
    ActionChains(lab.driver).move_to_element_with_offset(
        layer, left + 20, top + 15
    ).click().perform()
    assert lab.dialog().startswith("Open links.example?")


def check_links(lab: LabPage, folder: Path) -> None:
    """A page that clicks its own links; then one that the person clicks."""
    (folder / "links.html").write_text(LINKS)
    choose(lab, "links.html")
    page_has(lab, "#count", "10")
    assert lab.driver.find_elements(By.CSS_SELECTOR, ".jp-Dialog") == []
    click_link(lab)
    wait_for_text(lab, ".jp-Dialog :focus", "Cancel")
    # Keys that the person types elsewhere, or hits by chance, open nothing.
    ActionChains(lab.driver).send_keys(Keys.ENTER).perform()
    gone = "return document.querySelector('.jp-Dialog') === null"
    lab.wait_until(lambda: lab.driver.execute_script(gone), "the question never ended")
    assert len(lab.driver.window_handles) == 1
    choose(lab, "notes.html")
    (folder / "takes.html").write_text(TAKES)
    choose(lab, "takes.html")
    page_has(lab, "#link")
    click_link(lab)
    wait_for_text(lab, f"{PANEL} .gk-preview", "it took the keyboard")
    wait_for_text(lab, ".jp-Dialog :focus", "Cancel")
    ActionChains(lab.driver).send_keys(Keys.ENTER).perform()
    lab.wait_until(lambda: lab.driver.execute_script(gone), "the question got no key")
    assert len(lab.driver.window_handles) == 1


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


def enter_page(lab: LabPage) -> None:
    lab.find(f"{PANEL} .gk-page-layer").click()


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
    enter_page(lab)
    has_it = "return document.hasFocus() && document.activeElement === box"
    lab.wait_until(lambda: in_page(lab, has_it) == "True", "the page never had the focus")
    ActionChains(lab.driver).send_keys("x").perform()
    lab.wait_until(lambda: stolen(lab) == "x", "the person could not use the page")
    type_in_cell(lab, "more")
    assert stolen(lab) == "x"
    assert sorted(lab.find(cell).text) == sorted("secretmore")
    # By a way that its realm has not: the page is ended at once.
    page = THIEF.replace(
        "TAKE", "() => { location.hash = location.hash === '#box' ? '' : '#box'; }"
    )
    (lab.server.folder / "outputs" / "other.html").write_text(page)
    choose(lab, "other.html")
    wait_for_text(lab, f"{PANEL} .gk-notes", "it took the keyboard")
    assert lab.driver.find_elements(By.CSS_SELECTOR, ".gk-page") == []
    type_in_cell(lab, "end")
    assert sorted(lab.find(cell).text) == sorted("secretmoreend")
