"""The order of mounts, and their sizes."""

from __future__ import annotations

from gvisor_kernel.config.settings import DEFAULTS, ExtraMount, SandboxSpec
from gvisor_kernel.spec.layout import (
    LAYOUT,
    Bind,
    Tmpfs,
    extra_binds,
    order_mounts,
    scratch_mounts,
)


def test_layout_mounts_come_first_in_their_order() -> None:
    mounts = [Bind("/usr", "/usr"), *(Bind("/x", target) for target in reversed(LAYOUT))]
    assert [mount.target for mount in order_mounts(mounts)] == [*LAYOUT, "/usr"]


def test_parents_are_mounted_before_children() -> None:
    mounts = [Bind("/a", "/home/user/venv"), Tmpfs("/home/user", 1), Bind("/b", "/home/user-2")]
    assert [mount.target for mount in order_mounts(mounts)] == [
        "/home/user",
        "/home/user/venv",
        "/home/user-2",
    ]


def test_later_mount_on_same_target_wins() -> None:
    assert order_mounts([Bind("/a", "/t"), Bind("/b", "/t")]) == (Bind("/b", "/t"),)


def test_every_scratch_directory_has_a_size() -> None:
    spec = SandboxSpec(memory_limit=1000, disk_limit=700)
    mounts = {mount.target: mount for mount in scratch_mounts(spec)}
    assert mounts["/tmp"].size == mounts["/home/user"].size == 700
    assert mounts["/run/gvisor-kernel/workspace"].size == 700
    assert mounts["/dev/shm"].size == 500
    assert mounts["/tmp"].mode == mounts["/dev/shm"].mode == 0o1777
    assert set(mounts) == {
        *("/tmp", "/var/tmp", "/dev/shm", "/home/user"),
        *("/run", "/run/gvisor-kernel", "/run/gvisor-kernel/workspace"),
    }


def test_extra_mounts_are_foreign_binds() -> None:
    spec = SandboxSpec(mounts=(ExtraMount("/data", "/mnt/data", read_only=False),))
    assert extra_binds(spec) == (Bind("/data", "/mnt/data", read_only=False, foreign=True),)
    assert extra_binds(DEFAULTS) == ()
