"""A kernel that would see a secret without its route does not start."""

from __future__ import annotations

from pathlib import Path

import pytest

from gvisor_kernel.config.mounts import ExtraMount
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.egress.kinds import HostsRoute, PackagesRoute, Route, UrlRoute
from gvisor_kernel.egress.routes import check_exposure
from gvisor_kernel.errors import SettingError

OTHERS: list[Route] = [PackagesRoute(), HostsRoute("web", ("a.b:1",)), UrlRoute("x", "https://a.b")]


def route(secret: str) -> UrlRoute:
    return UrlRoute("api", "https://example.org", secret, "X-Key: {secret}")


def test_secret_variable_is_not_passed_on() -> None:
    spec = SandboxSpec(environment=("A", "API_KEY"))
    check_exposure([*OTHERS, route("env:B"), route("keyring:A/API_KEY")], spec, Path("/srv"))
    with pytest.raises(SettingError, match=r"without API_KEY.*the route api"):
        check_exposure([*OTHERS, route("env:API_KEY")], spec, Path("/srv"))


@pytest.mark.parametrize("file", ["key", "below/key", "outputs/key"])
def test_secret_file_is_not_in_the_notebooks_folder(tmp_path: Path, file: str) -> None:
    with pytest.raises(SettingError, match="uploads"):
        check_exposure([route(f"file:{tmp_path}/{file}")], SandboxSpec(), tmp_path)
    check_exposure([route(f"file:{tmp_path}-other/{file}")], SandboxSpec(), tmp_path)
    check_exposure(
        [route(f"file:{tmp_path}/{file}")], SandboxSpec(uploads=None, outputs=None), tmp_path
    )


def test_key_of_saved_kernels_is_not_in_the_notebooks_folder(tmp_path: Path) -> None:
    spec = SandboxSpec(hibernate_key=f"file:{tmp_path}/below/key")
    with pytest.raises(SettingError, match="without the key of saved kernels"):
        check_exposure([], spec, tmp_path)
    check_exposure([], spec, tmp_path / "other")
    check_exposure([], SandboxSpec(hibernate_key="keyring:a/b"), tmp_path)


def test_secret_file_is_not_in_another_shown_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    secret = route(f"file:{tmp_path}/data/key")
    for spec in (
        SandboxSpec(uploads=str(tmp_path / "link")),
        SandboxSpec(uploads=None, outputs=str(tmp_path / "data")),
        SandboxSpec(uploads=None, mounts=(ExtraMount(str(tmp_path), "/mnt/data"),)),
        SandboxSpec(uploads=None, mounts=(ExtraMount(f"{tmp_path}/data/key", "/mnt/key"),)),
    ):
        with pytest.raises(SettingError, match="the route api"):
            check_exposure([secret], spec, Path("/srv"))


def test_secret_file_is_not_among_the_skills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    mine = SandboxSpec(uploads=None, skills=str(tmp_path / "mine"))
    for folder, spec in (
        (tmp_path / "mine", mine),
        (tmp_path / "data/gvisor-kernel/skills", SandboxSpec(uploads=None)),
    ):
        for part in ("public", "examples"):
            with pytest.raises(SettingError, match="skills"):
                check_exposure([route(f"file:{folder}/{part}/one/key")], spec, Path("/srv"))
        check_exposure([route(f"file:{folder}/key")], spec, Path("/srv"))
    check_exposure([route(f"file:{tmp_path}/mine/public/key")], SandboxSpec(), Path("/srv"))


def test_home_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    check_exposure([route(f"file:{tmp_path}/.config/key")], SandboxSpec(), tmp_path)
