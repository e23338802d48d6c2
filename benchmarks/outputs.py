"""How a notebook of many outputs opens in JupyterLab with frames, against without this extension.

``python -m benchmarks.outputs``: for each round and each notebook, a browser for either server, one
after the other. Needs Chromium, its driver and selenium; of plotly the package, for the server
without the extension its own, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nbformat
import psutil
from jupyter_core.paths import jupyter_path

from benchmarks.processes import cpu_seconds, memory
from tests.browser.lab import LabServer, browser

OWN = "gvisor-kernel"
SIDES = ("without", "frames")
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
FIGURES = ("open s", "its CPU s", "its MiB", "scroll s", "its CPU s", "its MiB")

DRAWN = """
const done = arguments[arguments.length - 1];
const begin = performance.now();
const isDrawn = it => it.querySelector('.main-svg, table, svg, img, canvas') !== null ||
  it.querySelector('.gk-framed-content:not(.gk-waiting)') !== null;
const isSeen = it => {
  const { top, bottom } = it.getBoundingClientRect();
  return bottom > 150 && top < innerHeight - 50;
};
const look = () => {
  const cells = [...document.querySelectorAll('.jp-Cell')].filter(isSeen);
  const outputs = cells.flatMap(it => [...it.querySelectorAll('.jp-OutputArea-output')]);
  const seen = outputs.filter(isSeen);
  const late = performance.now() - begin > 110000;
  const { scrollTop = 0 } = document.querySelector('.jp-Notebook .jp-WindowedPanel-outer') ?? {};
  const isFound = seen.length > 0 || scrollTop > 0; // below the last cell there is nothing
  if (late || (isFound && seen.every(isDrawn))) done(late ? -1 : performance.now());
  else setTimeout(look, 50);
};
look();
"""
"""Waits until the outputs that are in sight are drawn; returns when that was. It looks seldom, and
only into cells that are in sight: the browser lays out the others when they are looked into, which
took a third of all CPU time."""

SCROLL = """
const outer = document.querySelector('.jp-Notebook .jp-WindowedPanel-outer');
outer.scrollTop += outer.clientHeight;
// Not by heights: the outer element is not as high yet as its cells will be.
const last = [...document.querySelectorAll('.jp-Cell .cm-content')].find(
  it => it.textContent === arguments[0]);
