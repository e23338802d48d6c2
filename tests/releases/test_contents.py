"""What is taken of a file with a release, and what is refused."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from gvisor_kernel.errors import ReleaseError
from gvisor_kernel.releases import contents
from gvisor_kernel.releases.contents import find_machine, unpack

from .bucket import make_archive, newer_archive, newer_program, system_program


def unpacked(data: bytes, folder: Path) -> dict[str, bytes]:
    file, draft = folder / "file", folder / "draft"
    file.write_bytes(data)
    draft.mkdir()
    unpack(file, draft)
    found = (path for path in draft.rglob("*") if path.is_file())
    return {str(path.relative_to(draft)): path.read_bytes() for path in found}


def test_programs_are_unpacked(tmp_path: Path) -> None:
    assert unpacked(newer_archive(), tmp_path) == {
        "runsc": newer_program(),
        "gvisor-bin/runsc-metric-server": Path("/bin/true").read_bytes(),
    }


def test_a_program_is_taken_as_it_is(tmp_path: Path) -> None:
    assert unpacked(system_program(), tmp_path) == {"runsc": system_program()}


ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00"
OTHER = {"x86_64": b"\xb7\x00", "aarch64": b"\x3e\x00"}[find_machine()]
OWN = {"aarch64": b"\xb7\x00", "x86_64": b"\x3e\x00"}[find_machine()]
GOOD = ELF + OWN + bytes(100)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<!DOCTYPE html><title>No</title>", "runsc is no program: it begins with '<!DOCTYPE"),
        (b"", "runsc is no program"),
        (b"#!/bin/sh\nexit 0\n", "runsc is no program"),
        (ELF[:17], "runsc is no program"),
        (ELF.replace(b"\x02\x01", b"\x01\x01") + OWN, "runsc is no program"),
        (ELF + OTHER + bytes(100), "runsc is a program for"),
        (ELF + b"\xf3\x00" + bytes(100), "is a program for another kind of machine"),
        (b"BZh91AY&SY" + bytes(100), "cannot be unpacked"),
        (make_archive({"runsc": GOOD})[:-20], "cannot be unpacked"),
        (make_archive({"other": GOOD}), "it has no runsc"),
        (make_archive({"bin/runsc": GOOD}), "it has no runsc"),
        (make_archive({"runsc": b"#!/bin/sh"}), "runsc is no program"),
        (make_archive({"../runsc": GOOD}), "leads out of the root"),
        (make_archive({"/etc/runsc": GOOD}), "is absolute"),
        (make_archive({"runsc": GOOD, "gvisor-bin": GOOD}), "'gvisor-bin' is no program"),
        (make_archive({"gvisor-bin/a/b": GOOD}), "'gvisor-bin/a/b' is no program"),
        (make_archive({"runsc/runsc": GOOD}), "'runsc/runsc' is no program"),
        (make_archive({}, runsc=tarfile.SYMTYPE), "'runsc' is no program"),
        (make_archive({"runsc": GOOD}, **{"gvisor-bin": tarfile.SYMTYPE}), "is no program"),
        (make_archive({"runsc": GOOD}, **{"gvisor-bin/x": tarfile.FIFOTYPE}), "is no program"),
        (make_archive({"runsc": GOOD, "./runsc": GOOD}), "it has 'runsc' twice"),
        (make_archive({f"file{n}": b"" for n in range(200)}), "too many files"),
    ],
)
def test_what_is_no_program_of_this_machine_is_refused(
    tmp_path: Path, data: bytes, why: str
) -> None:
    with pytest.raises(ReleaseError) as raised:
        unpacked(data, tmp_path)
    assert why in str(raised.value)


def test_an_archive_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_FILE", 5 * 1024 * 1024)
    monkeypatch.setattr(contents, "MAX_UNPACKED", 6 * 1024 * 1024)
    with pytest.raises(ReleaseError, match="too large"):
        unpacked(make_archive({"runsc": GOOD + bytes(6 * 1024 * 1024)}), tmp_path)
    (tmp_path / "skipped").mkdir()
    with pytest.raises(ReleaseError, match="'other' is too large"):  # before it is read over
        unpacked(make_archive({"other": bytes(6 * 1024 * 1024)}), tmp_path / "skipped")
    (tmp_path / "other").mkdir()
    with pytest.raises(ReleaseError, match="too many files"):
        unpacked(
            make_archive({"a": bytes(4 * 1024 * 1024), "b": bytes(4 * 1024 * 1024), "c": b""}),
            tmp_path / "other",
        )
