"""What a start needs of the system, and what is read of a runtime that failed."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host import commands
from gvisor_kernel.host.folders import open_real
from gvisor_kernel.host.stage import Source, clone_all
from gvisor_kernel.runtimes.runsc import staging
from gvisor_kernel.runtimes.runsc.starting import read_panic

from .conftest import root_only


def test_panic_is_the_first_line_of_its_log(tmp_path: Path) -> None:
    path = tmp_path / "panic.log"
    path.write_bytes(b"\n\x1b[31mpanic: " + b"x" * 300 + b"\n\ngoroutine 1 [running]:\n")
    assert read_panic(path) == "[31mpanic: " + "x" * (200 - len("[31mpanic: "))


def test_no_panic_is_read_from_what_is_not_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "panic.log"
    assert read_panic(path) == ""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path.symlink_to(secret)
    assert read_panic(path) == ""
    path.unlink()
    os.mkfifo(path)
    assert read_panic(path) == ""


@root_only
def test_owners_are_mapped_by_the_unshare_of_the_system_not_of_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, 4713, 4714)  # no other test has this owner, whose namespace is kept
    monkeypatch.setenv("PATH", str(tmp_path))
    with open_real(str(folder)) as opened:
        source = Source(opened.path, opened.identity, read_only=False, foreign=True)
        with monkeypatch.context() as patch:
            patch.setattr(commands, "PATH", str(tmp_path))
            with pytest.raises(LaunchError) as caught:
                clone_all(ExitStack(), [source], partial(staging._map_owner, 0))
        assert caught.value.fact == f"unshare does not exist in {tmp_path}."
        assert "util-linux" in caught.value.hint
        assert staging.can_map_owner(opened)
