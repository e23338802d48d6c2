"""Which uid a kernel has inside, and what it can do with it."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gvisor_kernel.runtimes.mounts.host_python import PythonTree, find_host_python
from gvisor_kernel.runtimes.runsc.description import choose_kernel_id
from gvisor_kernel.spec.oci import KERNEL_ID

from ..jupyter.helpers import execute, running_kernel
from ..world import WAYS
from .conftest import root_only


@pytest.fixture
def shown(tmp_path: Path) -> PythonTree:
    """The Python of an environment with a .pth file, all of it readable by everybody."""
    packages = tmp_path / "lib" / "python3" / "site-packages"
    packages.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for file in (tmp_path / "bin" / "python", tmp_path / "pyvenv.cfg", packages / "mine.pth"):
        file.touch()
        file.chmod(0o644)
    (tmp_path / "bin" / "python").chmod(0o755)
    found = find_host_python(sys.executable)
    python, top = str(tmp_path / "bin" / "python"), str(tmp_path)
    for path in (tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())):
        path.chmod(0o755)
    return replace(found, python=python, roots=(top,), prefixes=(top,), tree=None)


def test_ordinary_users_sandbox_has_one_uid(shown: PythonTree) -> None:
    assert choose_kernel_id(1000, shown) == 0


def test_root_image_has_one_uid(shown: PythonTree) -> None:
    assert choose_kernel_id(0, replace(shown, tree="/nonexistent")) == 0


@pytest.mark.parametrize(
    "closed",
    ["", "bin", "bin/python", "pyvenv.cfg", "lib", "lib/python3/site-packages/mine.pth"],
)
def test_interpreter_that_only_its_owner_can_read_has_one_uid(
    shown: PythonTree, closed: str, tmp_path: Path
) -> None:
    """PID 1 could not load it as another uid."""
    assert choose_kernel_id(0, shown) == KERNEL_ID
    path = tmp_path / closed
    path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
    assert choose_kernel_id(0, shown) == 0


WRITE_EVERYWHERE = """
import os, pathlib, subprocess
for where in ("/mnt/user-data/outputs", "/workspace", "/home/user", "/run", "/tmp", "/dev/shm"):
    for name in ("made", "made/deep"):
        os.mkdir(f"{where}/{name}")
    pathlib.Path(where, "made/file").write_text("1")
    assert os.stat(f"{where}/made/file").st_uid == os.getuid() == 1000
assert pathlib.Path("/workspace/mine").read_text() == "private"
pathlib.Path("/workspace/mine").write_text("changed")
subprocess.run("echo heard > /dev/stdout", shell=True, check=True)
"""


@root_only
@pytest.mark.slow
@pytest.mark.parametrize("way", ["mapped", "lent", "kept nowhere", "one uid"])
def test_kernel_owns_what_it_may_write(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside, and on the host as the notebook's owner."""
    (tmp_path / "mine").write_text("private")
    (tmp_path / "mine").chmod(0o600)
    for path in (tmp_path, tmp_path / "mine"):
        os.chown(path, 12345, 12346)
    settings = {**WAYS["restored"], "outputs": None} if way == "kept nowhere" else None
    if way == "lent":
        monkeypatch.setattr(
            "gvisor_kernel.runtimes.runsc.runtime.can_map_owner", lambda path: False
        )
    if way == "one uid":
        for module in ("runtime", "description"):
            name = f"gvisor_kernel.runtimes.runsc.{module}.choose_kernel_id"
            monkeypatch.setattr(name, lambda user, python_tree: 0)
    start = {"cwd": str(tmp_path)}
    with running_kernel(settings=settings, start=start) as (_, client):
        answer = execute(client, WRITE_EVERYWHERE)
        assert answer.status == "ok", answer.reply["content"]
    found = [tmp_path, *tmp_path.rglob("*")]
    assert len(found) == (2 if way == "kept nowhere" else 6)
    assert {(p.lstat().st_uid, p.lstat().st_gid) for p in found} == {(12345, 12346)}
    assert (tmp_path / "mine").read_text() == "private"