return !last || last.getBoundingClientRect().top > innerHeight;
"""

NOTCH = 120
"""Pixels by which a notch of a wheel scrolls."""


def make_plot(number: int) -> dict[str, Any]:
    values = [(it * 7919 + number * 104729) % 1000 for it in range(500)]
    data = [{"type": "scatter", "mode": "markers", "x": list(range(500)), "y": values}]
    figure = {"data": data, "layout": {"title": {"text": f"plot {number}"}}}
    return {"application/vnd.plotly.v1+json": figure}


def make_table(number: int) -> dict[str, Any]:
    import pandas

    rows = [[number + row * column for column in range(8)] for row in range(20)]
    styled = pandas.DataFrame(rows).style.background_gradient()
    return {"text/html": styled.to_html(), "text/plain": "<Styler>"}


def make_html(number: int) -> dict[str, Any]:
    rows = "".join(f"<tr><td>{number}</td><td>{row}</td></tr>" for row in range(20))
    return {"text/html": f"<table>{rows}</table>", "text/plain": "a table"}


def make_chart(number: int) -> dict[str, Any]:
    axes = {axis: {"field": axis, "type": "quantitative"} for axis in ("a", "b")}
    values = [{"a": it, "b": (it * 7919 + number * 104729) % 1000} for it in range(100)]
    spec = {"data": {"values": values}, "mark": "point", "encoding": axes}
    return {"application/vnd.vegalite.v5+json": spec, "text/plain": "alt.Chart(...)"}


def make_drawing(number: int) -> dict[str, Any]:
    circles = "".join(f"<circle cx='{it * 9}' cy='{it * number % 200}' r='4'/>" for it in range(40))
    size = "width='400' height='200'"
    return {"image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg' {size}>{circles}</svg>"}


def make_script(number: int) -> dict[str, Any]:
    fill = f"document.getElementById('n{number}').textContent = 'drawn {number}'"
    table = f"<table><tr><td id='n{number}' style='height: 200px'></td></tr></table>"
    return {"text/html": f"{table}<script>{fill}</script>"}


def make_mix(number: int) -> dict[str, Any]:
    makers = (make_plot, make_chart, make_html, make_drawing, make_script)
    return makers[number % len(makers)](number)


NOTEBOOKS = {"plots": make_plot, "mix": make_mix, "styled": make_table, "plain": make_html}


def write(folder: Path, name: str, count: int) -> None:
    cells = [
        nbformat.v4.new_code_cell(
            f"draw({it})",
            execution_count=it + 1,
            outputs=[nbformat.v4.new_output("display_data", NOTEBOOKS[name](it))],
        )
        for it in range(count)
    ]
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), path)
    subprocess.run([sys.executable, "-m", "jupyter", "trust", str(path)], check=True)


def labextensions() -> list[Path]:
    folders = [Path(it) for it in jupyter_path("labextensions")]
    return [it for folder in folders if folder.is_dir() for it in folder.iterdir()]


@contextmanager
def servers(base: Path, count: int, names: list[str]) -> Iterator[dict[str, LabServer]]:
    with ExitStack() as stack:
        started = {}
        for side in SIDES:
            others = [it for it in labextensions() if side == "frames" or it.name != OWN]
            folder = base / side / "labextensions"
            folder.mkdir(parents=True)
            for it in others:
                shutil.copytree(it, folder / it.name)
            option = f"--LabApp.labextensions_path={folder}"
            server = LabServer(base / side, base / f"{side}.log", options=[option])
            server.start()
            stack.callback(server.stop)
            for name in names:
                write(server.folder, name, count)
            started[side] = server
        yield started


def turn_wheel(page: Any, pixels: int) -> None:
    where = {"type": "mouseWheel", "x": 800, "y": 500, "deltaX": 0}
    for _ in range(0, pixels, NOTCH):
        page.execute_cdp_cmd("Input.dispatchMouseEvent", where | {"deltaY": NOTCH})


def measure(
    server: LabServer, name: str, profile: Path, count: int, pages: int, *, wheel: bool
) -> list[float]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium is not None
    assert driver is not None
    with browser(chromium, driver, profile) as page:
        tree = psutil.Process(page.service.process.pid)

        def cpu() -> float:
            return cpu_seconds(tree.children(recursive=True))

        def pss() -> float:
            return memory(tree.children(recursive=True)).processes / 1024**2

        page.set_script_timeout(300)
        page.get(f"{server.url}lab/workspaces/first/tree?reset&token={server.token}")
        page.execute_async_script(
            "const done = arguments[0]; const look = () => document.querySelector('.jp-DirListing')"
            " ? setTimeout(done, 1000) : setTimeout(look, 50); look();"
        )
        before = cpu()
        page.get(f"{server.url}lab/workspaces/bench/tree/{name}.ipynb?reset")
        opened = page.execute_async_script(DRAWN) / 1000
        opened_cpu, opened_pss = cpu() - before, pss()
        scrolled = 0.001
        begin = page.execute_script("return performance.now()") / 1000
        script = SCROLL.replace("outer.scrollTop += outer.clientHeight;", "") if wheel else SCROLL
        while pages > 0 and page.execute_script(script, f"draw({count - 1})"):
            pages -= 1
            if wheel:
                turn_wheel(page, 960)
            scrolled = page.execute_async_script(DRAWN) / 1000 - begin
        if min(opened, scrolled) < 0:
            raise RuntimeError(f"{name}: its outputs were never drawn")
        return [opened, opened_cpu, opened_pss, scrolled, cpu() - before - opened_cpu, pss()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outputs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=200, help="outputs of each notebook")
    parser.add_argument("--pages", type=int, default=1000, help="the most that are scrolled")
    parser.add_argument("--wheel", action="store_true", help="scroll by notches, not by pages")
    parser.add_argument("--notebooks", default=",".join(NOTEBOOKS))
    arguments = parser.parse_args()
    names = arguments.notebooks.split(",")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for variable in ("DATA", "RUNTIME"):
            os.environ[f"JUPYTER_{variable}_DIR"] = str(base / variable)
            (base / variable).mkdir(mode=0o700)
        found: dict[tuple[str, str], list[list[float]]] = {}
        with servers(base, arguments.count, names) as started:
            for turn in range(arguments.rounds):
                for name in names:
                    for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                        profile = base / f"{turn}-{name}-{side}"
                        amounts = (arguments.count, arguments.pages)
                        sample = measure(
                            started[side], name, profile, *amounts, wheel=arguments.wheel
                        )
                        found.setdefault((name, side), []).append(sample)
                        print(turn, name, side, *(f"{it:.1f}" for it in sample), flush=True)
    print(f"{'':10}", *(f"{it:>22}" for it in FIGURES))
    for name in names:
        pairs = list(zip(found[name, "without"], found[name, "frames"], strict=True))
        row = []
        for column in range(len(FIGURES)):
            sides = [statistics.median(pair[side][column] for pair in pairs) for side in (0, 1)]
            ratio = statistics.median(pair[1][column] / pair[0][column] for pair in pairs)
            row.append(f"{sides[0]:.1f} > {sides[1]:.1f} = {ratio:.2f}")
        print(f"{name:10}", *(f"{it:>22}" for it in row))


if __name__ == "__main__":
    main()
