"""Links that a kernel, or whoever writes its folder, plants for a later kernel to follow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gvisor_kernel.config import SandboxSpec
from gvisor_kernel.errors import LaunchError, SettingError
from gvisor_kernel.runtimes import staging
from gvisor_kernel.runtimes.plan import check_folder, find_outputs, find_uploads
from gvisor_kernel.runtimes.state import state_root
from gvisor_kernel.spec.layout import OUTPUTS, Bind

from ..jupyter.helpers import running_kernel
from ..runtimes.conftest import make_request
from .inside import Kernel, names_in

pytestmark = pytest.mark.usefixtures("unharmed")


def test_a_planted_link_named_outputs(ground: Path, tmp_path: Path) -> None:
    """A notebook in a folder where a kernel, or a cloned repository, has left ``outputs -> …``."""
    (tmp_path / "outputs").symlink_to(ground / "private")
    request = make_request(tmp_path)
    with pytest.raises(SettingError, match="leads to") as caught:
        find_outputs(SandboxSpec(), request)
    assert str(ground / "private") in str(caught.value)
    with pytest.raises(SettingError, match="leads to"):
        find_outputs(SandboxSpec(outputs="outputs/deeper"), request)
    assert names_in(ground / "private") == ["secret"]


def test_a_planted_link_to_the_system(tmp_path: Path) -> None:
    for target in ("/etc", "/usr/lib", "/proc", "/", "/root"):
        (tmp_path / "outputs").symlink_to(target)
        with pytest.raises(SettingError):
            find_outputs(SandboxSpec(), make_request(tmp_path))
        (tmp_path / "outputs").unlink()


def test_a_link_to_a_sibling_is_no_way_out(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "outputs").symlink_to("results")
    found = find_outputs(SandboxSpec(), make_request(tmp_path))
    assert found.path == str(tmp_path / "results")


def test_a_planted_link_named_by_uploads(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(ground / "private")
    with pytest.raises(SettingError, match="leads to"):
        find_uploads(SandboxSpec(uploads="data"), make_request(tmp_path))


def test_a_planted_link_as_the_notebooks_folder(ground: Path, tmp_path: Path) -> None:
    """``outputs/more -> …``, opened in a file browser, and a notebook started there."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "more").symlink_to(ground / "private")
    request = make_request(tmp_path / "outputs" / "more")
    with pytest.raises(LaunchError, match="outputs/more"):
        check_folder(SandboxSpec(), request)
    with pytest.raises(LaunchError, match="outputs/more"):
        check_folder(SandboxSpec(outputs=str(tmp_path / "outputs")), request)
    (tmp_path / "mine").symlink_to(ground / "private")  # a person's own link is theirs to follow
    check_folder(SandboxSpec(), make_request(tmp_path / "mine"))


def test_a_planted_link_and_a_whole_kernel(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "outputs").symlink_to(ground / "private")
    with (
        pytest.raises(SettingError, match="leads to"),
        running_kernel(start={"cwd": str(tmp_path)}),
    ):
        pass
    assert names_in(ground / "private") == ["secret"]


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's sandbox has no such mounts")
@pytest.mark.parametrize("way", ["outputs", "deeper/outputs"])
def test_a_link_planted_while_a_kernel_starts(ground: Path, tmp_path: Path, way: str) -> None:
    """Between the look and the mount: by whoever writes the folder, another kernel for one."""
    request = make_request(tmp_path)
    (tmp_path / "deeper").mkdir()
    found = find_outputs(SandboxSpec(outputs=way), request)
    assert found.path is not None
    Path(found.path).rmdir()
    if "/" in way:
        (tmp_path / "deeper").rmdir()
        (ground.parent / "aim" / "outputs").mkdir(parents=True, exist_ok=True)
        (tmp_path / "deeper").symlink_to(ground.parent / "aim")
    else:
        Path(found.path).symlink_to(ground / "private")
    bind = Bind(found.path, OUTPUTS, read_only=False, foreign=True)
    with pytest.raises(LaunchError, match="symbolic links"):
        staging._clone_tree(bind)


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
    for folder in (runtime, runtime.parent, tmp_path, state_root(), state_root().parent):
        assert find_uploads(SandboxSpec(), make_request(folder)) is None
