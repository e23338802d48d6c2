"""Libraries that are installed draw in the frames of outputs: each runs in a sandbox of its own.

A library that is not installed where the tests run is skipped. What it draws is looked for by an
element that its scripts alone make.
"""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import nbformat
import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By

from ..egress.upstream import Handler, make_certificate, serving
from ..sweeps import needs_all
from .conftest import IN_SANDBOXES, KERNEL
from .lab import EXPOSED, LabPage, LabServer

pytestmark = IN_SANDBOXES

FIGURE = "import matplotlib.pyplot as plt\nplt.figure(); plt.plot([1, 2]); plt.show()"
LDA = """import numpy as np, pyLDAvis
pyLDAvis.enable_notebook(); draw = np.random.RandomState(0)
topics, parts = draw.dirichlet([1] * 30, 5), draw.dirichlet([1] * 5, 40)
words = [f'w{n}' for n in range(30)]
pyLDAvis.prepare(topics, parts, draw.randint(9, 50, 40), words, draw.randint(5, 50, 30))"""
MAP = """import folium
from folium.plugins import MarkerCluster
shown = folium.Map([1, 1], tiles=None, zoom_start=3)
MarkerCluster([[1, 1]]).add_to(shown); shown"""
FORCE = """import numpy as np, shap
shap.initjs()
shap.plots.force(0.5, np.array([0.1, 0.2]))"""
ANYWIDGET = """import anywidget
class Shown(anywidget.AnyWidget):
    _esm = "export default { render({ el }) { el.innerHTML = '<i class=made>made</i>' } }"
Shown()"""

DRAWS = {
    "plotly": ("plotly", "import plotly.express as px\npx.scatter(x=[1, 2], y=[2, 1])", ".point"),
    "plotly figure widget": (
        "plotly",
        "import plotly.graph_objects as go\ngo.FigureWidget(go.Bar(y=[1, 2]))",
        ".bars .point",
    ),
    "altair": (
        "altair",
        "import altair as alt\nalt.Chart(alt.Data(values=[{'a': 1}])).mark_bar().encode(x='a:Q')",
        "canvas.marks, svg.marks",
    ),
    "bokeh": (
        "bokeh",
        "from bokeh.plotting import figure, output_notebook, show\n"
        "output_notebook(); shown = figure(width=200, height=200); shown.line([1, 2], [2, 1])\n"
        "show(shown)",
        "canvas",
    ),
    "panel": (
        "panel",
        "import panel as pn\npn.extension()\npn.widgets.Select(options=[1])",
        "option",
    ),
    "holoviews": (
        "holoviews",
        "import holoviews as hv\nhv.extension('bokeh')\nhv.Curve([1, 3, 2])",
        "canvas",
    ),
    "folium": ("folium", MAP, ".leaflet-marker-icon"),
    "pyvis": (
        "pyvis",
        "from IPython.display import HTML\nfrom pyvis.network import Network\n"
        "net = Network(notebook=True, cdn_resources='in_line'); net.add_nodes([1, 2])\n"
        "HTML(net.generate_html())",
        ".vis-network canvas",
    ),
    "ipympl": ("ipympl", f"%matplotlib widget\n{FIGURE}", ".jupyter-matplotlib canvas"),
    "ipyleaflet": ("ipyleaflet", "import ipyleaflet\nipyleaflet.Map()", ".leaflet-container"),
    "bqplot": (
        "bqplot",
        "import bqplot.pyplot as plt\nplt.figure(); plt.plot([1, 2], [2, 1]); plt.show()",
        ".bqplot svg",
    ),
    "k3d": (
        "k3d",
        "import k3d\nshown = k3d.plot(); shown += k3d.points([[0, 0, 0], [1, 1, 1]])\nshown",
        "canvas",
    ),
    "anywidget": ("anywidget", ANYWIDGET, ".made"),
    "tqdm": ("tqdm", "from tqdm.notebook import tqdm\nlist(tqdm([1]))", ".widget-hprogress"),
    "rich": ("rich", "from rich.jupyter import print\nprint('[bold]word')", "pre span"),
    "great_tables": (
        "great_tables",
        "import great_tables, pandas\ngreat_tables.GT(pandas.DataFrame({'a': [1]}))",
        "table.gt_table",
    ),
    "itables": (
        "itables",
        "import itables, pandas\nitables.init_notebook_mode()\n"
        "itables.show(pandas.DataFrame({'a': range(30)}))",
        ".dt-paging-button",
    ),
    "shap": ("shap", FORCE, "svg text"),
    "pyLDAvis": ("pyLDAvis", LDA, "svg circle.dot"),
    "styled tables of pandas": (
        "jinja2",
        "import pandas\npandas.DataFrame({'a': [1]}).style.bar()",
        "td.data",
    ),
    "drawings of matplotlib": (
        "matplotlib",
        f"%config InlineBackend.figure_formats = ['svg']\n%matplotlib inline\n{FIGURE}",
        "svg path",
    ),
}
FIND = """
const all = root => [...root.querySelectorAll('*')].flatMap(
  node => [node, ...(node.shadowRoot ? all(node.shadowRoot) : [])]);
return all(document).some(node => node.matches(arguments[0]));
"""
RUN = """
const done = arguments[0];
window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => done(), () => done());
"""
RUN_LAST = """
const {commands, shell} = window.jupyterapp, book = shell.currentWidget.content;
book.activeCellIndex = book.widgets.length - 1;
return commands.execute('notebook:run-cell');
"""
SAVE = RUN.replace("notebook:run-all-cells", "docmanager:save")
TILE = (  # a picture of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
STATUS = "return window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"


def is_drawn(page: LabPage, css: str) -> bool:
    """Whether a frame of an output has the element."""
    driver: Any = page.driver
    for frame in driver.find_elements(By.CSS_SELECTOR, ".jp-OutputArea .gk-page"):
        try:
            driver.switch_to.frame(frame)
            driver.switch_to.frame(driver.find_element(By.TAG_NAME, "iframe"))
            if driver.execute_script(FIND, css):
                return True
        except (NoSuchElementException, StaleElementReferenceException):
            pass  # it is still being loaded
        finally:
            driver.switch_to.default_content()
    return False


def open_notebook(page: LabPage, name: str, *cells: Any) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=cells,
        metadata={"kernelspec": {"name": KERNEL, "display_name": KERNEL, "language": "python"}},
    )
    nbformat.write(notebook, page.server.folder / f"{name}.ipynb")
    page.open_path(f"{name}.ipynb")
    page.wait_until(lambda: page.driver.execute_script(STATUS) == "idle", "no kernel is idle")


