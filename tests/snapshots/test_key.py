"""What an image's name depends on, and what it does not."""

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
from gvisor_kernel.config.settings import ExtraMount, SandboxSpec
from gvisor_kernel.host.cgroups import can_bound_memory
from gvisor_kernel.kernel.plan import KernelPlan, read_plan, write_plan
from gvisor_kernel.kernel.restore import find_key, find_obstacle
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.snapshots.host_facts import PACKAGE, find_host_facts, find_stale_parts
from gvisor_kernel.snapshots.key import (
    EARLY,
    IMPORTED,
    HostFacts,
    KernelFacts,
    make_key,
    split_environment,
)

KERNEL = KernelFacts(["python3", "-m", "k"], {"LANG": "C.UTF-8"}, "/workspace", "auto", ["numpy"])
SECRETS = (
    *("API_TOKEN", "JUPYTERHUB_API_TOKEN", "JUPYTER_TOKEN", "NVIDIA_API_KEY", "TF_TOKEN_app_io"),
    *("PYTHON_KEYRING_PASSWORD", "PYTHONHOSTED_TOKEN", "IPYTHON_SECRET", "LD_API_KEY"),
    *("MPL_TOKEN", "NUMBA_TOKEN", "CUDA_TOKEN", "LC_TOKEN", "MALLOC_TOKEN", "OMP_NUM_THREADS"),
    *("HTTPS_PROXY", "TMPDIR", "SSL_CERT_FILE", "TZ"),
)
"""Names of variables whose values are in no image, though many begin like one that may be."""
HOST = HostFacts(["1.0", ("guest/main.py", 100, 5)], ["x86_64", "avx2", "2"])


def describe(folder: Path, **settings: Any) -> dict[str, Any]:
    request = LaunchRequest("gvisor-python", "id", folder, sys.executable, {})
    return RunscRuntime().describe(SandboxSpec(**settings), request)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return describe(tmp_path_factory.mktemp("one"))


def test_another_session_has_the_same(sandbox: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "outputs").mkdir()
    key = make_key(sandbox, KERNEL, HOST)
    # Where no cgroup bounds memory, a limit that kernels see does.
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
def test_settings_that_shape_a_sandbox(
    part: str, settings: dict[str, Any], sandbox: dict[str, Any], tmp_path: Path
) -> None:
    key = make_key(sandbox, KERNEL, HOST)
    found = key.differences(make_key(describe(tmp_path, **settings), KERNEL, HOST).parts)
    assert found == [part]


def find_compared(described: dict[str, Any]) -> dict[str, Any]:
    """What a current runsc holds against the checkpoint's at a restore, and refuses else.

    Of config.json all but: where mounts and the root come from, the environment and resources.
    """
    config = copy.deepcopy(described["config"])
    for mount in config["mounts"]:
        mount.pop("source")
    del config["root"]["path"], config["process"]["env"], config["linux"]["resources"]
    return config


@pytest.mark.parametrize("memory", [256 << 20, 1 << 30, 3 << 30, 4608 << 20, 5 << 30, 64 << 30])
@pytest.mark.parametrize("settings", [{}, {"cpu_shares": 3, "uploads": None}, {"disk_limit": 9000}])
def test_what_runsc_compares_is_in_it(
    memory: int, settings: dict[str, Any], sandbox: dict[str, Any], tmp_path: Path
) -> None:
    """Whatever the limits are, what has one key can be restored."""
    other = describe(tmp_path, memory_limit=memory, **settings)
    if make_key(other, KERNEL, HOST) == make_key(sandbox, KERNEL, HOST):
        assert find_compared(other) == find_compared(sandbox)
    for change in ({"memory_limit": memory + (1 << 20)}, {"memory_limit": 2 * memory}):
        more = describe(tmp_path, **{**settings, **change})
        if make_key(more, KERNEL, HOST) == make_key(other, KERNEL, HOST):
            assert find_compared(more) == find_compared(other)


@pytest.mark.parametrize("part", ["runtime", "flags", "world", "etc", "user"])
def test_whatever_a_runtime_tells(part: str, sandbox: dict[str, Any]) -> None:
    other = copy.deepcopy(sandbox)
    other[part][-1] = "else"
    key = make_key(sandbox, KERNEL, HOST)
    assert key.name != make_key(other, KERNEL, HOST).name
    assert key.differences(make_key(other, KERNEL, HOST).parts) == [part]
    del other[part]
    assert key.differences(make_key(other, KERNEL, HOST).parts) == [part]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("kernel", {"argv": ["python3", "-m", "other"]}),
        ("kernel", {"kernel_mode": "relay"}),
        ("kernel", {"workdir": "/"}),
        ("preload", {"preload": ["numpy", "pandas"]}),
        ("preload", {"preload": []}),
        ("environment", {"environment": {"LANG": "C"}}),
        ("environment", {"environment": {}}),
    ],
)
def test_the_kernel(part: str, change: dict[str, Any], sandbox: dict[str, Any]) -> None:
    key = make_key(sandbox, KERNEL, HOST)
    assert key.differences(make_key(sandbox, replace(KERNEL, **change), HOST).parts) == [part]


