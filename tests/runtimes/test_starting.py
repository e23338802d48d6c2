"""What is read of a runtime that failed."""

from __future__ import annotations

import os
from pathlib import Path

from gvisor_kernel.runtimes.runsc.starting import read_panic


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
