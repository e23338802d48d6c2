"""The extension itself: makes its parts when a server starts, and ends them with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool

from gvisor_kernel.server.handlers import make_routes
from gvisor_kernel.server.parts import Parts
from gvisor_kernel.server.sandboxes import Sandboxes


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

    _parts: Parts | None = None

    def initialize_settings(self) -> None:
        """Make the parts. Called by the server as it loads the extension."""
        assert self.serverapp is not None
        executor = ThreadPoolExecutor(2, thread_name_prefix="gvisor-kernel-server")
        manager = self.serverapp.kernel_manager
        self._parts = Parts(manager, executor, Sandboxes(manager, executor))

    def initialize_handlers(self) -> None:
        """Add the routes. Called by the server after ``initialize_settings``."""
        assert self._parts is not None
        self.handlers.extend(make_routes(self._parts))

    async def stop_extension(self) -> None:
        """End the parts. Called as the server stops."""
        if self._parts is not None:
            await self._parts.end()