def run_notebook(page: LabPage, name: str, code: str) -> None:
    open_notebook(page, name, nbformat.v4.new_code_cell(code))
    page.driver.execute_async_script(RUN)


@needs_all
@pytest.mark.parametrize("name", DRAWS)
def test_a_library_draws_in_a_frame(desk: LabPage, name: str) -> None:
    package, code, css = DRAWS[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    run_notebook(desk, name.replace(" ", "-"), code)
    desk.wait_until(lambda: is_drawn(desk, css), f"{name} draws no {css}")


class Tiles(Handler):
    """A server of tiles, which notes what it is asked for."""

    asked: ClassVar[list[str]] = []

    def at_tile(self, query: dict[str, str]) -> None:
        Tiles.asked.append(query["at"])
        self._answer(base64.b64decode(TILE) if query["at"] != "missing" else b"none")


@pytest.fixture(name="maps")
def fixture_maps(
    driver: webdriver.Chrome, tmp_path: Path, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[LabPage, str]]:
    """A page whose kernels have a route to a server of tiles, and the address of the tiles."""
    ca, both = make_certificate(tmp_path)
    Tiles.asked.clear()
    with serving(both, Tiles) as upstream:
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        here = f"127.0.0.1:{upstream.port}"
        routes = {"tiles": {"hosts": [here], "allow_private": True}}
        options = (f"--GVisorEgress.routes={routes!r}", "--GVisorProvisioner.egress=['tiles']")
        server = LabServer(tmp_path / "lab", artifacts / "tiles.log", "/", (*EXPOSED, *options))
        server.start()
        try:
            yield LabPage(driver, server, artifacts), f"https://{here}/tile?at="
        finally:
            server.stop()


@needs_all
def test_tiles_of_a_map_come_by_a_route_of_the_kernel_that_sent_it(
    maps: tuple[LabPage, str],
) -> None:
    pytest.importorskip("folium")
    page, tile = maps
    url = f"{tile}{{z}}-{{x}}-{{y}}"
    run_notebook(page, "map", f"import folium\nfolium.Map(tiles='{url}', attr='x')")
    loaded = ".leaflet-tile-loaded[src^='blob:']"
    page.wait_until(lambda: is_drawn(page, loaded), "no tile is drawn")
    page.driver.execute_async_script(SAVE)
    # Of a file nothing is asked for, while the same kernel is there.
    page.open_path("map.ipynb")
    page.wait_until(lambda: is_drawn(page, ".leaflet-container"), "no map is drawn")
    asked = len(Tiles.asked)
    page.find(".gk-notes li")
    assert len(Tiles.asked) == asked > 0


PICTURES = """
const show = at => new Promise(end => {
  const picture = document.body.appendChild(new Image());
  picture.onload = picture.onerror = event => { picture.className = event.type; end(); };
  picture.src = %r + at;
});
"""


@needs_all
def test_one_tile_that_is_missing_is_no_reason_to_ask_for_no_other(
    maps: tuple[LabPage, str],
) -> None:
    page, tile = maps
    shown = f"{PICTURES % tile} show('missing').then(() => show('there'))"
    run_notebook(page, "missing", f"from IPython.display import HTML\nHTML({script(shown)!r})")
    page.wait_until(lambda: is_drawn(page, "img.load"), "the second picture is not drawn")


def test_a_script_that_a_file_has_kept_asks_by_no_kernels_route(maps: tuple[LabPage, str]) -> None:
    """It prepares the page of an output that the kernel has sent."""
    page, tile = maps
    kept = nbformat.v4.new_output(
        "display_data", {"text/html": script(f"{PICTURES % tile} var theirs = show('stolen')")}
    )
    own = script("theirs.then(() => 0)") + "<b id=own>own</b>"
    open_notebook(
        page,
        "kept",
        nbformat.v4.new_code_cell("1", outputs=[kept]),
        nbformat.v4.new_code_cell(f"from IPython.display import HTML\nHTML({own!r})"),
    )
    page.driver.execute_script(RUN_LAST)
    page.wait_until(lambda: is_drawn(page, "#own"), "the output is not drawn")
    page.wait_until(lambda: is_drawn(page, "img.error"), "the script has not tried it")
    assert Tiles.asked == []


def script(text: str) -> str:
    return f"<script>{text}</script>"
