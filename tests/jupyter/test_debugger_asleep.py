"""Kernels that cannot hibernate: their debugger was left, or they wait for input."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.bridge.deaths import Death
from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import NotIdle, SnapshotError

from .helpers import SECONDS, execute, running_kernel
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


def test_a_cell_that_waits_for_input_is_named(folder: Path) -> None:
    with running_kernel() as (manager, client):
        client.execute("input()", allow_stdin=True)
        client.get_stdin_msg(timeout=SECONDS)
        with pytest.raises(NotIdle, match="waits for input"):
            hibernate(manager)
        client.input("")
        assert execute(client, "1").reply["content"]["status"] == "ok"
        hibernate(manager)


def test_a_kernel_that_is_killed_while_it_hibernates_counts_as_dead(folder: Path) -> None:
    with running_kernel() as (manager, client):
        assert execute(client, "1").reply["content"]["status"] == "ok"
        hibernate(manager)
        kernel: Any = manager.provisioner.sandboxed_kernel  # type: ignore[union-attr]
        assert main(["kill", kernel.hibernation.saved.directory.name]) == 0
        death = kernel.find_end()
        assert isinstance(death, Death)
        assert "removed by another program" in death.loss
