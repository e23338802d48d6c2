"""The extension of Jupyter's server: what its sandboxes are, over REST, events and metrics.

``jupyter_server`` is imported only when a server loads the extension: the package works without it.
"""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Return what to load. Called by Jupyter's server for an enabled extension."""
    from gvisor_kernel.server.extension import GVisorServer

    return [{"module": "gvisor_kernel.server", "app": GVisorServer}]
