"""Snapshots of an environment with editable installs: only the packages are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..jupyter.helpers import execute, kernel_log, running_kernel
from .conftest import build, packages_of

SETTINGS = {"preload": ["mine"]}
pytestmark = pytest.mark.once


def start(kernelspec: str, folder: Path, code: str) -> tuple[bool, str]:
    """Return whether a kernel is restored from a snapshot, and what ``code`` prints in it."""
    with running_kernel(kernelspec, start={"cwd": str(folder)}) as (manager, client):
        restored = "the kernel was restored from a snapshot" in kernel_log(manager)
        return restored, execute(client, code).text


def test_snapshot_covers_editable_installs(
    environment: Path, kernelspec: str, tmp_path: Path
) -> None:
    """One repository is beside the environment, one in it, together with a server's data."""
    mine, tool = tmp_path / "mine", environment / "src" / "tool"
    jupyter = environment / "share" / "jupyter"
    for path in (
        *(mine / "src/mine/__init__.py", mine / ".env", mine / "src/one.py"),
        *(tool / "tool/__init__.py", tool / ".git/config", jupyter / "kernels/k/kernel.json"),
        *(jupyter / "runtime/k.json", jupyter / "notebook_secret"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("value = 1\n")
    (packages_of(environment) / "mine.pth").write_text(f"{mine / 'src'}\n{tool}\n")
    code = f"""
import os, mine, one, tool
print(mine.value, one.value, tool.value)
print(*map(os.listdir, {[str(mine), str(tool), str(jupyter)]!r}))
"""
    build("--kernel", kernelspec)
    expected = "['src'] ['tool'] ['kernels']\n"
    assert start(kernelspec, tmp_path, code) == (True, f"1 1 1\n{expected}")
    (mine / "src" / "mine" / "__init__.py").write_text("value = 22\n")
    (mine / "src" / "one.py").write_text("value = 33\n")
    assert start(kernelspec, tmp_path, code) == (False, f"22 33 1\n{expected}")
