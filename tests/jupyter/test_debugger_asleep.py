"""The debugger of a kernel that hibernates."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import SnapshotError

from .helpers import execute, running_kernel
from .test_debugger import debug


def hibernate(manager: Any) -> None:
    asyncio.run(manager.provisioner.sandboxed_kernel.hibernation.hibernate())


def test_a_kernel_whose_debugger_was_left_is_not_saved_where_it_would_not_go_on(
    folder: Path,
) -> None:
    with running_kernel() as (manager, client):
        assert execute(client, "x = 1").reply["content"]["status"] == "ok"
        debug(client, "initialize", clientID="test", adapterID="", pathFormat="path")
        debug(client, "attach")
        hibernate(manager)
        debug(client, "disconnect", restart=False, terminateDebuggee=False)
        with suppress(SnapshotError):
            hibernate(manager)
        # It goes on in either case: awake, or with a current gVisor from what was saved.
        assert execute(client, "assert x == 1").reply["content"]["status"] == "ok"
