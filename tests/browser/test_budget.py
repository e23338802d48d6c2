"""What a notebook's outputs take of the page's main thread and memory, each at its bound's edge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from selenium.webdriver.common.by import By

from .conftest import IN_SANDBOXES, KERNEL
from .lab import LabPage
from .test_media import page_process
from .test_wall import end_kernels, open_notebook, trust

pytestmark = IN_SANDBOXES
COUNT = 30
MOST_SECONDS = 2.0
"""Of the main thread's CPU, beside what a notebook with as many small outputs takes."""
MOST_BYTES = 300 * 1024 * 1024
WAITS = ".gk-wall-line button"


def shown(value: Any, kind: str = "text/plain", **metadata: Any) -> dict[str, Any]:
    return {
        "output_type": "display_data",
        "data": {kind: value, "text/plain": "t"} if kind != "text/plain" else {kind: value},
        "metadata": metadata,
    }


def table(rows: int) -> str:
    row = "".join(f"<td>{number}</td>" for number in range(9))
    return f"<table>{f'<tr>{row}</tr>' * rows}</table>"


OUTPUTS = {
    "lines": shown("a line\n" * 30_000),
    "printed lines": {"output_type": "stream", "name": "stdout", "text": "a line\n" * 30_000},
    "more lines": shown("\n" * 900_000),
    "links": shown("http://a.b/c " * 19_000),
    "colours": shown("\x1b[31mx\x1b[0m " * 9_000),
    "paths": {"output_type": "stream", "name": "stderr", "text": "a/b/c.py " * 9_000},
    # Not at the edge: with 30,000 keys each, thirty took 4.4 s, although only one was drawn.
    "a tree": shown({f"k{n}": ["x" * 130] for n in range(3_000)}, "application/json"),
    "an open tree": shown(
        [{"k": list(range(50))}] * 2_000,
        "application/json",
        **{"application/json": {"expanded": True}, "expanded": True},
    ),
    "a table": shown(table(990), "text/html"),
    "levels": shown("<div>" * 50 + "<b>x</b>" * 900, "text/html"),
    "details": shown("<details open><summary>x</summary></details>" * 300, "text/html"),
    "many levels": shown("<details open>" * 3_000, "text/html"),
    "words": shown("**a *b " * 570, "text/markdown"),
    "lists": shown("- " * 1_990, "text/markdown"),
    "quotes": shown("> " * 1_990, "text/markdown"),
    "formulas": shown("$a$ " * 99, "text/markdown"),
    "a formula": shown("$" + "a + " * 400 + "a$", "text/latex"),
}


def main_thread_seconds(process: psutil.Process) -> float:
    found = next(it for it in process.threads() if it.id == process.pid)
    return float(found.user_time + found.system_time)


def write(desk: LabPage, name: str, outputs: list[dict[str, Any]]) -> str:
    """Write a trusted notebook with these outputs of one cell; return its path."""
    cell = {"cell_type": "code", "id": "a", "source": "", "metadata": {}, "execution_count": 1}
    notebook = {
        "cells": [{**cell, "outputs": outputs}],
        "metadata": {"kernelspec": {"name": KERNEL, "display_name": KERNEL}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path = desk.server.folder / "budget" / f"{name.replace(' ', '-')}.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(notebook))
    trust(path)
    return f"budget/{path.name}"


def open_and_wait(desk: LabPage, name: str, outputs: list[dict[str, Any]]) -> tuple[float, int]:
    """Open a file with these outputs; return seconds and bytes that it took until all was quiet."""
    path = write(desk, name, outputs)
    open_notebook(desk, "budget/small.ipynb", anew=True)
    process = page_process(desk)
    began, memory = main_thread_seconds(process), process.memory_info().rss
    open_notebook(desk, path)
    last = [0.0]

    def is_quiet() -> bool:
        before, last[0] = last[0], main_thread_seconds(process)
        return last[0] - before < 0.02

    desk.wait_until(is_quiet, "the page never came to rest")
    return last[0] - began, process.memory_info().rss - memory


@pytest.fixture(scope="module")
def usual(desk: LabPage) -> Iterator[float]:
    """Seconds that small outputs take."""
    write(desk, "small", [shown("t")] * COUNT)
    yield open_and_wait(desk, "as small", [shown("t")] * COUNT)[0]
    end_kernels(desk)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_many_outputs_take_a_moment_and_the_rest_waits(
    desk: LabPage, usual: float, kind: str
) -> None:
    seconds, grown = open_and_wait(desk, kind, [OUTPUTS[kind]] * COUNT)
    waiting = len(desk.driver.find_elements(By.CSS_SELECTOR, WAITS))
    print(f"{kind}: {seconds - usual:.2f} s, {grown >> 20} MiB, {waiting} of {COUNT} wait")
    assert seconds - usual < MOST_SECONDS
    assert grown < MOST_BYTES


def test_a_link_asks_and_what_waits_is_drawn(desk: LabPage, usual: float) -> None:
    open_and_wait(desk, "links", [OUTPUTS["links"]] * COUNT)
    tabs = len(desk.driver.window_handles)
    desk.find(".jp-OutputArea-output a").click()
    assert desk.find(".jp-Dialog .jp-Dialog-header").text == "Open a.b?"
    assert len(desk.driver.window_handles) == tabs
    desk.find(".jp-Dialog .jp-mod-reject").click()
    waiting = desk.driver.find_elements(By.CSS_SELECTOR, WAITS)
    drawn = len(desk.driver.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output pre"))
    desk.driver.execute_script("arguments[0].click()", waiting[0])
    desk.wait_until(
        lambda: (
            len(desk.driver.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output pre")) > drawn
        ),
        "it was never drawn",
    )
    assert len(desk.driver.find_elements(By.CSS_SELECTOR, WAITS)) == len(waiting) - 1
