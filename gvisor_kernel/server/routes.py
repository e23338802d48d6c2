"""The routes of the REST API. ``openapi.json`` and docs/rest.md describe them; a test compares."""

from __future__ import annotations

from typing import Any

from tornado.web import RequestHandler

from gvisor_kernel.server.artifact_handlers import (
    FrameHandler,
    OutputHandler,
    OutputsHandler,
    ProbeHandler,
    StorageHandler,
)
from gvisor_kernel.server.changes_handlers import (
    ApplyHandler,
    ChangesHandler,
    ContentHandler,
    UndoHandler,
    UnkeptHandler,
)
from gvisor_kernel.server.fetch_handlers import FetchHandler
from gvisor_kernel.server.handlers import (
    KERNEL,
    DoctorHandler,
    Handler,
    KernelHandler,
    KernelspecsHandler,
    KillHandler,
    LogHandler,
    OpenApiHandler,
    SandboxesHandler,
    StopHandler,
    TranscriptHandler,
    TrustHandler,
    WarmHandler,
)
from gvisor_kernel.server.library_handlers import LibraryHandler
from gvisor_kernel.server.server_services import ServerServices
from gvisor_kernel.server.tile_handlers import TileHandler

PREFIX = r"/gvisor-kernel/api"
ROUTES: tuple[tuple[str, type[Handler]], ...] = (
    ("/sandboxes", SandboxesHandler),
    (f"/kernels/{KERNEL}", KernelHandler),
    (f"/kernels/{KERNEL}/log", LogHandler),
    (f"/kernels/{KERNEL}/transcript", TranscriptHandler),
    (f"/kernels/{KERNEL}/stop", StopHandler),
    (f"/kernels/{KERNEL}/kill", KillHandler),
    (f"/kernels/{KERNEL}/unkept", UnkeptHandler),
    (f"/kernels/{KERNEL}/changes", ChangesHandler),
    (f"/kernels/{KERNEL}/changes/content", ContentHandler),
    (f"/kernels/{KERNEL}/changes/apply", ApplyHandler),
    (f"/kernels/{KERNEL}/changes/undo", UndoHandler),
    (f"/kernels/{KERNEL}/tiles", TileHandler),
    ("/outputs", OutputsHandler),
    ("/outputs/content", OutputHandler),
    ("/storage", StorageHandler),
    ("/fetch", FetchHandler),
    (r"/libraries/(?P<name>[a-z0-9._-]{1,60})", LibraryHandler),
    ("/kernelspecs", KernelspecsHandler),
    ("/trust", TrustHandler),
    ("/doctor", DoctorHandler),
    ("/warm", WarmHandler),
    (r"/openapi\.json", OpenApiHandler),
)


def make_routes(services: ServerServices) -> list[tuple[str, type[RequestHandler], dict[str, Any]]]:
    """Return the routes as tornado wants them; Jupyter's server adds its base URL."""
    api = [(f"{PREFIX}{path}", handler, {"services": services}) for path, handler in ROUTES]
    return [
        *api,
        (r"/gvisor-kernel/frame", FrameHandler, {"services": services}),
        (r"/gvisor-kernel/frame/probe", ProbeHandler, {}),
    ]
