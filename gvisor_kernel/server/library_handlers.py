"""REST: the scripts of libraries that outputs ask for, from the environment of this server.

An output is drawn in a frame without network. What its page would load from elsewhere is answered
from the packages that are installed here. A frame names a library of this table, and never a path.
"""

from __future__ import annotations

import hashlib
import os
import site
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from jupyter_core.paths import jupyter_path
from jupyter_server.auth.decorator import authorized
from tornado import web

from gvisor_kernel.artifacts.outputs import open_output
from gvisor_kernel.errors import OutputsError
from gvisor_kernel.host.folders import open_real
from gvisor_kernel.server.artifact_handlers import ArtifactHandler

MAX_LIBRARY = 16 * 1024 * 1024
"""Bytes of a library: plotly has 5 million."""


@dataclass(frozen=True)
class Library:
    """``package``: what pip installs it with. ``paths``: where it may be below a folder of packages
    (or of nbextensions), by its versions."""

    package: str
    paths: tuple[str, ...]
    is_nbextension: bool = False


def _make_table() -> dict[str, Library]:
    bokeh = ("", "-api", "-gl", "-mathjax", "-tables", "-widgets")
    panel = (
        *("alerts", "booleanstatus", "button", "chat_copy_icon", "chat_feed"),
        *("chat_interface", "chat_message", "chat_step", "chat_steps", "dataframe"),
        *("debugger", "divider", "editable_slider", "floatpanel", "gridbox", "gridspec"),
        *("gridstack", "icon", "json", "katex", "layout", "listpanel", "loading"),
        *("loadingspinner", "markdown", "multichoice", "player", "progress"),
        *("regular_table", "select", "swipe", "widgetbox", "widgets"),
    )
    themes = ("bootstrap", "dark", "default", "fast", "material", "native")
    vis = ("pyvis/lib/vis-9.1.2/vis-network", "pyvis/lib/vis-9.0.4/vis-network")
    nbextensions = {
        **{"bqplot": "bqplot", "bqscales": "bqscales", "ipyvolume": "ipyvolume"},
        **{"jupyter-leaflet": "ipyleaflet"},
        **{"jupyter-matplotlib": "ipympl", "jupyter-threejs": "pythreejs", "k3d": "k3d"},
        **{"jupyter-vue": "ipyvue", "jupyter-vuetify": "ipyvuetify", "anywidget": "anywidget"},
        **{"jupyterlab-plotly": "plotly", "plotlywidget": "plotly", "ipycytoscape": "ipycytoscape"},
    }
    return {
        "plotly": Library("plotly", ("plotly/package_data/plotly.min.js",)),
        "itables": Library("itables", ("itables/html/dt_bundle.js",)),
        "itables.css": Library("itables", ("itables/html/dt_bundle.css",)),
        "d3-5": Library("pyLDAvis", ("pyLDAvis/js/d3.v5.min.js",)),
        "ldavis": Library("pyLDAvis", ("pyLDAvis/js/ldavis.v3.0.0.js", "pyLDAvis/js/ldavis.js")),
        "ldavis.css": Library("pyLDAvis", ("pyLDAvis/js/ldavis.v1.0.0.css",)),
        "shap": Library("shap", ("shap/plots/resources/bundle.js",)),
        "vis-network": Library("pyvis", tuple(f"{path}.min.js" for path in vis)),
        "vis-network.css": Library("pyvis", tuple(f"{path}.css" for path in vis)),
        "pyvis-utils": Library("pyvis", ("pyvis/lib/bindings/utils.js",)),
        "tom-select": Library("pyvis", ("pyvis/lib/tom-select/tom-select.complete.min.js",)),
        "panel": Library("panel", ("panel/dist/panel.min.js",)),
        **{
            f"bokeh{part}": Library("bokeh", (f"bokeh/server/static/js/bokeh{part}.min.js",))
            for part in bokeh
        },
        **{f"panel-{it}.css": Library("panel", (f"panel/dist/css/{it}.css",)) for it in panel},
        **{
            f"panel-theme-{it}.css": Library("panel", (f"panel/dist/bundled/theme/{it}.css",))
            for it in themes
        },
        **{
            f"nbextension-{name}": Library(package, (f"{name}/index.js",), is_nbextension=True)
            for name, package in nbextensions.items()
        },
    }


LIBRARIES = _make_table()


def find_folders(*, nbextensions: bool) -> list[str]:
    """Return the folders of installed packages. Not Python's path, on which the folder of notebooks
    may be, where a sandbox writes."""
    if nbextensions:
        return [os.path.realpath(folder) for folder in jupyter_path("nbextensions")]
    paths = sysconfig.get_paths()
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    found = [paths["purelib"], paths["platlib"], *site.getsitepackages(), *users]
    return list(dict.fromkeys(os.path.realpath(folder) for folder in found))


def read_library(name: str, folders: list[str]) -> bytes:
    """Return a library's text. No link is followed below a folder of packages.

    :raises OutputsError: when it is unknown, not installed, or too large
    """
    library = LIBRARIES.get(name)
    if library is None:
        raise OutputsError("There is no library of this name that outputs may load.")
    for folder in folders:
        for path in library.paths:
            if not Path(folder, path).is_file():
                continue
            with open_real(folder) as root, open_output(root, path) as (file, status):
                if status.st_size > MAX_LIBRARY:
                    raise OutputsError(f"{name} has {status.st_size:,} bytes, which is too large.")
                return file.read(MAX_LIBRARY) or b""
    raise OutputsError(
        f"{name} is not installed where the Jupyter server runs: pip install {library.package}"
    )


class LibraryHandler(ArtifactHandler):
    """``GET libraries/NAME``: with a digest, so that a browser's copy is asked for once."""

    @web.authenticated
    @authorized
    async def get(self, name: str) -> None:
        def read() -> tuple[bytes, str]:
            known = LIBRARIES.get(name)
            folders = find_folders(nbextensions=known is not None and known.is_nbextension)
            text = read_library(name, folders)
            return text, hashlib.sha256(text).hexdigest()

        text, digest = await self.work(read)
        self.set_header("Cache-Control", "private, no-cache")
        self.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Etag", f'"{digest}"')
        if self.check_etag_header():
            self.set_status(304)
            self.finish()
        else:
            self.finish(text, set_content_type="application/octet-stream")
