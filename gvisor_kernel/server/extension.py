"""The extension itself: its routes, and its services from the server's start to its end.

``openapi.json`` and docs/rest.md describe the routes; a test compares.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from jupyter_server.extension.application import ExtensionApp
from tornado.web import RequestHandler
from traitlets import Bool, Unicode

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.jupyter.plan_factory import make_provisioner
from gvisor_kernel.kernel.saved_kernel import goes_on_always
from gvisor_kernel.kernel.snapshot_queue import SnapshotQueue
from gvisor_kernel.lab.routes import close_routes
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
from gvisor_kernel.server.checkpoint_handlers import (
    CHECKPOINT,
    CheckpointHandler,
    CheckpointsHandler,
    RewindHandler,
)
from gvisor_kernel.server.fetch_handlers import FetchHandler, TileHandler
from gvisor_kernel.server.file_handlers import make_file_routes
from gvisor_kernel.server.handlers import (
    KERNEL,
    BranchHandler,
    DoctorHandler,
    Handler,
    HibernateHandler,
    KernelHandler,
    KernelspecsHandler,
    KillHandler,
    LogHandler,
    MoveHandler,
    OpenApiHandler,
    ProjectsHandler,
    ResumeHandler,
    SandboxesHandler,
    StopHandler,
    TranscriptHandler,
    TrustHandler,
    WarmHandler,
)
from gvisor_kernel.server.hibernating import Hibernating
from gvisor_kernel.server.library_handlers import LibraryHandler
from gvisor_kernel.server.server_services import ServerServices
from gvisor_kernel.server.stopping import forget_failed_starts, stop_on_signals
from gvisor_kernel.server.watch import Watch

PREFIX = r"/gvisor-kernel/api"
ROUTES: tuple[tuple[str, type[Handler]], ...] = (
    ("/sandboxes", SandboxesHandler),
    (f"/kernels/{KERNEL}", KernelHandler),
    (f"/kernels/{KERNEL}/log", LogHandler),
    (f"/kernels/{KERNEL}/transcript", TranscriptHandler),
    (f"/kernels/{KERNEL}/stop", StopHandler),
    (f"/kernels/{KERNEL}/kill", KillHandler),
    (f"/kernels/{KERNEL}/hibernate", HibernateHandler),
    (f"/kernels/{KERNEL}/resume", ResumeHandler),
    (f"/kernels/{KERNEL}/move", MoveHandler),
    (f"/kernels/{KERNEL}/branch", BranchHandler),
    (f"/kernels/{KERNEL}/checkpoints", CheckpointsHandler),
    (f"/kernels/{KERNEL}/checkpoints/{CHECKPOINT}", CheckpointHandler),
    (f"/kernels/{KERNEL}/rewind", RewindHandler),
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
    ("/projects", ProjectsHandler),
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


class GVisorServer(ExtensionApp):
    """Shows the sandboxes of a server's kernels below ``<base_url>gvisor-kernel/api/``."""

    name = "gvisor-kernel"
    load_other_extensions = True

    warm = Bool(
        True,
        help="""Whether snapshots that are missing are made, with the lowest priority, before a
        kernel is started, and a sandbox is restored in advance for the folder that a person looks
        at. Its memory is that of an idle kernel, for five minutes.""",
    ).tag(config=True)

    shared_storage = Unicode(
        "",
        help="""A folder for what pages from sandboxes keep for all who open them, for the servers
        of several users: all of them must be able to write it, and nobody else. Without one each
        user's server has its own.""",
    ).tag(config=True)

    closed = Bool(
        False,
        help="""Whether the server has no other routes than those that JupyterLab and this extension
        need. `gvisor_kernel.lab.policy.harden` sets it.""",
    ).tag(config=True)

    hibernate_on_shutdown = Bool(
        None,
        allow_none=True,
        help="""Whether kernels hibernate as the server stops, and the next server of the same root
        folder has them and their sessions again; likewise if the server is killed. Without it they
        end with the server. None: with a gVisor of April 2026 or later, as
        `hibernate_idle_timeout` has it.""",
    ).tag(config=True)

    cull_hibernates = Bool(
        True,
        help="""Whether a kernel that the server culls (`MappingKernelManager.cull_idle_timeout`)
        hibernates instead. One that cannot hibernate is culled.""",
    ).tag(config=True)

    _services: ServerServices | None = None
    _hibernating: Hibernating | None = None
    _watch: Watch | None = None

    def initialize_settings(self) -> None:
        """Make the services. Called by the server as it loads the extension."""
        self._services = ServerServices.make(
            self.serverapp, warm=self.warm, shared_storage=self.shared_storage
        )

    def initialize_handlers(self) -> None:
        """Add the routes. Called by the server after ``initialize_settings``."""
        assert self._services is not None
        self.handlers.extend(make_routes(self._services))
        assert self.serverapp is not None
        stop_on_signals()
        self.handlers.extend(make_file_routes(self.serverapp.contents_manager))
        if self.closed:
            close_routes(self.serverapp.web_app, self.serverapp.base_url)
        leaves = self.hibernate_on_shutdown
        if leaves is None:
            leaves = False
            with suppress(GvisorKernelError):  # a wrong setting, of which each start tells
                leaves = goes_on_always(make_provisioner({}, self.config).sandbox_spec())
        self._hibernating = Hibernating(self.serverapp, self._services.sandboxes, leaves=leaves)
        if self.cull_hibernates:
            self._hibernating.replace_culling()
        self._hibernating.load()

    async def _start_jupyter_server_extension(self, serverapp: Any) -> None:
        """Begin to watch. Called by the server once its loop runs."""
        assert self._services is not None
        SnapshotQueue.instance().leaves_builder = False
        self._watch = Watch(
            self._services.events, self._services.executor, self._services.sandboxes.facts
        )
        self._watch.start()
        if self._hibernating is not None:
            self._hibernating.start()
        self._services.ended.start()
        self._services.preparer.start()
        if self.warm:
            self._services.listings.start()

    async def stop_extension(self) -> None:
        """Let kernels hibernate, and end the services. Called as the server stops, before its
        kernels are shut down."""
        if self._hibernating is not None:
            await self._hibernating.leave_all()
        if self._watch is not None:
            await self._watch.end()
        if self._services is not None:
            await self._services.end()
        if self.serverapp is not None:
            forget_failed_starts(self.serverapp.kernel_manager)
