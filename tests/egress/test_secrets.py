"""Secrets of routes: where they may be, and that no error shows them."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

import pytest

from gvisor_kernel.errors import SecretError
from gvisor_kernel.host.secrets import MAX_SECRET, read_secret

KEY = "sk-live-0123456789abcdef"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a secret that only its owner can read."""
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    return path


def refuse(source: str, environment: dict[str, str] | None = None) -> str:
    """Return the text of the error that reading ``source`` raises; it must not contain the key."""
    with pytest.raises(SecretError) as caught:
        read_secret(source, environment)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in repr(error) + repr(vars(error))
        error = error.__context__
    assert caught.value.hint
    return str(caught.value)


def test_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GK_TEST_KEY", KEY)
    assert read_secret("env:GK_TEST_KEY") == KEY
    assert read_secret("env:A", {"A": f"{KEY}\r\n"}) == KEY
    assert "GK_TEST_KEY" in refuse("env:GK_TEST_KEY", {})


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_private_file_is_read(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert read_secret(f"file:{file}") == KEY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o700, 0o610, 0o666])
def test_file_that_others_can_access_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    text = refuse(f"file:{file}")
    assert f"has the mode 0{mode:o}" in text
    assert f"chmod 600 {file}" in text


def test_link_is_not_followed(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    assert str(file) in refuse(f"file:{link}")
    folder = tmp_path / "folder"
    folder.symlink_to(tmp_path)
    assert "symbolic link" in refuse(f"file:{folder}/key")


def test_file_with_two_names_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").hardlink_to(file)
    assert "2 names" in refuse(f"file:{file}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_file_of_another_user_is_refused(file: Path) -> None:
    os.chown(file, 12345, 12345)
    assert "belongs to uid 12345" in refuse(f"file:{file}")


def test_missing_file_and_other_kinds_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refuse(f"file:{tmp_path}/none")
    assert "not a regular file" in refuse(f"file:{tmp_path}")
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert "not a regular file" in refuse(f"file:{tmp_path}/fifo")
    assert "not a regular file" in refuse("file:/dev/null")


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "\n",
            f"{KEY}\r\nX-Other: 1",
            f"{KEY}\n\n",
            f"{KEY}\n{KEY}",
            f"{KEY}\0",
            f"{KEY}\x7f",
        ),
        *(
            f" {KEY}",
            f"{KEY} ",
            f"{KEY}\t",
            f"é{KEY}",
            f"{KEY}\u2028",
            KEY * MAX_SECRET,
            f"\n{KEY}",
        ),
    ],
)
def test_value_that_no_header_can_have_is_refused(tmp_path: Path, value: str) -> None:
    refuse("env:A", {"A": value})
    path = tmp_path / "key"
    path.write_bytes(value.encode())
    path.chmod(0o600)
    refuse(f"file:{path}")


def test_binary_file_is_refused(file: Path) -> None:
    file.write_bytes(b"\xff" + KEY.encode())
    assert "cannot be sent in a header" in refuse(f"file:{file}")


def test_secret_in_the_place_of_its_source_is_not_shown() -> None:
    refuse(KEY)
    refuse(f"plain:{KEY}")


class FakeKeyring(ModuleType):
    """A keyring with one password, and one back end that fails with it in its text."""

    def get_password(self, service: str, user: str) -> str | None:
        if service == "broken":
            raise RuntimeError(f"cannot decrypt {KEY}")
        return {("github/enterprise", "bot"): KEY}.get((service, user))


def test_keyring_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", FakeKeyring("keyring"))
    assert read_secret("keyring:github/enterprise/bot") == KEY
    assert "keyring set github ann" in refuse("keyring:github/ann")
    assert "RuntimeError" in refuse("keyring:broken/bot")


def test_missing_keyring_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert "gvisor-kernel[keyring]" in refuse("keyring:github/bot")
