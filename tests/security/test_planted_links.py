"""Links that a kernel, or whoever writes its folder, plants for a later kernel to follow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gvisor_kernel.config.settings import ExtraMount, SandboxSpec
from gvisor_kernel.errors import LaunchError, SettingError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.runtimes.mounts.written_folders import note_written
from gvisor_kernel.runtimes.state import records

from ..jupyter.helpers import running_kernel
from .inside import Kernel, names_in, outputs_of, uploads_of

pytestmark = pytest.mark.usefixtures("unharmed")


def note(folder: Path) -> None:
    """A sandbox has been able to write ``folder``."""
    with open_path(str(folder)) as opened, records.locked():
        note_written([opened])


def test_a_planted_link_named_outputs(ground: Path, tmp_path: Path) -> None:
    """A notebook in a folder where a kernel, or a cloned repository, has left ``outputs -> …``."""
    (tmp_path / "outputs").symlink_to(ground / "private")
    with pytest.raises(SettingError, match="through a symbolic link") as caught:
        outputs_of(SandboxSpec(), tmp_path)
    assert str(ground / "private") in str(caught.value)
    with pytest.raises(SettingError, match="through a symbolic link"):
        outputs_of(SandboxSpec(outputs="outputs/deeper"), tmp_path)
    assert names_in(ground / "private") == ["secret"]


def test_a_planted_link_to_the_system(tmp_path: Path) -> None:
    for target in ("/etc", "/usr/lib", "/proc", "/", "/root"):
        (tmp_path / "outputs").symlink_to(target)
        with pytest.raises(SettingError):
            outputs_of(SandboxSpec(), tmp_path)
        (tmp_path / "outputs").unlink()


@pytest.mark.parametrize("target", ["results", ".git/hooks", "."])
def test_a_link_to_a_sibling(tmp_path: Path, target: str) -> None:
    """A cloned repository may bring one, and what is beside it may be run later."""
    (tmp_path / target).mkdir(parents=True, exist_ok=True)
    (tmp_path / "outputs").symlink_to(target)
    with pytest.raises(SettingError, match="through a symbolic link"):
        outputs_of(SandboxSpec(), tmp_path)


def test_a_planted_link_named_by_uploads(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(ground / "private")
    with pytest.raises(SettingError, match="through a symbolic link"):
        uploads_of(SandboxSpec(uploads="data"), tmp_path)


def test_a_planted_link_as_the_notebooks_folder(ground: Path, tmp_path: Path) -> None:
    """``outputs/more -> …``, opened in a file browser, and a notebook started there."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "more").symlink_to(ground / "private")
    for setting in ("outputs", str(tmp_path / "outputs"), "results"):
        with pytest.raises(LaunchError, match="outputs/more"):
            uploads_of(SandboxSpec(outputs=setting), tmp_path / "outputs" / "more")
    (tmp_path / "mine").symlink_to(ground / "private")  # a person's own link is theirs to follow
    assert uploads_of(SandboxSpec(), tmp_path / "mine") == str(ground / "private")


def test_a_link_planted_in_other_outputs(ground: Path, tmp_path: Path) -> None:
    """By a kernel with another setting, long ago; and the folder was moved since."""
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
def test_another_users_link(ground: Path, tmp_path: Path) -> None:
    """It may lead to what is theirs, and nowhere else."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 4711, 4711)
    for name, target in (("fine", theirs), ("mine", ground / "private")):
        (tmp_path / name).symlink_to(target)
        os.chown(tmp_path / name, 4711, 4711, follow_symlinks=False)
    assert uploads_of(SandboxSpec(), tmp_path / "fine") == str(theirs)
    with pytest.raises(LaunchError, match="uid 4711"):
        uploads_of(SandboxSpec(), tmp_path / "mine")


def test_a_planted_link_and_a_whole_kernel(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "outputs").symlink_to(ground / "private")
    with (
        pytest.raises(SettingError, match="through a symbolic link"),
        running_kernel(start={"cwd": str(tmp_path)}),
    ):
        pass
    assert names_in(ground / "private") == ["secret"]


def test_a_planted_link_and_resolve_path(kernel: Kernel, outputs: Path, ground: Path) -> None:
    """What asks where a file of the kernel's is on the host is not led out of outputs."""
    kernel.run(f"""
        os.symlink({str(ground / "private")!r}, "/mnt/user-data/outputs/way")
        os.symlink({str(ground / "private/secret")!r}, "/mnt/user-data/outputs/secret")
        found = None
    """)
    resolve = kernel.manager.provisioner.resolve_path  # type: ignore[union-attr]
    assert resolve("/mnt/user-data/outputs/way/secret") is None
    assert resolve("/mnt/user-data/outputs/secret") is None
    assert resolve("/mnt/user-data/outputs/../../etc/passwd") is None


def test_the_folder_of_jupyters_own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tokens and connection files are is no folder to be shown by default."""
    runtime = tmp_path / "jupyter" / "runtime"
    runtime.mkdir(parents=True)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(runtime))
    for folder in (
        runtime,
        runtime.parent,
        tmp_path,
        records.state_root(),
        records.state_root().parent,
    ):
        assert uploads_of(SandboxSpec(), folder) is None
    for folder in (runtime.parent, records.state_root(), records.state_root().parent):
        with pytest.raises(SettingError, match="keys of kernels"):
            outputs_of(SandboxSpec(outputs=str(folder)), tmp_path)