def test_the_guests_code(tmp_path: Path, sandbox: dict[str, Any]) -> None:
    for part in ("link", "guest", "__init__.py"):
        copying = shutil.copytree if (PACKAGE / part).is_dir() else shutil.copy2
        copying(PACKAGE / part, tmp_path / part)
    before = find_host_facts(tmp_path)
    assert before == find_host_facts(PACKAGE)
    os.utime(tmp_path / "guest" / "main.py", (1, 1))
    edited = find_host_facts(tmp_path)
    key = make_key(sandbox, KERNEL, before)
    assert key.differences(make_key(sandbox, KERNEL, edited).parts) == ["guest"]
    (tmp_path / "link" / "more.py").touch()
    assert make_key(sandbox, KERNEL, edited) != make_key(sandbox, KERNEL, find_host_facts(tmp_path))


def test_the_processors(sandbox: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    facts = find_host_facts()
    assert facts.cpu[0] == os.uname().machine
    assert len(facts.cpu) > 10
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 3, 4, 5})
    key = make_key(sandbox, KERNEL, facts)
    assert key.differences(make_key(sandbox, KERNEL, find_host_facts()).parts) == ["cpu"]


def test_values_that_a_setting_passes_on_come_later() -> None:
    secret = dict.fromkeys(SECRETS, "s3cret")
    own = {"PYTHONPATH": "/x", "LANG": "C.UTF-8", "OWN": "1", "NVIDIA_OWN": "2"}
    early, later = split_environment({**secret, **own}, (*SECRETS, "PYTHONPATH", "LANG", "ABSENT"))
    assert later == secret
    assert early == own


def test_the_list_of_what_is_read_at_the_start_has_names_alone() -> None:
    for name in EARLY:
        assert not name.endswith("_") or name.startswith("MALLOC_"), f"{name} looks like a prefix"
        assert not {"TOKEN", "KEY", "SECRET", "PASSWORD", "PASS", "AUTH"} & set(name.split("_"))
    assert not EARLY & IMPORTED


def plan_of(*names: str, argv: tuple[str, ...] = (), **settings: Any) -> KernelPlan:
    """A kernel that is passed ``names``, of which the server has all."""
    request = LaunchRequest("k", "id", Path("/srv"), sys.executable, dict.fromkeys(names, "s3cret"))
    spec = SandboxSpec(environment=names, **settings)
    identity = KernelIdentity("k", b"key", "hmac-sha256", spec.memory_limit)
    return KernelPlan(spec, request, identity, Address("ipc", ""), argv)


@pytest.mark.parametrize(
    ("plan", "obstacle"),
    [
        (plan_of("API_TOKEN", "OMP_NUM_THREADS"), ""),
        (plan_of("PYTHONPATH", argv=("bash", "{connection_file}")), ""),
        (plan_of("API_TOKEN", argv=("bash", "{connection_file}")), "API_TOKEN"),
        (plan_of("API_TOKEN", "B", kernel_mode="relay"), "API_TOKEN (and 1 more)"),
        (plan_of("API_TOKEN", "TZ", preload=("numpy",)), ""),
        (plan_of("API_TOKEN", "OMP_NUM_THREADS", preload=("numpy",)), "OMP_NUM_THREADS"),
    ],
)
def test_a_kernel_that_could_not_be_told_has_no_image(plan: KernelPlan, obstacle: str) -> None:
    found = find_obstacle(plan)
    assert found is None if not obstacle else found is not None and found.startswith(obstacle)


def test_a_kernelspecs_variable_that_is_made_of_a_passed_one() -> None:
    """``"env": {"HEADER": "Bearer ${API_TOKEN}"}`` holds the token as well."""
    plan = replace(
        plan_of("API_TOKEN"),
        environment={"HEADER": "Bearer s3cret", "OWN": "1"},
        substituted=("HEADER",),
    )
    assert read_plan(write_plan(plan), b"key").substituted == ("HEADER",)
    _, bare = find_key(RunscRuntime(), plan)
    assert (bare.environment, bare.request.environment) == ({"OWN": "1"}, {})


def test_what_is_stale_for_every_kernel(sandbox: dict[str, Any]) -> None:
    parts = dict(make_key(sandbox, KERNEL, find_host_facts()).parts)
    assert find_stale_parts(parts) == []
    parts.update(guest="0", runtime="0", config="0")
    del parts["etc"]
    assert find_stale_parts(parts) == ["etc", "guest", "runtime"]
