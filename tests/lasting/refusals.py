"""A kernel of a runtime that saves none: each verb says so, and the kernel goes on."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.kernel.branches import name_branches

from ..jupyter.helpers import execute


def assert_nothing_is_saved(manager: Any, client: Any) -> None:
    kernel = manager.provisioner.sandboxed_kernel
    assert execute(client, "goes_on = 5").status == "ok"
    for verb in (
        kernel.hibernation.hibernate,
        kernel.checkpoints.make,
        partial(kernel.checkpoints.rewind, "none"),
        partial(kernel.hibernation.branch, name_branches(1, None)),
        kernel.hibernation.leave,
    ):
        with pytest.raises(SnapshotError, match=r"runtime \w+ cannot be saved"):
            asyncio.run(verb())
    assert execute(client, "goes_on").result == "5"
