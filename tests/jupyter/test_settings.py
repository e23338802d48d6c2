"""Settings from Jupyter reach the sandbox; a wrong one is reported by name and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import KernelManager
from traitlets.config import Config

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.runtimes.runsc import command_line

from .. import leaks
from ..world import World
from .helpers import KERNEL, SANDBOXED, execute, running_kernel, wait_until

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="the local kernel has no settings")

WRONG = {
    "runtime": "crun",
    "image": "debian",
    "memory_limit": "lots",
    "cpu_shares": 0,
    "pids_limit": -1,
    "disk_limit": [],
    "uploads": "../elsewhere",
    "outputs": "/etc",
    "skills": "/nonexistent",
    "transcripts": "perhaps",
    "mounts": [{"source": "/usr", "destination": "/mnt/usr"}],
    "environment": "PATH",
    "start_timeout": 0,
    "restart": "never",
    "transport": "udp",
    "command": ["python"],
    "no_such_setting": 1,
}


@pytest.fixture(autouse=True)
def nothing_left_by_the_test(world: World, folder: Path) -> Iterator[None]:
    before = leaks.find_things(world, leaks.SANDBOX)
    yield
    left = leaks.find_leftovers(before, lambda: leaks.find_things(world, leaks.SANDBOX))
    assert not left, "left behind:\n" + "\n".join(sorted(left))


def start(settings: dict[str, Any], where: str) -> None:
    """Start a kernel with ``settings`` written in Jupyter's configuration or in a kernelspec."""
    manager = KernelManager(kernel_name=KERNEL)
    if where == "configuration":
        manager.config = Config({"GVisorProvisioner": settings})
    else:
        assert manager.kernel_spec is not None
        manager.kernel_spec.metadata["kernel_provisioner"]["config"] = settings
    try:
        manager.start_kernel()
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("where", ["configuration", "kernelspec"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_setting_is_reported(name: str, where: str, folder: Path) -> None:
    with pytest.raises(Exception, match=name) as error:
        start({name: WRONG[name]}, where)
    said = str(error.value)
    assert "What to do:" in said
    if name != "mounts":  # its error shows only the wrong part
        assert str(WRONG[name]).strip("[]'") in said
    assert list(folder.iterdir()) == []


def test_settings_reach_sandbox() -> None:
    settings = {"memory_limit": "1G", "environment": ["GK_PASSED"]}
    environment = {"GK_PASSED": "yes", "GK_SECRET": "no"}
    code = """
import json, os
info = json.load(open("/container_info.json"))
print(json.dumps([info, dict(os.environ)]))
"""
    with running_kernel(settings=settings, start={"env": environment}) as (_, client):
        info, inside = json.loads(execute(client, code).text)
    assert 1024**3 in find_numbers(info)
    assert inside["GK_PASSED"] == "yes"
    assert "GK_SECRET" not in inside


def test_variables_default_to_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GK_PASSED", "yes")
    monkeypatch.setenv("GK_SECRET", "no")
    with running_kernel(settings={"environment": ["GK_PASSED"]}) as (_, client):
        said = execute(client, "import os; print({k: v for k, v in os.environ.items()})").text
    assert "'GK_PASSED': 'yes'" in said
    assert "GK_SECRET" not in said


def find_numbers(value: Any) -> set[int]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*(find_numbers(item) for item in value))
    return {value} if isinstance(value, int) else set()


def test_kernel_variables_of_client_are_ignored(folder: Path) -> None:
    """JupyterLab and others pass KERNEL_* variables of the client on."""
    (folder / "here").touch()
    environment = {
        "KERNEL_MEMORY_LIMIT": "1T",
        "KERNEL_UPLOADS": "/",
        "KERNEL_RUNTIME": "none",
        "KERNEL_IMAGE": "none",
        "KERNEL_ENVIRONMENT": '["GK_SECRET"]',
        "KERNEL_MOUNTS": '[{"source": "/root", "target": "/mnt/root"}]',
        "GK_SECRET": "no",
    }
    code = "import os; print(os.listdir('/mnt/user-data/uploads'), os.listdir('/mnt'), *os.environ)"
    with running_kernel(start={"env": environment}) as (_, client):
        said = execute(client, code).text
    assert "here" in said
    assert "'root'" not in said
    assert not [word for word in said.split() if word.startswith("KERNEL_")]
    assert "GK_SECRET" not in said


def test_failed_start_shows_runsc_error(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``runsc`` that fails at ``run`` is on PATH before the real one."""
    program = tmp_path / "bin" / "runsc"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
case " $* " in
*" run "*) echo "creating container: the moon is in the wrong phase" >&2; exit 1 ;;
*) exec {shutil.which("runsc")} "$@" ;;
esac
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(Exception, match="the moon is in the wrong phase"):
        start({}, "configuration")
    assert list(folder.iterdir()) == []


def test_missing_runsc_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(command_line, "EXTRA_PATH", "")
    with pytest.raises(Exception, match="runsc") as error:
        start({}, "configuration")
    assert "What to do:" in str(error.value)
    assert list(folder.iterdir()) == []


def test_missing_command_is_reported(folder: Path) -> None:
    with pytest.raises(Exception, match="no-such-program"):
        start({"command": ["/usr/bin/no-such-program", "{connection_file}"]}, "configuration")
    assert list(folder.iterdir()) == []


def test_kernel_that_ends_at_once_leaves_nothing(folder: Path) -> None:
    """Its end may be noticed during the start or after it."""
    manager = KernelManager(kernel_name=KERNEL)
    command = ["python3", "-c", "raise SystemExit(3)", "{connection_file}"]
    manager.config = Config({"GVisorProvisioner": {"command": command}})
    with suppress(LaunchError):
        manager.start_kernel()
        wait_until(lambda: not manager.is_alive(), "the end of the kernel")
        manager.shutdown_kernel()
    assert not manager.is_alive()
    assert list(folder.iterdir()) == []
