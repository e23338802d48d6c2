"""Libraries that are installed draw in the frames of outputs: each runs in a sandbox of its own.

A library that is not installed where the tests run is skipped. What it draws is looked for by an
element that its scripts alone make.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import nbformat
import pytest
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By

from ..sweeps import needs_all
from .conftest import IN_SANDBOXES, KERNEL
from .lab import LabPage

pytestmark = [*IN_SANDBOXES, needs_all]
OPTIONS = ("--LabApp.expose_app_in_browser=True",)

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


@pytest.mark.parametrize("name", DRAWS)
def test_a_library_draws_in_a_frame(desk: LabPage, name: str) -> None:
    package, code, css = DRAWS[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code)],
        metadata={"kernelspec": {"name": KERNEL, "display_name": KERNEL, "language": "python"}},
    )
    path = f"{name.replace(' ', '-')}.ipynb"
    nbformat.write(notebook, desk.server.folder / path)
    desk.open_path(path)
    desk.wait_until(lambda: desk.driver.execute_script(STATUS) == "idle", "no kernel is idle")
    desk.driver.execute_async_script(RUN)
    desk.wait_until(lambda: is_drawn(desk, css), f"{name} draws no {css}")
