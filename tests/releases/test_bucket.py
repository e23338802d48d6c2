"""Releases are fetched from a bucket with the layout of gVisor's, over TLS and a proxy."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.errors import ReleaseError
from gvisor_kernel.releases import BASE
from gvisor_kernel.releases import bucket as fetching
from gvisor_kernel.releases.bucket import Fetched, NotThere, fetch, find_machine, unpack

from .bucket import (
    HOST,
    NEW,
    OLD,
    Bucket,
    make_archive,
    newer_archive,
    newer_program,
    send_forever,
    send_half,
    send_halves,
    send_slowly,
    serving,
    system_program,
)

BODY = b"".join(bytes([number % 251]) * 997 for number in range(2000))
"""Two megabytes in which each part differs from the next."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with serving(tmp_path_factory.mktemp("bucket")) as found:
        yield found


@pytest.fixture
def bucket(shared: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket that is asked over its proxy."""
    for name, value in shared.environment.items():
        monkeypatch.setenv(name, value)
    for kept in (shared.files, shared.seen, shared.connects):
        kept.clear()
    shared.go.clear()
    yield shared
    shared.go.set()


def get(store: Path, release: str = NEW, **more: Any) -> Fetched:
    return fetch(BASE, [release], store, lambda words, done: None, **more)


def parts(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "partial").iterdir())


def sha512(data: bytes) -> str:
    return hashlib.sha512(data).hexdigest()


def test_an_archive_and_a_program_are_found(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY)
    bucket.put(OLD, "runsc", BODY[::-1])
    steps: list[tuple[str, float]] = []
    found = fetch(BASE, [NEW], tmp_path, lambda *step: steps.append(step))
    assert found.path.read_bytes() == BODY
    assert found.url == f"{BASE}/release/{NEW}/{find_machine()}/gvisor.tar.bz2"
    assert steps[0][0] == "Fetching gvisor.tar.bz2, 1.9 MiB"
    assert sorted(done for _, done in steps) == [done for _, done in steps]
    assert steps[-1][1] == 1
    assert get(tmp_path, OLD).path.read_bytes() == BODY[::-1]
    assert set(bucket.connects) == {f"{HOST}:443"}
    assert bucket.ranges == [None, None]


def test_the_first_release_that_is_there_is_taken(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("latest", "gvisor.tar.bz2", BODY)
    found = fetch(BASE, ["20990101", "latest"], tmp_path, lambda words, done: None)
    assert "/latest/" in found.url
    with pytest.raises(NotThere, match=r"There is no https://.*/runsc\.sha512 \(status 404\)"):
        get(tmp_path, "20990101")


def test_what_breaks_off_is_continued(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY, send=send_half)
    assert get(tmp_path).path.read_bytes() == BODY
    assert bucket.ranges == [None, f"bytes={len(BODY) // 2}-"]
    again = bucket.seen[-1][1]
    assert again["if-range"] == bucket.files[bucket.path(NEW, "gvisor.tar.bz2")].tag


def test_another_run_continues(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bucket.put(NEW, "gvisor.tar.bz2", BODY, send=send_halves)
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    with pytest.raises(ReleaseError, match="cannot be fetched") as raised:
        get(tmp_path)
    assert "gvisor-kernel runsc install --file" in raised.value.hint
    assert parts(tmp_path) == [sha512(BODY), f"{sha512(BODY)}.tag"]
    file.send = None
    found = get(tmp_path)
    assert found.path.read_bytes() == BODY
    assert bucket.ranges[-1] == f"bytes={len(BODY) // 2}-"
    asked = len(bucket.ranges)
    assert get(tmp_path).path.read_bytes() == BODY
    assert len(bucket.ranges) == asked, "what is there was fetched again"
    found.forget()
    assert parts(tmp_path) == []


def test_a_server_that_always_breaks_off_is_left(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY, send=send_halves)
    with pytest.raises(ReleaseError, match="cannot be fetched"):
        get(tmp_path)
    assert len(bucket.ranges) == fetching.ATTEMPTS


def test_a_part_of_another_version_is_not_continued(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest was given by hand, and the file was replaced between two runs."""
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    bucket.put(NEW, "gvisor.tar.bz2", BODY[::-1], send=send_halves)
    with pytest.raises(ReleaseError, match="cannot be fetched"):
        get(tmp_path, sha512=sha512(BODY))
    bucket.put(NEW, "gvisor.tar.bz2", BODY)
    assert get(tmp_path, sha512=sha512(BODY)).path.read_bytes() == BODY
    assert bucket.ranges[-1] is not None


def test_a_part_that_is_too_old_is_removed(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    for name, age in (("old", fetching.KEPT_SECONDS + 60), ("new", 60)):
        path = tmp_path / "partial" / name
        path.write_bytes(b"x")
        now = path.stat().st_mtime
        os.utime(path, (now - age, now - age))
    bucket.put(NEW, "gvisor.tar.bz2", BODY)
    get(tmp_path)
    assert {"new", sha512(BODY)} <= set(parts(tmp_path))
    assert "old" not in parts(tmp_path)


def test_a_wrong_digest_leaves_nothing(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY)
    with pytest.raises(ReleaseError, match="has not the digest that it should have, 0000"):
        get(tmp_path, sha512="0" * 128)
    bucket.files[bucket.path(NEW, "gvisor.tar.bz2")].body = BODY[:-1] + b"x"
    with pytest.raises(ReleaseError, match="has not the digest"):
        get(tmp_path)
    assert parts(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        b"<!DOCTYPE html><title>Sign in to the network</title>",
        b"",
        sha512(BODY).encode(),
        sha512(BODY).encode() + b"  runsc\n",
        sha512(BODY).encode() + b"  gvisor.tar.bz2\n" + sha512(BODY).encode() + b"  runsc\n",
        sha512(BODY).encode() + b"  gvisor.tar.bz2\n\n",
        sha512(BODY)[:64].encode() + b"  gvisor.tar.bz2\n",
        sha512(BODY).upper().encode() + b"  gvisor.tar.bz2\n",
        b"\xff" * 200,
        b"../" * 2000,
    ],
)
def test_what_is_no_digest_is_refused(bucket: Bucket, tmp_path: Path, text: bytes) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY)
    bucket.files[bucket.path(NEW, "gvisor.tar.bz2.sha512")].body = text
    with pytest.raises(ReleaseError, match=r"What should be the digest of gvisor\.tar\.bz2"):
        get(tmp_path)
    assert bucket.ranges == []
    assert parts(tmp_path) == []


