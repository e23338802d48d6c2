"""What a kernel prints cannot act as the person: outputs behind the wall, in each kind of page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..sweeps import needs_all
from .conftest import IN_SANDBOXES, KERNEL
from .lab import LabPage
from .looking import EXPOSED, sent_requests, wait_for_text
from .wall_attacks import ATTACKS, BEACON, HARMLESS, PREPARE

pytestmark = IN_SANDBOXES
OPTIONS = EXPOSED
WITHOUT = "python3"
LINE = ".gk-wall-line"
OUTPUT = ".jp-OutputArea-output"

LOOK = """
const outputs = [...document.querySelectorAll('.jp-OutputArea-output')];
const bad = outputs.flatMap(it => [...it.querySelectorAll(
  'script,style,iframe:not(.gk-frame),object,embed,link,meta,base,form,button,input,video,audio,'
  + 'template,[onerror],[onload],[onclick],[data-commandlinker-command],[id],[name]')]
  .filter(node => !node.closest('.MathJax,mjx-container,.jp-RenderedJSON,.gk-shown-output'))
  .map(node => node.outerHTML.slice(0, 120)));
const covers = outputs.flatMap(it => [...it.querySelectorAll('[style]')]).filter(
  node => ['fixed', 'absolute', 'sticky'].includes(getComputedStyle(node).position)
    && !node.closest('mjx-assistive-mml')).map(node => node.outerHTML.slice(0, 120));
const links = outputs.flatMap(it => [...it.querySelectorAll('a[href]')])
  .filter(a => !a.closest('.jp-RenderedText'))  // paths of tracebacks, see click_all
  .filter(a => !/^https?:$/.test(a.protocol) || a.host === location.host)
  .map(a => a.outerHTML.slice(0, 120));
return {attacked: window.attacked ?? null, title: document.title, bad, covers, links,
  app: typeof window.jupyterapp?.commands, hidden: !!document.querySelector('.jp-Notebook')
    && getComputedStyle(document.querySelector('.jp-Notebook')).display === 'none'};
"""


def write_notebook(path: Path, kernel: str, cells: dict[str, str]) -> None:
    """Write a notebook with a cell for each source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
    document = {
        "cells": [
            {
                "cell_type": "code",
                "id": name,
                "source": source,
                "metadata": {"tags": ["raises-exception"]},
                "outputs": [],
                "execution_count": None,
            }
            for name, source in cells.items()
        ],
        "metadata": {} if kernel == "" else metadata,
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(document))


def open_notebook(desk: LabPage, name: str, page: str = "lab/workspaces/auto-test/tree") -> None:
    desk.driver.get("about:blank")  # an address that differs in its query alone does not load
    desk.driver.get(f"{desk.server.url}{page}/{name}?reset&token={desk.server.token}")
    desk.find(".jp-Notebook .jp-Cell")
    # Without windowing each output is in the document, also those far below.
    desk.wait_until(
        lambda: desk.driver.execute_script("return !!window.jupyterapp?.shell.currentWidget?.content"),
        "the page never showed its notebook",
    )
    desk.driver.execute_script(
        "const it = jupyterapp.shell.currentWidget.content;"
        "it.notebookConfig = {...it.notebookConfig, windowingMode: 'none'};"
    )


def run_all(desk: LabPage, count: int) -> None:
    """Run all cells, and wait until each has a number."""
    desk.wait_until(
        lambda: desk.driver.execute_script(
            "const k = jupyterapp.shell.currentWidget.sessionContext.session?.kernel;"
            "return k && k.status === 'idle'"
        ),
        "the kernel never became idle",
    )
    desk.driver.execute_script("void jupyterapp.commands.execute('notebook:run-all-cells')")
    wait_for_cells(desk, count)


def wait_for_cells(desk: LabPage, count: int) -> None:
    desk.wait_until(
        lambda: desk.driver.execute_script(
            "return [...jupyterapp.shell.currentWidget.content.widgets]"
            ".filter(it => it.model.executionCount !== null).length >= arguments[0]"
            " && jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'",
            count,
        ),
        f"not all of {count} cells were run",
    )


def click_all(desk: LabPage) -> None:
    """Click, as a person would, on whatever a kernel has put there."""
    desk.driver.execute_script(
        """
        for (const node of document.querySelectorAll(
            '.jp-OutputArea-output :is(a, button, summary, input)')) {
          if (node.closest('.jp-RenderedJSON')) continue;
          if (node.protocol !== undefined && /^https?:$/.test(node.protocol)) continue;
          const click = new MouseEvent('click', {bubbles: true, cancelable: true, ctrlKey: true});
          if (node.dispatchEvent(click) && node.protocol === 'javascript:')
            (window.attacked ??= []).push('a link');
          node.click();
        }
        """
    )


def check(desk: LabPage, title: str) -> None:
    """Check that nothing of the kernel's acted in the page, or left it."""
    click_all(desk)
    # What was asked for before this answer has been asked for.
    desk.driver.execute_script(
        "window.answered = 0; fetch(jupyterapp.serviceManager.serverSettings.baseUrl + 'api')"
        ".then(it => { window.answered = it.status; })"
    )
    desk.wait_until(
        lambda: desk.driver.execute_script("return window.answered === 200"),
        "the server never answered",
    )
    seen: dict[str, Any] = desk.driver.execute_script(LOOK)
    beacons = [it["url"] for it in sent_requests(desk) if BEACON in it["url"]]
    assert seen["attacked"] is None
    assert "attacked" not in seen["title"], title
    assert seen["bad"] == []
    assert seen["covers"] == []
    assert seen["links"] == []
    assert seen["app"] == "object"
    assert not seen["hidden"]
    assert beacons == []
    assert desk.server.request("GET", "api/terminals") == []
    assert desk.driver.execute_script("return document.cookie").count("attacked") == 0


def end_kernels(desk: LabPage) -> None:
    for session in desk.server.request("GET", "api/sessions"):
        desk.server.request("DELETE", f"api/sessions/{session['id']}")


@pytest.fixture(scope="module")
def attacked(desk: LabPage) -> Iterator[LabPage]:
    """A page with a notebook whose cells have tried everything, saved and trusted."""
    cells = {"prepare": PREPARE, **ATTACKS}
    write_notebook(desk.server.folder / "wall" / "attacks.ipynb", KERNEL, cells)
    open_notebook(desk, "wall/attacks.ipynb")
    run_all(desk, len(cells))
    yield desk
    end_kernels(desk)


def test_a_kernel_prints_and_nothing_acts(attacked: LabPage) -> None:
    check(attacked, "as they were printed")
    attacked.screenshot("wall-attacks")
    text = wait_for_text(attacked, LINE, "comes from a sandbox")
    assert "<" not in text
