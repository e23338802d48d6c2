"""The routes of a closed server: a list of what JupyterLab and we need. All others answer 404.

The list comes before all handlers, so an extension that somebody installs or enables adds nothing.
An answer without a policy would be a document of the server's origin that may connect to anything,
and script in the page could do so by a frame of it: each has one, errors of tornado's own, too.
"""

from __future__ import annotations

import re
from typing import Any

from jupyter_server.services.contents.handlers import ContentsHandler
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.routing import Matcher, Rule
from tornado.web import Application, ErrorHandler, HTTPError, OutputTransform

READ = ("GET", "HEAD")
OPEN: tuple[tuple[tuple[str, ...], str], ...] = (
    # Files, kernels and sessions: their managers decide (contents.py, kernels.py).
    (("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"), r"/api/(contents|kernels|sessions)(/.*)?"),
    (READ, r"/(files|view)/.*"),
    (READ, r"/api/kernelspecs(/.*)?|/kernelspecs/.*"),
    # What the server is; and its end, which ends no more than its kernels.
    (READ, r"/|/api/?|/api/(status|me|spec\.yaml|config/\w+)|/favicon\.ico|/metrics"),
    (("POST",), r"/api/(shutdown|security/csp-report)"),
    (("GET", "POST"), r"/api/events(/subscribe)?|/login|/logout"),
    # JupyterLab and Notebook 7: pages and what they are made of; settings of this person's pages.
    # No licenses: their handler never answers what it refuses (jupyterlab_server 2.28).
    (READ, r"/(lab|doc|tree|notebooks|edit|consoles)(/(?!api/).*)?"),
    (READ, r"/(static|custom|logos)/.*"),
    (READ, r"/lab/api/(translations|themes|listings|schemas)(/.*)?"),
    (READ, r"/lab/api/(extensions|plugins|build)"),
    (("GET", "PUT"), r"/lab/api/settings(/.*)?"),
    (("GET", "PUT", "POST", "DELETE"), r"/lab/api/workspaces(/.*)?"),
    # Ours, and a hub's way to log in.
    (("GET", "HEAD", "POST", "PUT", "DELETE"), r"/gvisor-kernel/.*"),
    (READ, r"/oauth_callback"),
)
"""Methods and paths below the server's base URL."""
LONELY = {
    "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
    "Connection-Allowlist": "()",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of an answer that has no policy of its own."""
NOT_FOUND = {"status_code": 404}
CLOSED = "gvisor_kernel_closed"
"""The setting of the server's application that is true then."""
TEXTS = {"path": "", "name": "", "ext": "", "type": None, "format": None, "copy_from": None}
"""Fields of a request for contents that are texts, and the value of one that is not there."""
_OPEN = [(frozenset(methods), re.compile(pattern)) for methods, pattern in OPEN]


class _Closed(Matcher):
    """Matches requests that are not in the list."""

    def __init__(self, base_url: str) -> None:
        self._base = base_url.rstrip("/")

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """Return None for an open route, so that the server's own handlers get it."""
        path, method = request.path, request.method
        if path in ("/", self._base):
            return None  # a redirect to the base URL
        below = path.removeprefix(self._base) if path.startswith(f"{self._base}/") else ""
        is_open = any(method in methods and each.fullmatch(below) for methods, each in _OPEN)
        return None if is_open else {}


class _Policy(OutputTransform):
    """Gives a policy to answers that have none."""

    def __init__(self, request: HTTPServerRequest) -> None:
        pass

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        if "Content-Security-Policy" not in headers:
            for name, value in LONELY.items():
                headers[name] = value
        return status_code, headers, chunk


class _Contents(ContentsHandler):
    """The server's handler, which fails where a field is no text."""

    def get_json_body(self) -> dict[str, Any] | None:
        model = super().get_json_body()
        if model is not None and not (
            isinstance(model, dict)
            and all(isinstance(it := model.get(n, no), str) or it is no for n, no in TEXTS.items())
        ):
            raise HTTPError(400, f"The body must be an object, and {', '.join(TEXTS)} texts.")
        return model


def close_routes(application: Application, base_url: str) -> None:
    """Let the server answer 404 for all that is not in the list. Call it before it listens."""
    application.add_transform(_Policy)
    application.settings[CLOSED] = True
    for rule in application.wildcard_router.rules:
        if rule.target is ContentsHandler:
            rule.target = _Contents
    application.default_router.rules.insert(0, Rule(_Closed(base_url), ErrorHandler, NOT_FOUND))
