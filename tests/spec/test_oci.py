"""The content of config.json and of /container_info.json."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.spec.identity import Identity, format_info
from gvisor_kernel.spec.layout import LAYOUT, OUTPUTS, Bind, Mount, Tmpfs, scratch_mounts
from gvisor_kernel.spec.oci import guest_argv, make_config

LAYOUT_BINDS: list[Mount] = [Bind(f"/host{t}", t, read_only=t != OUTPUTS) for t in LAYOUT]


def example_config(*, map_users: bool = True, mounts: list[Mount] | None = None) -> dict[str, Any]:
    spec = SandboxSpec()
    return make_config(
        spec,
        args=guest_argv("/venv/bin/python"),
        rootfs="/rootfs",
        mounts=mounts or [*scratch_mounts(spec), Bind("/usr", "/usr"), *LAYOUT_BINDS],
        map_users=map_users,
        file_size=None,
    )


def test_layout_binds_come_first() -> None:
    binds = [m for m in example_config()["mounts"] if m["type"] == "bind"]
    assert [m["destination"] for m in binds] == [*LAYOUT, "/usr"]
    assert [m["destination"] for m in binds if "rw" in m["options"]] == [OUTPUTS]
    assert all({"nosuid", "nodev", "rprivate"} <= set(m["options"]) for m in binds)


def test_parent_file_systems_are_mounted_first() -> None:
    targets = [m["destination"] for m in example_config()["mounts"]]
    for parent, child in [("/dev", "/dev/shm"), ("/run", "/run/gvisor-kernel")]:
        assert targets.index(parent) < targets.index(child)


def test_sandbox_of_root_has_user_namespace_without_host_root() -> None:
    linux = example_config()["linux"]
    assert {"type": "user"} in linux["namespaces"]
    assert linux["uidMappings"] == linux["gidMappings"]
    assert all(m["hostID"] > 0 for m in linux["uidMappings"])


def test_sandbox_of_user_has_no_further_user_namespace() -> None:
    linux = example_config(map_users=False)["linux"]
    assert "uidMappings" not in linux
    assert {n["type"] for n in linux["namespaces"]} == {"pid", "network", "ipc", "uts", "mount"}


def test_pid_1_has_few_privileges() -> None:
    process = example_config()["process"]
    assert process["noNewPrivileges"]
    assert process["args"][0] == "/venv/bin/python"
    assert set(process["capabilities"]) == {"bounding", "effective", "permitted"}
    assert "CAP_NET_ADMIN" not in process["capabilities"]["bounding"]
    assert all("=" in entry for entry in process["env"])
    assert {entry.partition("=")[0] for entry in process["env"]} == {"PATH", "LANG"}


def test_tmpfs_has_a_size() -> None:
    mounts = example_config(mounts=[Tmpfs("/tmp", 77, 0o1777)])["mounts"]
    tmp = next(m for m in mounts if m["destination"] == "/tmp")
    assert {"size=77", "mode=1777"} <= set(tmp["options"])


@pytest.mark.parametrize("outputs", [LAYOUT_BINDS[3], Tmpfs(OUTPUTS, 5)])
def test_info_tells_what_is_kept_and_no_host_path(outputs: Mount) -> None:
    mounts = [m for m in LAYOUT_BINDS if m.target != OUTPUTS] + [outputs]
    text = format_info(
        Identity("0" * 26, "python", "0" * 12),
        SandboxSpec(),
        kernel_name="python",
        created=0.0,
        versions={"runsc": "1"},
        mounts=mounts,
    )
    info = json.loads(text)
    assert info["identity"] == "container_" + "0" * 26 + "--python--" + "0" * 12
    assert info["created"] == "1970-01-01T00:00:00.000+00:00"
    assert info["limits"]["memory_bytes"] == 4 * 1024**3
    assert [m["target"] for m in info["layout"]] == list(LAYOUT)
    rw = [m for m in info["layout"] if m["access"] == "rw"]
    assert rw == [{"target": OUTPUTS, "access": "rw", "kept": isinstance(outputs, Bind)}]
    assert "/host" not in text
