"""REST: the scripts of libraries that outputs ask for, from the environment of this server.

An output is drawn in a frame without network. What its page would load from elsewhere is answered
from the packages that are installed here. A frame names a library of this table, and never a path.
"""

from __future__ import annotations

import hashlib
import os
import re
import site
import sysconfig
from pathlib import Path

from jupyter_core.paths import jupyter_path

from gvisor_kernel.artifacts.outputs import open_output
from gvisor_kernel.errors import OutputsError
from gvisor_kernel.host.folders import open_real
from gvisor_kernel.server.artifact_handlers import ArtifactHandler

MAX_LIBRARY = 16 * 1024 * 1024
"""Bytes of a library: plotly has 5 million."""


VIS = tuple(f"pyvis/lib/vis-{version}/vis-network" for version in ("9.1.2", "9.0.4"))
LDAVIS = tuple(f"pyLDAvis/js/ldavis{version}.js" for version in (".v3.0.0", ""))
NBEXTENSIONS = {
    **{it: it for it in ("bqplot", "bqscales", "ipycytoscape")},
    **{"jupyter-leaflet": "ipyleaflet", "jupyter-matplotlib": "ipympl", "jupyter-vue": "ipyvue"},
    **{"jupyter-threejs": "pythreejs", "jupyter-vuetify": "ipyvuetify"},
}
LIBRARIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("plotly", "plotly", ("plotly/package_data/plotly.min.js",)),
    ("itables", "itables", ("itables/html/dt_bundle.js",)),
    (r"itables\.css", "itables", ("itables/html/dt_bundle.css",)),
    ("d3-5", "pyLDAvis", ("pyLDAvis/js/d3.v5.min.js",)),
    ("ldavis", "pyLDAvis", LDAVIS),
    (r"ldavis\.css", "pyLDAvis", ("pyLDAvis/js/ldavis.v1.0.0.css",)),
    ("shap", "shap", ("shap/plots/resources/bundle.js",)),
    ("vis-network", "pyvis", tuple(f"{path}.min.js" for path in VIS)),
    (r"vis-network\.css", "pyvis", tuple(f"{path}.css" for path in VIS)),
    ("pyvis-utils", "pyvis", ("pyvis/lib/bindings/utils.js",)),
    ("tom-select", "pyvis", ("pyvis/lib/tom-select/tom-select.complete.min.js",)),
    ("panel", "panel", ("panel/dist/panel.min.js",)),
    (r"panel-theme-([a-z]+)\.css", "panel", (r"panel/dist/bundled/theme/\1.css",)),
    (r"panel-([a-z_]+)\.css", "panel", (r"panel/dist/css/\1.css",)),
    (r"bokeh(-[a-z]+)?", "bokeh", (r"bokeh/server/static/js/bokeh\1.min.js",)),
    *((f"nbextension-{it}", NBEXTENSIONS[it], (f"{it}/index.js",)) for it in NBEXTENSIONS),
)
"""Names, what pip installs them with, and where they may be below a folder of packages (or of
nbextensions), by their versions."""


def find_folders(*, nbextensions: bool) -> list[str]:
    """Return the folders of installed packages. Not Python's path, on which the folder of notebooks
    may be, where a sandbox writes."""
    if nbextensions:
        return [os.path.realpath(folder) for folder in jupyter_path("nbextensions")]
    paths = sysconfig.get_paths()
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    found = [paths["purelib"], paths["platlib"], *site.getsitepackages(), *users]
    return list(dict.fromkeys(os.path.realpath(folder) for folder in found))


def read_library(name: str, folders: list[str] | None = None, limit: int = MAX_LIBRARY) -> bytes:
    """Return a library's text. No link is followed below a folder of packages.

    :raises OutputsError: when it is unknown, not installed, or too large
    """
    known = next((it for it in LIBRARIES if re.fullmatch(it[0], name)), None)
    if known is None:
        raise OutputsError("There is no library of this name that outputs may load.")
    pattern, package, paths = known
    for folder in folders or find_folders(nbextensions=name.startswith("nbextension-")):
        for path in (re.sub(pattern, path, name) for path in paths):
            if not Path(folder, path).is_file():
                continue
            with open_real(folder) as root, open_output(root, path) as (file, status):
                if status.st_size > limit:
                    raise OutputsError(f"{name} has {status.st_size:,} bytes, which is too large.")
                return file.read(limit) or b""
    raise OutputsError(
        f"{name} is not installed where the Jupyter server runs: pip install {package}"
    )


class LibraryHandler(ArtifactHandler):
    """``GET libraries/NAME``: with a digest, so that a browser's copy is asked for once."""

    async def get(self, name: str) -> None:
        def read() -> tuple[bytes, str]:
            text = read_library(name)
            return text, hashlib.sha256(text).hexdigest()

        text, digest = await self.work(read)
        self.set_opaque()
        self.set_header("Cache-Control", "private, no-cache")
        self.set_header("Etag", f'"{digest}"')
        if self.check_etag_header():
            self.set_status(304)
            self.finish()
        else:
            self.finish(text, set_content_type="application/octet-stream")
