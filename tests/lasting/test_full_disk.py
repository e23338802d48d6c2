"""A disk that is full in the middle of a verb: the kernel goes on, or stays saved, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from gvisor_kernel import Sandbox
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.kernel import checkpoints, saved_kernel
from gvisor_kernel.runtimes.state import records

from ..faults.test_full_disk import root_only, small_disk
from ..sweeps import needs_all
from ..world import World

MIB = 1024 * 1024
LEFT = (0, 1, 8, 64)
"""MiB that are free when each verb begins; an image has some 100."""


@needs_all
@root_only
@pytest.mark.timeout(900)
def test_a_disk_that_fills_up_in_the_middle(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_kernel, "MIN_LEFT", -(1 << 40))  # begin in spite of what is known
    monkeypatch.setattr(checkpoints, "DISK_SHARE", 1.0)
    with small_disk(world.base / "d", 1024 * MIB) as disk:
        monkeypatch.setenv("XDG_STATE_HOME", str(disk.place))
        state_root()
        with Sandbox(memory="1G", snapshot="off", outputs=tmp_path / "out") as sandbox:
            assert sandbox.run("x = 5; import os; data = os.urandom(100 << 20)").ok
            sandbox.checkpoint("one")
            for left in LEFT:
                before = content(disk.place)
                for verb in (sandbox.hibernate, sandbox.checkpoint, sandbox.branch):
                    disk.fill(left * MIB)
                    with pytest.raises(GvisorKernelError) as raised:
                        verb()
                    print(left, verb.__name__, raised.value)
                    assert "without a snapshot" not in str(raised.value)
                    assert sandbox.run("x").text == "5"
                    disk.empty()
                    assert content(disk.place) == before, (left, verb.__name__)
                sandbox.hibernate()
                disk.fill(left * MIB)
                execution = sandbox.run("x")
                disk.empty()
                if execution.error is not None:
                    assert "stays saved" in execution.error.value
                    assert sandbox.is_hibernated
                assert sandbox.run("x").text == "5"
                disk.fill(left * MIB)
                try:
                    sandbox.rewind("one")
                except GvisorKernelError as error:
                    print(left, "rewind", error)
                assert sandbox.run("x").text == "5"
                disk.empty()
        assert not records.sandbox_directories()


def content(place: Path) -> set[Path]:
    """Return the folders of kernels and of what was saved of them, complete or not."""
    kernels = place / "gvisor-kernel" / "sandboxes"
    found = {*kernels.glob("*"), *kernels.glob("*/saved*"), *kernels.glob("*/copy*")}
    return found | {*kernels.glob("*/checkpoints/[!.]*")}
