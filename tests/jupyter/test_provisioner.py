"""The provisioner's hooks that no other test covers: paths, facts, restarts in a new sandbox."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec

from gvisor_kernel.jupyter.provisioner import GVisorProvisioner

from .helpers import execute, running_kernel


def provisioner_of(manager: KernelManager) -> GVisorProvisioner:
    assert isinstance(manager.provisioner, GVisorProvisioner)
    return manager.provisioner


def test_resolve_path_finds_only_mounted_files(tmp_path: Path) -> None:
    """Mounted files have a host path; all other paths have none, also behind planted links."""
    (tmp_path / "data.csv").write_text("1\n")
    with running_kernel(start={"cwd": str(tmp_path)}) as (manager, client):
        code = "import os\nopen('/mnt/user-data/outputs/made', 'w').close()\n"
        code += "os.symlink('/etc/passwd', '/mnt/user-data/outputs/planted')\n"
        code += "os.symlink('/', '/mnt/user-data/outputs/root')\nopen('new', 'w').close()"
        assert execute(client, code).status == "ok"
        resolve = provisioner_of(manager).resolve_path
        assert resolve("data.csv") == str(tmp_path / "data.csv")
        assert resolve("/workspace/data.csv") == str(tmp_path / "data.csv")
        assert resolve("/mnt/user-data/uploads/data.csv") == str(tmp_path / "data.csv")
        made = str(tmp_path / "outputs" / "made")
        assert resolve("/mnt/user-data/outputs/made") == made
        for path in (
            "/mnt/user-data/outputs/planted",
            "/mnt/user-data/outputs/root/etc/passwd",
            "/mnt/user-data/outputs/../../../etc/passwd",
            "../../etc/passwd",
            "/etc/passwd",
            "new",  # copy-on-write: it exists only in the sandbox
            "data.csv\0",
            "",
        ):
            assert resolve(path) in (None, str(tmp_path)), path
    assert provisioner_of(manager).resolve_path("data.csv") is None


def test_provisioner_info_can_be_loaded() -> None:
    with running_kernel() as (manager, _):
        provisioner = provisioner_of(manager)
        info: dict[str, Any] = asyncio.run(provisioner.get_provisioner_info())
        assert info["kernel_id"] == manager.kernel_id
        assert info["sandbox"].startswith("container_")
        assert info["connection_info"]["key"] == manager.session.key
        other = GVisorProvisioner(
            kernel_id="", kernel_spec=provisioner.kernel_spec, parent=manager, config=None
        )
        asyncio.run(other.load_provisioner_info(info))
        assert other.connection_info == info["connection_info"]
        assert other.kernel_id == manager.kernel_id
        assert not other.has_process


def test_restart_setting_sandbox_starts_new_sandbox(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    folder.mkdir()
    settings = {"restart": "sandbox"}
    with running_kernel(settings=settings, start={"cwd": str(folder)}) as (manager, client):
        first = asyncio.run(provisioner_of(manager).get_provisioner_info())["sandbox"]
        code = "open('scratch', 'w').close(); open('/mnt/user-data/outputs/kept', 'w').close()"
        execute(client, code)
        manager.restart_kernel()
        client.wait_for_ready(timeout=60)
        listing = "sorted(os.listdir('.') + os.listdir('/mnt/user-data/outputs'))"
        answer = execute(client, "import os; " + listing)
        assert answer.result == "['kept', 'outputs']"
        second = asyncio.run(provisioner_of(manager).get_provisioner_info())["sandbox"]
        assert second != first
    assert [path.name for path in (folder / "outputs").iterdir()] == ["kept"]


def test_kernelspec_variables_with_passed_values_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are known by name, so that no snapshot contains them."""
    variables = {"HEADER": "Bearer ${TOKEN}", "SHORT": "$TOKEN", "OWN": "1", "OTHER": "$HOME"}
    monkeypatch.setenv("TOKEN", "s3cret")
    provisioner = GVisorProvisioner(
        kernel_id="", kernel_spec=KernelSpec(env=variables), environment=["TOKEN"]
    )
    plan = provisioner.plan_ahead("k", tmp_path)
    assert plan.environment["HEADER"] == "Bearer s3cret"
    assert plan.environment["OTHER"] == "$HOME"
    assert set(plan.substituted) == {"HEADER", "SHORT"}
