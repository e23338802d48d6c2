"""The container that is requested from a Docker engine, and faults in the one that it created."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gvisor_kernel.config.mounts import ExtraMount
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import MIB
from gvisor_kernel.runtimes.docker.container import (
    Names,
    find_faults,
    is_gvisor,
    make_container_request,
    make_store_request,
)
from gvisor_kernel.spec.layout import LAYOUT, OUTPUTS

SPEC = SandboxSpec(
    runtime="docker",
    image="some/image:1",
    memory_limit=512 * MIB,
    cpu_shares=77,
    pids_limit=100,
    disk_limit=64 * MIB,
)
NAMES = Names("01j")


def ask(spec: SandboxSpec = SPEC, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "argv": ("python3", "-c", "x"),
        "environment": {"A": "b=c"},
        "labels": {"l": "v"},
        "keeps_outputs": True,
        **changes,
    }
    return make_container_request(spec, NAMES, **arguments)


def test_container_is_confined() -> None:
    asked = ask()
    host = asked["HostConfig"]
    assert host["Runtime"] == "runsc"
    assert host["NetworkMode"] == "none"
    assert asked["NetworkDisabled"]
    assert host["IpcMode"] == "none"
    assert host["CapDrop"] == ["ALL"]
    assert set(host["CapAdd"]) == {"SYS_ADMIN", "SETUID", "SETGID", "CHOWN", "KILL", "SETFCAP"}
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"]
    assert not host["Privileged"]


def test_container_has_all_limits() -> None:
    host = ask()["HostConfig"]
    assert 512 * MIB < host["Memory"] == host["MemorySwap"] < 1024 * MIB
    assert host["CpuShares"] == 77
    assert host["PidsLimit"] > 100
    assert {"Name": "nproc", "Soft": 100, "Hard": 100} in host["Ulimits"]
    for target, options in host["Tmpfs"].items():
        size = next(o for o in options.split(",") if o.startswith("size="))
        assert int(size.removeprefix("size=")) <= 256 * MIB, target
        assert {"nosuid", "nodev"} < set(options.split(","))


def test_container_mounts_volumes_only_and_writes_outputs_only() -> None:
    spec = replace(SPEC, mounts=(ExtraMount("/data", "/mnt/data"),))
    mounts = ask(spec)["HostConfig"]["Mounts"]
    assert {mount["Type"] for mount in mounts} == {"volume"}
    assert {m["Target"] for m in mounts if not m["ReadOnly"]} == {OUTPUTS}
    assert {*LAYOUT, "/mnt/data", "/etc/resolv.conf"} < {mount["Target"] for mount in mounts}
    assert all(mount["VolumeOptions"]["NoCopy"] for mount in mounts)


def test_outputs_that_are_not_kept_are_a_tmpfs() -> None:
    host = ask(keeps_outputs=False)["HostConfig"]
    assert OUTPUTS in host["Tmpfs"]
    assert OUTPUTS not in {mount["Target"] for mount in host["Mounts"]}


def test_image_volumes_are_bounded_and_replace_no_mount() -> None:
    host = ask(volumes=["/data", OUTPUTS, "/tmp"])["HostConfig"]
    assert f"size={64 * MIB}" in host["Tmpfs"]["/data"]
    assert OUTPUTS not in host["Tmpfs"]
    assert "mode=1777" in host["Tmpfs"]["/tmp"]


def test_store_container_has_no_network() -> None:
    store = make_store_request(SPEC, NAMES, labels={"l": "v"}, keeps_outputs=True)
    assert store["HostConfig"]["NetworkMode"] == "none"
    assert {m["Source"] for m in store["HostConfig"]["Mounts"]} == {NAMES.files, NAMES.outputs}


def as_made(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the engine's description of a container that is as requested."""
    host = copy.deepcopy(asked["HostConfig"])
    mounts = [
        {"Type": "volume", "Destination": m["Target"], "RW": not m["ReadOnly"]}
        for m in host["Mounts"]
    ]
    return {"HostConfig": {**host, "Binds": None, "Devices": []}, "Mounts": mounts}


def test_container_as_requested_has_no_faults() -> None:
    asked = ask()
    assert find_faults(asked, json.loads(json.dumps(as_made(asked)))) == []


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another runtime": lambda made: made["HostConfig"].update(Runtime="runc"),
    "a network": lambda made: made["HostConfig"].update(NetworkMode="bridge"),
    "the host's ipc": lambda made: made["HostConfig"].update(IpcMode="host"),
    "the host's pids": lambda made: made["HostConfig"].update(PidMode="host"),
    "privileged": lambda made: made["HostConfig"].update(Privileged=True),
    "an added capability": lambda made: made["HostConfig"]["CapAdd"].append("CAP_SYS_PTRACE"),
    "all capabilities": lambda made: made["HostConfig"].update(CapDrop=None),
    "new privileges": lambda made: made["HostConfig"].update(SecurityOpt=[]),
    "more memory": lambda made: made["HostConfig"].update(Memory=0),
    "swap": lambda made: made["HostConfig"].update(MemorySwap=-1),
    "more processes": lambda made: made["HostConfig"].update(PidsLimit=None),
    "a writable root": lambda made: made["HostConfig"].update(ReadonlyRootfs=False),
    "a device": lambda made: made["HostConfig"].update(Devices=[{"PathOnHost": "/dev/kvm"}]),
    "a bind": lambda made: made["HostConfig"].update(Binds=["/:/host"]),
    "a mount of the host": lambda made: made["Mounts"].append(
        {"Type": "bind", "Destination": "/host", "RW": False}
    ),
    "a writable volume": lambda made: made["Mounts"].append(
        {"Type": "volume", "Destination": "/data", "RW": True}
    ),
    "writable guest code": lambda made: made["Mounts"][0].update(RW=True),
    "empty description": lambda made: made.clear(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_container_has_a_fault(change: str) -> None:
    asked = ask()
    made = as_made(asked)
    CHANGES[change](made)
    assert find_faults(asked, made)


@pytest.mark.parametrize(
    ("runtime", "is_it"),
    [
        ({"path": "runsc"}, True),
        ({"path": "/usr/local/bin/runsc", "runtimeArgs": []}, True),
        ({"runtimeType": "io.containerd.runsc.v1"}, True),
        ({"path": "/opt/runsc/runc"}, False),
        ({"path": ""}, False),
        ({}, False),
    ],
)
def test_gvisor_runtime_is_recognised(runtime: dict[str, Any], is_it: bool) -> None:
    assert is_gvisor(runtime) == is_it
