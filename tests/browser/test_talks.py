"""Pages that talk to an API by a route: what the person sees of it, and how it is stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from ..egress.upstream import Fake, serving
from ..sweeps import needs_all
from .conftest import IN_SANDBOXES, KERNEL
from .lab import EXPOSED, LabPage
from .looking import (
    STATUS,
    button,
    press,
    serious_violations,
    set_theme,
    tab_to,
    wait_for_text,
)
from .test_outputs import PANEL, choose, open_as_page, page_has

pytestmark = IN_SANDBOXES

OPTIONS = EXPOSED
TALKS = ".gk-talk"


@pytest.fixture(scope="module", autouse=True)
def api(request: pytest.FixtureRequest) -> Iterator[Fake]:
    """A server for which the module's Jupyter server has a route for pages."""
    with serving() as fake, pytest.MonkeyPatch.context() as patch:
        url = f"http://127.0.0.1:{fake.port}"
        routes = {"api": {"url": url, "allow_private": True, "artifacts": True}}
        patch.setattr(request.module, "OPTIONS", (*EXPOSED, f"--GVisorEgress.routes={routes!r}"))
        yield fake


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
