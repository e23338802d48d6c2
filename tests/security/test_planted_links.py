"""Symbolic links that a kernel, or a cloned repository, plants for a later kernel to follow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gvisor_kernel.config.mounts import ExtraMount
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import LaunchError, SettingError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.runtimes.mounts.written_folders import note_written
from gvisor_kernel.runtimes.state import records

from ..jupyter.helpers import running_kernel
from .inside import Kernel, names_in, outputs_of, uploads_of

pytestmark = pytest.mark.usefixtures("unharmed")


def note(folder: Path) -> None:
    """Record that a sandbox was able to write ``folder``."""
    with open_path(str(folder)) as opened, records.locked():
        note_written([opened])


def test_symlink_named_outputs_is_refused(ground: Path, tmp_path: Path) -> None:
    """A kernel or a cloned repository has left ``outputs -> …`` in the notebook's folder."""
    (tmp_path / "outputs").symlink_to(ground / "private")
    with pytest.raises(SettingError, match="through a symbolic link") as caught:
        outputs_of(SandboxSpec(), tmp_path)
    assert str(ground / "private") in str(caught.value)
    with pytest.raises(SettingError, match="through a symbolic link"):
        outputs_of(SandboxSpec(outputs="outputs/deeper"), tmp_path)
    assert names_in(ground / "private") == ["secret"]


def test_outputs_symlink_to_system_is_refused(tmp_path: Path) -> None:
    for target in ("/etc", "/usr/lib", "/proc", "/", "/root"):
        (tmp_path / "outputs").symlink_to(target)
        with pytest.raises(SettingError):
            outputs_of(SandboxSpec(), tmp_path)
        (tmp_path / "outputs").unlink()


@pytest.mark.parametrize("target", ["results", ".git/hooks", "."])
def test_outputs_symlink_to_sibling_is_refused(tmp_path: Path, target: str) -> None:
    """A cloned repository may contain one, and files in the sibling folder may be run later."""
    (tmp_path / target).mkdir(parents=True, exist_ok=True)
    (tmp_path / "outputs").symlink_to(target)
    with pytest.raises(SettingError, match="through a symbolic link"):
        outputs_of(SandboxSpec(), tmp_path)


def test_symlink_named_by_uploads_is_refused(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(ground / "private")
    with pytest.raises(SettingError, match="through a symbolic link"):
        uploads_of(SandboxSpec(uploads="data"), tmp_path)


def test_notebook_folder_through_planted_symlink_is_refused(ground: Path, tmp_path: Path) -> None:
    """``outputs/more -> …`` was opened in a file browser, and a notebook started there."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "more").symlink_to(ground / "private")
    for setting in ("outputs", str(tmp_path / "outputs"), "results"):
        with pytest.raises(LaunchError, match="outputs/more"):
            uploads_of(SandboxSpec(outputs=setting), tmp_path / "outputs" / "more")
    (tmp_path / "mine").symlink_to(ground / "private")  # a person's own link is followed
    assert uploads_of(SandboxSpec(), tmp_path / "mine") == str(ground / "private")


def test_symlink_in_previously_written_folder_is_refused(ground: Path, tmp_path: Path) -> None:
    """A kernel with another setting planted it earlier; the folder may have been moved since."""
    results = tmp_path / "results"
    results.mkdir()
    note(results)
    (results / "more").symlink_to(ground / "private")
    (results / "file").symlink_to(ground / "private" / "secret")
    target = "/mnt/data"
    for place in (results, tmp_path / "moved"):
        if place != results:
            results.rename(place)
        with pytest.raises(LaunchError, match="more"):
            uploads_of(SandboxSpec(), place / "more")
        for spec in (
            SandboxSpec(uploads=str(place / "more")),
            SandboxSpec(outputs=str(place / "more")),
            SandboxSpec(outputs=str(place / "more" / "new")),
            SandboxSpec(skills=str(place / "more")),
            SandboxSpec(mounts=(ExtraMount(str(place / "file"), target),)),
            SandboxSpec(mounts=(ExtraMount(str(place / "more"), target, read_only=False),)),
        ):
            with pytest.raises(SettingError, match="a kernel may have made this link"):
                outputs_of(spec, tmp_path)
    assert names_in(ground / "private") == ["secret"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's link")
def test_other_users_symlink_may_lead_only_to_own_files(ground: Path, tmp_path: Path) -> None:
    """It may lead only to files of that user."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 4711, 4711)
    for name, target in (("fine", theirs), ("mine", ground / "private")):
        (tmp_path / name).symlink_to(target)
        os.chown(tmp_path / name, 4711, 4711, follow_symlinks=False)
    assert uploads_of(SandboxSpec(), tmp_path / "fine") == str(theirs)
    with pytest.raises(LaunchError, match="uid 4711"):
        uploads_of(SandboxSpec(), tmp_path / "mine")


def test_kernel_does_not_start_with_planted_outputs_symlink(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "outputs").symlink_to(ground / "private")
    with (
        pytest.raises(SettingError, match="through a symbolic link"),
        running_kernel(start={"cwd": str(tmp_path)}),
    ):
        pass
    assert names_in(ground / "private") == ["secret"]


def test_resolve_path_does_not_follow_symlinks_out_of_outputs(
    kernel: Kernel, outputs: Path, ground: Path
) -> None:
    """A front end that maps a kernel's path to the host is not led out of outputs."""
    kernel.run(f"""
        os.symlink({str(ground / "private")!r}, "/mnt/user-data/outputs/way")
        os.symlink({str(ground / "private/secret")!r}, "/mnt/user-data/outputs/secret")
        found = None
    """)
    resolve = kernel.manager.provisioner.resolve_path  # type: ignore[union-attr]
    assert resolve("/mnt/user-data/outputs/way/secret") is None
    assert resolve("/mnt/user-data/outputs/secret") is None
    assert resolve("/mnt/user-data/outputs/../../etc/passwd") is None


def test_folders_of_jupyter_keys_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders with tokens and connection files are not shown by default."""
    runtime = tmp_path / "jupyter" / "runtime"
    runtime.mkdir(parents=True)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(runtime))
    for folder in (
        runtime,
        runtime.parent,
        tmp_path,
        state_root(),
        state_root().parent,
    ):
        assert uploads_of(SandboxSpec(), folder) is None
    for folder in (runtime.parent, state_root(), state_root().parent):
        with pytest.raises(SettingError, match="keys of kernels"):
            outputs_of(SandboxSpec(outputs=str(folder)), tmp_path)
