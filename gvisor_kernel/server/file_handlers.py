"""Files of Jupyter's own addresses ``/files`` and ``/nbconvert``, which a sandbox may have made.

Jupyter gives them an origin of their own, where scripts run and reach every host. A file that a
sandbox may have written, and any notebook that is drawn as a page, is shown here without scripts
and without network. What is downloaded, and all else, is Jupyter's. Nothing here reads a file.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized
from jupyter_server.nbconvert.handlers import NbconvertFileHandler
from tornado import web

from gvisor_kernel.bridge.doors import clean_language
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import StateError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.runtimes.mounts.written_folders import read_written

Route = tuple[str, type[web.RequestHandler], dict[str, Any]]
POLICY = (
    "sandbox; default-src 'none'; img-src data:; media-src data:; font-src data:;"
    " style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""No script, so no door that a script would find; and nothing is loaded from anywhere."""


def close_page(handler: Any) -> None:
    """Take scripts and network from the page with which ``handler`` answers."""
    handler.set_header("Content-Security-Policy", POLICY)
    handler.set_header("Connection-Allowlist", "()")  # names of hosts that a link has looked up
    handler.set_header("X-DNS-Prefetch-Control", "off")


def is_from_sandbox(path: str) -> bool:
    """Return whether the file ``path``, or what it leads to, lies in a folder that a sandbox of
    this user may write. Also if that cannot be said.
    """
    places = Path(os.path.realpath(path)), Path(os.path.realpath(Path(path).parent), "file")
    try:
        written = read_written(SandboxSpec())
        for folder in {parent for place in places for parent in place.parents}:
            with open_path(str(folder)) as opened:
                if written.has(opened.path, opened.fd):
                    return True
    except (StateError, OSError):
        return True
    return False


class NotebookHandler(NbconvertFileHandler):
    """``GET /nbconvert/FORMAT/PATH``: Jupyter's, as a page without scripts.

    A notebook's metadata name the class that makes a script of it, which nbconvert would import.
    """

    @property
    def contents_manager(self) -> Any:
        return _Cleaned(super().contents_manager)

    @web.authenticated
    @authorized
    async def get(self, format: str, path: str) -> None:
        close_page(self)
        await ensure_async(super().get(format, path))


class _Cleaned:
    """A contents manager whose notebooks name no class in their metadata."""

    def __init__(self, contents: Any) -> None:
        self._contents = contents

    def __getattr__(self, name: str) -> Any:
        return getattr(self._contents, name)

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        model = await ensure_async(self._contents.get(*args, **kwargs))
        if model["type"] == "notebook":
            metadata = model["content"]["metadata"]
            if "language_info" in metadata:
                metadata["language_info"] = clean_language(metadata["language_info"])
        return model


def make_file_handler(contents: Any) -> type[web.RequestHandler] | None:
    """Return the handler of ``/files`` that ``contents``, the server's manager, has, with a policy.

    None without one.
    """
    base: Any = contents.files_handler_class
    if base is None:
        return None
    os_path: Callable[[str], str] | None = getattr(contents, "_get_os_path", None)

    class FileHandler(base):  # type: ignore[misc]
        @web.authenticated
        @authorized
        def get(self, path: str, *args: Any, **kwargs: Any) -> Awaitable[None]:
            if os_path is None or is_from_sandbox(os_path(path.strip("/"))):
                close_page(self)
            answer: Awaitable[None] = super().get(path, *args, **kwargs)
            return answer

    return FileHandler


def make_file_routes(contents: Any) -> list[Route]:
    """Return routes that go before those of Jupyter."""
    notebooks: Route = (r"/nbconvert/(?P<format>\w+)(?P<path>/.+)", NotebookHandler, {})
    files = make_file_handler(contents)
    if files is None:
        return [notebooks]
    return [(r"/files/(.*)", files, contents.files_handler_params), notebooks]
