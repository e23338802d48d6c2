"""What the key of a snapshot depends on, and what it does not."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.bridge import Address, KernelIdentity
from gvisor_kernel.config.mounts import ExtraMount
from gvisor_kernel.config.settings import SandboxSpec, write_key_settings
from gvisor_kernel.host.cgroups import can_bound_memory
from gvisor_kernel.kernel.plan import KernelPlan, make_launch_request, read_plan, write_plan
from gvisor_kernel.kernel.restore import find_key, find_obstacle
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.snapshots.key import (
    EARLY,
    IMPORTED,
    PACKAGE,
    PARTS,
    HostFacts,
    KernelFacts,
    SnapshotKey,
    find_host_facts,
    find_stale_parts,
    make_key,
    split_environment,
)

KERNEL = KernelFacts(
    ["python3", "-m", "k"],
    {"LANG": "C.UTF-8"},
    "/workspace",
    write_key_settings(SandboxSpec(preload=("numpy",))),
)
SECRETS = (
    *("API_TOKEN", "JUPYTERHUB_API_TOKEN", "JUPYTER_TOKEN", "NVIDIA_API_KEY", "TF_TOKEN_app_io"),
    *("PYTHON_KEYRING_PASSWORD", "PYTHONHOSTED_TOKEN", "IPYTHON_SECRET", "LD_API_KEY"),
    *("MPL_TOKEN", "NUMBA_TOKEN", "CUDA_TOKEN", "LC_TOKEN", "MALLOC_TOKEN", "OMP_NUM_THREADS"),
    *("HTTPS_PROXY", "TMPDIR", "SSL_CERT_FILE", "TZ"),
)
"""Variables whose values must be in no snapshot, though many begin like one that may be in it."""
HOST = HostFacts(["1.0", ("guest/main.py", 100, 5)], ["x86_64", "avx2", "2"])


def differences(key: SnapshotKey, other: SnapshotKey) -> list[str]:
    """Return the kinds of facts that differ between two keys."""
    names = sorted({*key.parts, *other.parts})
    return [name for name in names if key.parts.get(name) != other.parts.get(name)]


def describe(folder: Path, **settings: Any) -> dict[str, Any]:
    request = LaunchRequest("gvisor-python", "id", folder, sys.executable, {})
    return RunscRuntime().describe(SandboxSpec(**settings), request)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return describe(tmp_path_factory.mktemp("one"))


def test_other_session_has_same_key(sandbox: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "outputs").mkdir()
    key = make_key(sandbox, KERNEL, HOST)
    # Without a cgroup, kernels see the memory limit, so it is part of the key.
    limit = 5 << 30 if can_bound_memory() else 4 << 30
    other = describe(tmp_path, uploads="data", memory_limit=limit, cpu_shares=3, transcripts=False)
    assert make_key(other, KERNEL, HOST) == key
    assert len(key.name) == 32
    assert int(key.name, 16)


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("config", {"disk_limit": 1 << 30}),
        ("config", {"pids_limit": 100}),
        ("config", {"outputs": None}),
        ("config", {"memory_limit": 1 << 30}),  # of which /dev/shm is at most half
        ("config", {"mounts": (ExtraMount("/srv", "/srv/data"),)}),
    ],
)
def test_settings_that_shape_sandbox_change_key(
    part: str, settings: dict[str, Any], sandbox: dict[str, Any], tmp_path: Path
) -> None:
    key = make_key(sandbox, KERNEL, HOST)
    found = differences(key, make_key(describe(tmp_path, **settings), KERNEL, HOST))
    assert found == [part]


def find_compared(described: dict[str, Any]) -> dict[str, Any]:
    """Return what a current runsc compares with the checkpoint at a restore.

    That is config.json without the sources of mounts and root, the environment and the resources.
    """
    config = copy.deepcopy(described["config"])
    for mount in config["mounts"]:
        mount.pop("source")
    del config["root"]["path"], config["process"]["env"], config["linux"]["resources"]
    return config


@pytest.mark.parametrize("memory", [256 << 20, 1 << 30, 3 << 30, 4608 << 20, 5 << 30, 64 << 30])
@pytest.mark.parametrize("settings", [{}, {"cpu_shares": 3, "uploads": None}, {"disk_limit": 9000}])
def test_key_contains_what_runsc_compares(
    memory: int, settings: dict[str, Any], sandbox: dict[str, Any], tmp_path: Path
) -> None:
    """For any limits, a snapshot of the same key can be restored."""
    other = describe(tmp_path, memory_limit=memory, **settings)
    if make_key(other, KERNEL, HOST) == make_key(sandbox, KERNEL, HOST):
        assert find_compared(other) == find_compared(sandbox)
    for change in ({"memory_limit": memory + (1 << 20)}, {"memory_limit": 2 * memory}):
        more = describe(tmp_path, **{**settings, **change})
        if make_key(more, KERNEL, HOST) == make_key(other, KERNEL, HOST):
            assert find_compared(more) == find_compared(other)


@pytest.mark.parametrize("part", ["runtime", "flags", "world", "etc", "user"])
def test_each_fact_of_runtime_changes_key(part: str, sandbox: dict[str, Any]) -> None:
    other = copy.deepcopy(sandbox)
    other[part][-1] = "else"
    key = make_key(sandbox, KERNEL, HOST)
    assert key.name != make_key(other, KERNEL, HOST).name
    assert differences(key, make_key(other, KERNEL, HOST)) == [part]
    del other[part]
    assert differences(key, make_key(other, KERNEL, HOST)) == [part]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("kernel", {"argv": ["python3", "-m", "other"]}),
        ("kernel", {"workdir": "/"}),
        ("setting kernel_mode", {"settings": {**KERNEL.settings, "kernel_mode": "relay"}}),
        ("setting preload", {"settings": {**KERNEL.settings, "preload": ["numpy", "pandas"]}}),
        ("setting preload", {"settings": {**KERNEL.settings, "preload": []}}),
        ("environment", {"environment": {"LANG": "C"}}),
        ("environment", {"environment": {}}),
    ],
)
def test_kernel_facts_change_key(
    part: str, change: dict[str, Any], sandbox: dict[str, Any]
) -> None:
    key = make_key(sandbox, KERNEL, HOST)
    assert differences(key, make_key(sandbox, replace(KERNEL, **change), HOST)) == [part]


def test_guest_code_changes_key(tmp_path: Path, sandbox: dict[str, Any]) -> None:
    for part in ("link", "guest", "__init__.py"):
        copying = shutil.copytree if (PACKAGE / part).is_dir() else shutil.copy2
        copying(PACKAGE / part, tmp_path / part)
    before = find_host_facts(tmp_path)
    assert before == find_host_facts(PACKAGE)
    os.utime(tmp_path / "guest" / "main.py", (1, 1))
    edited = find_host_facts(tmp_path)
    key = make_key(sandbox, KERNEL, before)
    assert differences(key, make_key(sandbox, KERNEL, edited)) == ["guest"]
    (tmp_path / "link" / "more.py").touch()
    assert make_key(sandbox, KERNEL, edited) != make_key(sandbox, KERNEL, find_host_facts(tmp_path))


def test_each_part_has_a_name_for_logs(sandbox: dict[str, Any]) -> None:
    settings = {f"setting {name}" for name in KERNEL.settings}
    assert set(make_key(sandbox, KERNEL, find_host_facts()).parts) == {*PARTS, *settings}


def test_cpu_count_changes_key(sandbox: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    facts = find_host_facts()
    assert facts.cpu[0] == os.uname().machine
    assert len(facts.cpu) > 10
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 3, 4, 5})
    key = make_key(sandbox, KERNEL, facts)
    assert differences(key, make_key(sandbox, KERNEL, find_host_facts())) == ["cpu"]


def test_passed_variables_are_not_in_snapshot() -> None:
    secret = dict.fromkeys(SECRETS, "s3cret")
    own = {"PYTHONPATH": "/x", "LANG": "C.UTF-8", "OWN": "1", "NVIDIA_OWN": "2"}
    early, later = split_environment({**secret, **own}, (*SECRETS, "PYTHONPATH", "LANG", "ABSENT"))
    assert later == secret
    assert early == own


def test_early_variables_are_exact_names_without_secrets() -> None:
    for name in EARLY:
        assert not name.endswith("_") or name.startswith("MALLOC_"), f"{name} looks like a prefix"
        assert not {"TOKEN", "KEY", "SECRET", "PASSWORD", "PASS", "AUTH"} & set(name.split("_"))
    assert not EARLY & IMPORTED


def plan_of(*names: str, argv: tuple[str, ...] = (), **settings: Any) -> KernelPlan:
    """Return the plan of a kernel that is passed the variables ``names``."""
    request = LaunchRequest("k", "id", Path("/srv"), sys.executable, dict.fromkeys(names, "s3cret"))
    spec = SandboxSpec(environment=names, **settings)
    identity = KernelIdentity("k", b"key", "hmac-sha256", spec.memory_limit)
    return KernelPlan(spec, request, identity, Address("ipc", ""), argv)


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        (plan_of("API_TOKEN", "OMP_NUM_THREADS"), ""),
        (plan_of("PYTHONPATH", argv=("bash", "{connection_file}")), ""),
        (plan_of("API_TOKEN", argv=("bash", "{connection_file}")), "API_TOKEN"),
        (plan_of("API_TOKEN", "B", kernel_mode="relay"), "API_TOKEN (and 1 more)"),
        (plan_of("API_TOKEN", "TZ", preload=("numpy",)), ""),
        (plan_of("API_TOKEN", "OMP_NUM_THREADS", preload=("numpy",)), "OMP_NUM_THREADS"),
    ],
)
def test_kernel_that_cannot_receive_variables_has_no_snapshot(plan: KernelPlan, named: str) -> None:
    obstacle = find_obstacle(plan)
    assert obstacle is None if not named else obstacle is not None and f" {named} " in obstacle


@pytest.mark.parametrize(
    ("plan", "forked"),
    [
        (plan_of(), True),
        (plan_of(restart="sandbox"), False),
        (plan_of(kernel_mode="relay"), False),
        (plan_of(argv=("bash", "{connection_file}")), False),
    ],
)
def test_first_process_imports_only_for_kernels_that_are_forked(
    plan: KernelPlan, forked: bool
) -> None:
    assert bool(make_launch_request(plan).ahead) is forked


def test_kernelspec_variable_with_passed_value_is_not_in_snapshot() -> None:
    """``"env": {"HEADER": "Bearer ${API_TOKEN}"}`` contains the token as well."""
    plan = replace(
        plan_of("API_TOKEN"),
        environment={"HEADER": "Bearer s3cret", "OWN": "1"},
        substituted=("HEADER",),
    )
    assert read_plan(write_plan(plan), b"key").substituted == ("HEADER",)
    _, bare = find_key(RunscRuntime(), plan)
    assert (bare.environment, bare.request.environment) == ({"OWN": "1"}, {})


def test_stale_parts_are_found_without_kernel(sandbox: dict[str, Any]) -> None:
    parts = dict(make_key(sandbox, KERNEL, find_host_facts()).parts)
    assert find_stale_parts(parts) == []
    parts.update(guest="0", runtime="0", config="0")
    del parts["etc"]
    assert find_stale_parts(parts) == ["etc", "guest", "runtime"]
