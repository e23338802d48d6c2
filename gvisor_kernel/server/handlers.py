"""The REST API. Who may ask is decided by Jupyter's server: token or cookie, authorizer, XSRF.

Each route has one handler. ``openapi.json`` and docs/rest.md describe them; a test compares.
"""

from __future__ import annotations

from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

from gvisor_kernel.server.documents import make_sandbox
from gvisor_kernel.server.parts import Parts

PREFIX = r"/gvisor-kernel/api"
KERNEL = r"(?P<kernel_id>[\w.-]{1,200})"


class Handler(APIHandler):
    """Base class: authorization is asked for the resource ``gvisor-kernel``."""

    auth_resource = "gvisor-kernel"
    # Polling is no activity: a server that ends when nobody uses it must still end.
    _track_activity = False

    def initialize(self, parts: Parts) -> None:
        self.parts = parts

    def answer(self, document: Any) -> None:
        """Answer with JSON that no cache keeps."""
        self.set_header("Cache-Control", "no-store")
        self.finish(document)

    def check_kernel(self, kernel_id: str) -> None:
        """:raises HTTPError: 404 for a kernel that is not this server's, or not in a sandbox"""
        if not self.parts.sandboxes.has(kernel_id):
            raise web.HTTPError(404, "This server has no kernel of this id in a sandbox.")


class SandboxesHandler(Handler):
    """``GET sandboxes``"""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        known = await self.parts.sandboxes.read()
        self.answer(
            {
                "sandboxes": [make_sandbox(one) for one in known.sandboxes.values()],
                "leftovers": list(known.leftovers),
            }
        )


class KernelHandler(Handler):
    """``GET kernels/{kernel_id}``"""

    @web.authenticated
    @authorized
    async def get(self, kernel_id: str) -> None:
        self.check_kernel(kernel_id)
        known = (await self.parts.sandboxes.read()).sandboxes.get(kernel_id)
        if known is None:
            raise web.HTTPError(404, "This kernel has no sandbox yet.")
        self.answer(make_sandbox(known))


ROUTES: tuple[tuple[str, type[Handler]], ...] = (
    ("/sandboxes", SandboxesHandler),
    (f"/kernels/{KERNEL}", KernelHandler),
)


def make_routes(parts: Parts) -> list[tuple[str, type[Handler], dict[str, Any]]]:
    """Return the routes as tornado wants them; Jupyter's server adds its base URL."""
    return [(f"{PREFIX}{path}", handler, {"parts": parts}) for path, handler in ROUTES]
