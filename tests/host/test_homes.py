"""Homes are recognised by accounts, by place and by owner, and refused for every server user."""

from __future__ import annotations

import logging
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvisor_kernel.config.settings import DEFAULTS, SandboxSpec
from gvisor_kernel.errors import SettingError
from gvisor_kernel.host import homes
from gvisor_kernel.host.homes import find_home
from gvisor_kernel.runtimes.mounts.folders import inspect_uploads

from ..config.test_settings import spec
from ..runtimes.conftest import make_request, root_only
from ..security.inside import outputs_of, uploads_of


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    homes._cache.clear()
    yield
    homes._cache.clear()


@pytest.fixture
def directory_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program instead of getent, which runs the script ``answer`` that the test writes."""
    program = tmp_path / "getent"
    program.write_text(f"#!/bin/sh\nshift\n. {tmp_path}/answer\n")
    program.chmod(0o755)
    monkeypatch.setattr(homes, "PROGRAMS", ("/no/such/program", str(program)))
    return tmp_path / "answer"


@pytest.fixture
def bobs_home(tmp_path: Path, directory_service: Path) -> Path:
    """The home of another account."""
    home = tmp_path / "people" / "bob"
    (home / "project").mkdir(parents=True)
    directory_service.write_text(f'[ "$1" ] || echo "bob:x:54321:54321::{home}:/bin/sh"\n')
    return home


def test_home_of_every_account_is_found() -> None:
    for account in pwd.getpwall():
        home = account.pw_dir
        if not Path(home).is_dir() or home == "/" or f"{home}/".startswith(homes.SYSTEM):
            continue
        assert find_home(home), home
        assert find_home(str(Path(home).parent)), home
        assert find_home(f"{home}/project") is None, home


@pytest.mark.parametrize("path", ["/", "/root", "/home", "/home/whoever", "/home/no/.."])
def test_standard_home_paths_are_homes(path: str) -> None:
    assert find_home(os.path.normpath(path))


@pytest.mark.parametrize("path", ["/usr", "/bin", "/usr/share", "/opt", "/home/ada/x"])
def test_other_paths_are_no_homes(path: str) -> None:
    assert find_home(path) is None


def test_home_of_server_user_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "people" / "ada"
    home.mkdir(parents=True)
    (tmp_path / "alias").symlink_to(home)
    monkeypatch.setenv("HOME", str(tmp_path / "alias"))
    for path in (home, home.parent):
        assert find_home(str(path)) == str(tmp_path / "alias")
    for path in (home / "venv", tmp_path / "people" / "ad", tmp_path / "people" / "adam"):
        assert find_home(str(path)) is None
    monkeypatch.setenv("HOME", "/")  # the value for a uid without an account in a container
    assert find_home(str(home)) is None


def test_home_of_service_account_counts_unless_it_is_a_system_path(
    tmp_path: Path, directory_service: Path
) -> None:
    """System paths are no homes, but other folders of service accounts are."""
    names = ("/", "//", "relative", "/nonexistent", "/bin", "/usr/sbin", "/dev/null", "/var/gone/x")
    names += ("", str(tmp_path / "www"), f"{tmp_path}//lib/../lib/db/")
    lines = [f"account-{n}:x:{n}:{n}::{name}:/bin/sh" for n, name in enumerate(names)]
    directory_service.write_text(
        "[ $1 ] || cat <<'END'\n" + "\n".join(("?", "::::", *lines)) + "\nEND\n"
    )
    (tmp_path / "www" / "site").mkdir(parents=True)
    (tmp_path / "lib" / "db").mkdir(parents=True)
    for path in (tmp_path / "www", tmp_path / "lib" / "db", tmp_path / "lib", tmp_path):
        assert find_home(str(path)), path
    for path in (tmp_path / "www" / "site", Path("/usr"), Path("/dev"), Path("/var/gone")):
        assert find_home(str(path)) is None, path


@root_only
def test_home_of_unlisted_account_is_found_by_owner(
    tmp_path: Path, directory_service: Path
) -> None:
    """The directory service does not list it, and the account names its home by a link."""
    home = tmp_path / "disk" / "bob"
    (home / "project").mkdir(parents=True)
    for path in (home, home / "project"):
        os.chown(path, 54321, 54321)
    (tmp_path / "bob").symlink_to(home)
    line = f"bob:x:54321:54321::{tmp_path / 'bob'}:/bin/sh"
    directory_service.write_text(f'for uid; do [ $uid != 54321 ] || echo "{line}"; done\n')
    for path in (home, home.parent):
        assert find_home(str(path)) == str(tmp_path / "bob")
    assert find_home(str(home / "project")) is None


@pytest.mark.parametrize("answer", ["exec sleep 600", "exec yes", "exit 2", "kill -9 $$"])
def test_directory_service_without_answer_blocks_no_start(
    answer: str, tmp_path: Path, directory_service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homes, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(homes, "MAX_BYTES", 100_000)
    directory_service.write_text(answer)
    assert find_home(str(tmp_path)) is None
    directory_service.write_text("echo asked >&2; exit 1")
    assert find_home(str(tmp_path)) is None
    assert find_home("/root")


def test_home_is_refused_as_uploads(bobs_home: Path, tmp_path: Path) -> None:
    """A home is refused for every server user, also for root."""
    for folder in (bobs_home, bobs_home.parent):
        assert uploads_of(DEFAULTS, folder) is None
        for uploads in (str(folder), "bob" if folder == bobs_home.parent else "project/.."):
            with pytest.raises(SettingError, match="home") as caught:
                uploads_of(SandboxSpec(uploads=uploads), folder)
            assert str(bobs_home) in caught.value.hint
        with pytest.raises(SettingError, match="choose one below it"):
            spec(uploads=str(folder))
    project = bobs_home / "project"
    assert uploads_of(DEFAULTS, project) == str(project)
    assert spec(uploads=str(project)).uploads == str(project)


def test_home_is_refused_as_outputs_and_writable_mount(bobs_home: Path) -> None:
    for folder in (bobs_home, bobs_home.parent):
        with pytest.raises(SettingError):
            spec(outputs=str(folder))
        with pytest.raises(SettingError):
            spec(mounts=[{"source": str(folder), "target": "/data", "read_only": False}])
        with pytest.raises(SettingError):
            outputs_of(SandboxSpec(outputs=str(folder)), bobs_home)
        assert spec(mounts=[{"source": str(folder), "target": "/data"}]).mounts
    with pytest.raises(SettingError):
        outputs_of(SandboxSpec(outputs="bob"), bobs_home.parent)
    assert outputs_of(DEFAULTS, bobs_home) == str(bobs_home / "outputs")


def test_log_says_once_what_to_do_about_a_notebook_in_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    with caplog.at_level(logging.INFO, "gvisor_kernel.runtimes.mounts.folders"):
        assert not inspect_uploads(SandboxSpec(), make_request(home))[0]  # before each restore
        assert uploads_of(SandboxSpec(), home) is None
    assert caplog.messages == [
        f"The kernel sees no files of {home}, which contains a home or Jupyter's own files: keep"
        " notebooks in a folder below it"
    ]