def test_a_digest_for_a_binary_file_is_read(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY)
    digest = f"{sha512(BODY)} *gvisor.tar.bz2\n".encode()
    bucket.files[bucket.path(NEW, "gvisor.tar.bz2.sha512")].body = digest
    assert get(tmp_path).path.read_bytes() == BODY


def test_a_server_that_sends_without_end_is_left(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = {"Content-Length": "", "Transfer-Encoding": "chunked"}
    file = bucket.put(NEW, "gvisor.tar.bz2", BODY, headers=endless, send=send_forever)
    with pytest.raises(ReleaseError, match="has an unknown number of bytes"):
        get(tmp_path)
    file.headers, file.send = {"Content-Length": str(fetching.MAX_FILE + 1)}, None
    with pytest.raises(ReleaseError, match=f"has {fetching.MAX_FILE + 1} bytes"):
        get(tmp_path)
    assert parts(tmp_path) == []
    digest = bucket.files[bucket.path(NEW, "gvisor.tar.bz2.sha512")]
    digest.headers, digest.send = endless, send_forever
    with pytest.raises(ReleaseError, match="What should be the digest"):
        get(tmp_path)


def test_a_silent_server_is_left(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "READ_SECONDS", 0.3)
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    silent = {"Content-Length": str(len(BODY) * 2)}
    bucket.put(NEW, "gvisor.tar.bz2", BODY, headers=silent)
    with pytest.raises(ReleaseError, match="cannot be fetched: ReadTimeout"):
        get(tmp_path)
    assert (tmp_path / "partial" / sha512(BODY)).stat().st_size == len(BODY)


def test_a_slow_server_is_left(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "RATE_SECONDS", 0.3)
    bucket.put(NEW, "gvisor.tar.bz2", BODY, send=send_slowly)
    with pytest.raises(ReleaseError, match="comes too slowly"):
        get(tmp_path)
    assert 0 < (tmp_path / "partial" / sha512(BODY)).stat().st_size < len(BODY)


def test_a_slow_head_is_left(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time, and the head never ends."""
    monkeypatch.setattr(fetching, "HEAD_SECONDS", 0.5)
    bucket.put(NEW, "gvisor.tar.bz2", BODY, is_slow=True)
    with pytest.raises(ReleaseError, match="cannot be fetched: TimeoutError"):
        get(tmp_path)


@pytest.mark.parametrize(
    "target", ["https://example.com/runsc", "http://{host}/runsc", "https://["]
)
def test_a_redirect_to_another_host_is_refused(bucket: Bucket, tmp_path: Path, target: str) -> None:
    file = bucket.put(NEW, "gvisor.tar.bz2", BODY, status=302)
    file.headers["Location"] = target.format(host=HOST)
    with pytest.raises(ReleaseError, match=r"redirects to|cannot be fetched"):
        get(tmp_path)
    assert set(bucket.connects) == {f"{HOST}:443"}
    assert parts(tmp_path) == []


def test_a_redirect_on_the_same_host_is_followed(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY)
    file = bucket.put("latest", "gvisor.tar.bz2", BODY, status=302)
    file.headers["Location"] = f"../../{NEW}/{find_machine()}/gvisor.tar.bz2"
    assert get(tmp_path, "latest").path.read_bytes() == BODY
    file.headers["Location"] = "gvisor.tar.bz2"
    fetching_again = bucket.put("latest", "gvisor.tar.bz2", b"x", status=302)
    fetching_again.headers["Location"] = "gvisor.tar.bz2"
    with pytest.raises(ReleaseError, match="redirects more than 3 times"):
        get(tmp_path, "latest")


def test_an_encoded_answer_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY, headers={"Content-Encoding": "gzip"})
    with pytest.raises(ReleaseError, match="cannot be fetched"):
        get(tmp_path)


def test_a_certificate_of_another_authority_is_refused(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ReleaseError, match="CERTIFICATE_VERIFY_FAILED"):
        get(tmp_path)
    assert bucket.seen == []


def test_a_proxy_that_refuses_is_named(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="403") as raised:
        fetch("https://mirror.invalid/x", [NEW], tmp_path, lambda words, done: None)
    assert "https_proxy" in raised.value.hint
    assert bucket.connects == ["mirror.invalid:443"]


def test_a_proxy_that_cannot_be_used_is_named(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "gopher://127.0.0.1")
    with pytest.raises(ReleaseError, match="settings of the proxy"):
        get(tmp_path)


def test_too_little_space_is_said_before(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bucket.put(NEW, "gvisor.tar.bz2", BODY)
    monkeypatch.setattr(fetching, "UNPACKED", 10**9)
    with pytest.raises(ReleaseError, match=r"of free space, and .* are needed"):
        get(tmp_path)
    assert file.body == BODY
    assert parts(tmp_path) == []


@pytest.mark.parametrize(
    ("base", "known", "fits"),
    [
        (f"{BASE}/", False, True),
        ("http://127.0.0.1:8000/gvisor", False, False),
        ("http://127.0.0.1:8000/gvisor", True, True),
        ("file:///srv", True, False),
        ("https:///x", True, False),
        ("https://me:secret@host/x", True, False),
        ("host/x", True, False),
    ],
)
def test_only_https_is_fetched_without_a_digest(base: str, known: bool, fits: bool) -> None:
    if fits:
        assert fetching.check_base(base, known=known) == base.rstrip("/")
    else:
        with pytest.raises(ReleaseError) as raised:
            fetching.check_base(base, known=known)
        assert "secret" not in str(raised.value)


# -- what was fetched ------------------------------------------------------------------------------


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
        (b"<!DOCTYPE html><title>No</title>", "runsc is no program: it begins with b'<!DOCTYPE"),
        (b"", "runsc is no program"),
        (b"#!/bin/sh\nexit 0\n", "runsc is no program"),
        (ELF[:17], "runsc is no program"),
        (ELF.replace(b"\x02\x01", b"\x01\x01") + OWN, "runsc is no program"),
        (ELF + OTHER + bytes(100), "runsc is a program for"),
        (ELF + b"\xf3\x00" + bytes(100), "is a program for another kind of machine"),
        (b"BZh91AY&SY" + bytes(100), "cannot be unpacked"),
        (make_archive({"runsc": GOOD})[:-20], "cannot be unpacked"),
        (make_archive({"other": GOOD}), "The archive has no runsc"),
        (make_archive({"bin/runsc": GOOD}), "The archive has no runsc"),
        (make_archive({"runsc": b"#!/bin/sh"}), "runsc is no program"),
        (make_archive({"../runsc": GOOD}), "leads out of the root"),
        (make_archive({"/etc/runsc": GOOD}), "is absolute"),
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
    monkeypatch.setattr(fetching, "MAX_FILE", 50 * 1024 * 1024)
    monkeypatch.setattr(fetching, "MAX_UNPACKED", 60 * 1024 * 1024)
    with pytest.raises(ReleaseError, match="too large"):
        unpacked(make_archive({"runsc": GOOD + bytes(51 * 1024 * 1024)}), tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(ReleaseError, match="too many files"):
        unpacked(
            make_archive({"a": bytes(40 * 1024 * 1024), "b": bytes(40 * 1024 * 1024), "c": b""}),
            tmp_path / "other",
        )
