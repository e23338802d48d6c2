"""The order of mounts, their sizes, and that every runtime makes its mounts of one description."""

from __future__ import annotations

from gvisor_kernel.config.mounts import ExtraMount
from gvisor_kernel.config.settings import DEFAULTS, SandboxSpec
from gvisor_kernel.runtimes.docker.container import Names, file_mounts
from gvisor_kernel.runtimes.kubernetes.pod import PodNames, guest_config, make_pod
from gvisor_kernel.spec.etc import replaced_files
from gvisor_kernel.spec.layout import (
    CONTAINER_INFO,
    LAYOUT,
    OUTPUTS,
    Bind,
    Tmpfs,
    extra_binds,
    list_parts,
    order_mounts,
    scratch_mounts,
)

EXTRA = SandboxSpec(runtime="kubernetes", mounts=(ExtraMount("/data", "/mnt/data"),))


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


def test_each_place_is_mounted_in_a_container_and_in_a_pod() -> None:
    parts = list_parts(EXTRA)
    assert {*LAYOUT, "/mnt/data"} - {OUTPUTS} < set(parts.values())
    mounts = file_mounts(EXTRA, Names("01j"))
    assert parts.items() <= {m["VolumeOptions"]["Subpath"]: m["Target"] for m in mounts}.items()
    config = guest_config(EXTRA, secret=b"", ahead=(), environment={}, lingers=False)
    shown = {**config["parts"], "guest": config["guest"], "container_info.json": CONTAINER_INFO}
    assert parts.items() <= shown.items()
    (container,) = make_pod(EXTRA, PodNames("s", "c", "i", "o"), info="{}")["spec"]["containers"]
    assert {CONTAINER_INFO, OUTPUTS} < {m["mountPath"] for m in container["volumeMounts"]}


def test_etc_describes_no_network() -> None:
    files = replaced_files("01j")
    assert files["resolv.conf"] == ""
    assert files["passwd"].startswith("root:")
    assert len(files["machine-id"]) == 33
