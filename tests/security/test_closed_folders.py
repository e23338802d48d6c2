"""A kernel takes away the rights of what it may write: no later start fails by that, and nothing
that is copied is lost."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gvisor_kernel.artifacts.outputs import list_outputs
from gvisor_kernel.config.jupyter_config import SandboxSettings
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import SettingError
from gvisor_kernel.host.folders import find_ancestry, open_path
from gvisor_kernel.node.files import Copy
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.mounts.folders import open_inputs
from gvisor_kernel.runtimes.mounts.written_folders import note_written
from gvisor_kernel.runtimes.state import records

from .inside import attacker, names_in, outputs_of

CLOSE = """
for place in ("/mnt/user-data/outputs", "/data"):
    Path(place, "inner").mkdir()
    Path(place, "kept").write_text("kept")
    os.chmod(place + "/inner", 0)
    os.chmod(place, 0)
found = None
"""
AGAIN = """
found = []
for place in ("/mnt/user-data/outputs", "/data"):
    found.append(Path(place, "kept").read_text())
    Path(place, "again").write_text("again")
"""
is_ordinary = pytest.mark.skipif(os.geteuid() == 0, reason="no mode keeps root out")


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "kept").write_text("kept")
    folder.chmod(0)
    yield folder
    folder.chmod(0o700)


@pytest.mark.parametrize("way", ["restored", "cold"])
def test_folders_that_a_kernel_has_closed_are_open_at_the_next_start(
    way: str, tmp_path: Path
) -> None:
    folder, mounted = tmp_path / "notebooks", tmp_path / "data"
    folder.mkdir()
    mounted.mkdir()
    settings = {
        "mounts": [{"source": str(mounted), "target": "/data", "read_only": False}],
        "snapshot": "off" if way == "cold" else "auto",
    }
    with attacker(folder, settings) as kernel:
        kernel.run(CLOSE)
    assert stat.S_IMODE((folder / "outputs").stat().st_mode) == 0
    with attacker(folder, settings) as kernel:
        assert kernel.run(AGAIN) == ["kept", "kept"]
    for place in (folder / "outputs", mounted):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert names_in(place) == ["again", "inner", "kept"]
        (place / "inner").chmod(0o700)


@pytest.mark.parametrize("way", ["outputs", "link", "mount"])
def test_only_a_folder_that_a_kernel_may_have_written_is_opened_again(
    way: str, closed: Path
) -> None:
    named = closed
    if way == "link":
        named = closed.with_name("link")
        named.symlink_to(closed)
    mount = {"source": str(named), "target": "/data", "read_only": False}
    spec = SandboxSettings(
        outputs=None if way == "mount" else str(named), mounts=[mount] if way == "mount" else []
    ).sandbox_spec()
    if os.geteuid() == 0:  # no mode keeps root out
        outputs_of(spec, closed.parent)
    else:
        with pytest.raises(SettingError, match=f"{closed}: .*chmod u\\+rwx {closed}"):
            outputs_of(spec, closed.parent)
    assert stat.S_IMODE(closed.stat().st_mode) == 0
    with open_path(str(closed)) as opened, records.locked():
        note_written([opened])
    outputs_of(spec, closed.parent)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_a_folder_named_outputs_that_no_kernel_has_written_stays_closed(closed: Path) -> None:
    outputs = closed.rename(closed.with_name("outputs"))
    try:
        kept = outputs_of(SandboxSpec(), outputs.parent)
        assert kept == (str(outputs) if os.geteuid() == 0 else None)
        assert stat.S_IMODE(outputs.stat().st_mode) == 0
    finally:
        outputs.rename(closed)


@is_ordinary
@pytest.mark.parametrize("name", ["uploads", "mounts"])
def test_a_folder_that_kernels_only_read_is_named_with_a_command(name: str, closed: Path) -> None:
    """Its user has closed it, and nobody else."""
    value = str(closed) if name == "uploads" else [{"source": str(closed), "target": "/data"}]
    spec = SandboxSettings(**{name: value}).sandbox_spec()
    request = LaunchRequest("gvisor-python", "an id", closed.parent, "/usr/bin/python3", {})
    with ExitStack() as stack, pytest.raises(SettingError) as raised:
        open_inputs(spec, request, stack)
    assert f"chmod u+rwx {closed}" in str(raised.value)
    assert stat.S_IMODE(closed.stat().st_mode) == 0


@is_ordinary
def test_a_folder_that_is_closed_while_it_is_opened_is_named(closed: Path) -> None:
    with open_path(str(closed)) as root, pytest.raises(PermissionError) as raised:
        find_ancestry(root)
    assert raised.value.filename == str(closed)


@is_ordinary
def test_a_list_of_closed_outputs_names_them_with_a_command(closed: Path) -> None:
    with open_path(str(closed)) as root, pytest.raises(PermissionError, match=r"chmod u\+rwx"):
        list_outputs(root)
    closed.chmod(0o700)
    (closed / "inner").mkdir(mode=0)
    with open_path(str(closed)) as root:
        listing = list_outputs(root)
    assert [file.path for file in listing.files] == ["kept"]
    assert listing.more


@is_ordinary
def test_outputs_that_a_kernel_has_closed_on_a_node_wait_to_be_fetched(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy")
    copy.outputs.mkdir(parents=True)
    (copy.outputs / "made").touch()
    copy.mark_used()
    copy.outputs.chmod(0)
    assert copy.finish()
    assert (copy.outputs / "made").exists()
    copy.outputs.chmod(0)
    copy.remove()
    assert not copy.path.exists()
