"""Releases are fetched from a bucket with the layout of gVisor's, over TLS and a proxy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.errors import ReleaseError
from gvisor_kernel.releases import BASE
from gvisor_kernel.releases import bucket as fetching
from gvisor_kernel.releases.bucket import NotThere, fetch
from gvisor_kernel.releases.contents import MAX_FILE, find_machine

from .bucket import (
    HOST,
    NEW,
    OLD,
    Bucket,
    send_forever,
    send_half,
    send_halves,
    send_slowly,
    serving,
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


def get(store: Path, release: str = NEW, **more: Any) -> Path:
    return fetch(BASE, [release], store, lambda words, done: None, **more)[0]


def parts(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "partial").iterdir())


def sha512(data: bytes) -> str:
    return hashlib.sha512(data).hexdigest()


def test_an_archive_and_a_program_are_found(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY)
    bucket.put(OLD, "runsc", BODY[::-1])
    steps: list[tuple[str, float]] = []
    path, url = fetch(BASE, [NEW], tmp_path, lambda *step: steps.append(step))
    assert path.read_bytes() == BODY
    assert url == f"{BASE}/release/{NEW}/{find_machine()}/gvisor.tar.bz2"
    assert steps[0][0] == "Fetching gvisor.tar.bz2, 1.9 MiB"
    assert sorted(done for _, done in steps) == [done for _, done in steps]
    assert steps[-1][1] == 1
    assert get(tmp_path, OLD).read_bytes() == BODY[::-1]
    assert set(bucket.connects) == {f"{HOST}:443"}
    assert bucket.ranges == [None, None]


def test_the_first_release_that_is_there_is_taken(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("latest", "gvisor.tar.bz2", BODY)
    _, url = fetch(BASE, ["20990101", "latest"], tmp_path, lambda words, done: None)
    assert "/latest/" in url
    with pytest.raises(NotThere, match=r"There is no release 20990101 for .* in https") as raised:
        get(tmp_path, "20990101")
    assert "github.com/google/gvisor/releases" in raised.value.hint


def test_what_breaks_off_is_continued(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY, send=send_half)
    assert get(tmp_path).read_bytes() == BODY
    assert bucket.ranges == [None, f"bytes={len(BODY) // 2}-"]


def test_another_run_continues(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bucket.put(NEW, "gvisor.tar.bz2", BODY, send=send_halves)
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    with pytest.raises(ReleaseError, match="cannot be fetched") as raised:
        get(tmp_path)
    assert "gvisor-kernel runsc install --file" in raised.value.hint
    assert parts(tmp_path) == [sha512(BODY)]
    file.send = None
    found = get(tmp_path)
    assert found.read_bytes() == BODY
    assert bucket.ranges[-1] == f"bytes={len(BODY) // 2}-"
    asked = len(bucket.ranges)
    assert get(tmp_path).read_bytes() == BODY
    assert len(bucket.ranges) == asked, "what is there was fetched again"


def test_a_server_that_always_breaks_off_is_left(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY, send=send_halves)
    with pytest.raises(ReleaseError, match="cannot be fetched"):
        get(tmp_path)
    assert len(bucket.ranges) == fetching.ATTEMPTS


@pytest.mark.parametrize("length", [len(BODY), 100])
def test_a_part_of_another_version_is_thrown_away(
    bucket: Bucket, tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest was given by hand, and the file was replaced between two runs, also by one that
    is shorter than the part."""
    body = BODY[:length]
    with monkeypatch.context() as patch:
        patch.setattr(fetching, "ATTEMPTS", 1)
        bucket.put(NEW, "gvisor.tar.bz2", BODY[::-1], send=send_halves)
        with pytest.raises(ReleaseError, match="cannot be fetched"):
            get(tmp_path, sha512=sha512(body))
    bucket.put(NEW, "gvisor.tar.bz2", body)
    assert get(tmp_path, sha512=sha512(body)).read_bytes() == body
    assert bucket.ranges == [None, f"bytes={len(BODY) // 2}-", None]


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
    with pytest.raises(ReleaseError, match=r"should be a digest|has the digest of"):
        get(tmp_path)
    assert bucket.ranges == []
    assert parts(tmp_path) == []


def test_a_digest_for_a_binary_file_is_read(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(NEW, "gvisor.tar.bz2", BODY)
    digest = f"{sha512(BODY)} *gvisor.tar.bz2\n".encode()
    bucket.files[bucket.path(NEW, "gvisor.tar.bz2.sha512")].body = digest
    assert get(tmp_path).read_bytes() == BODY


def test_a_server_that_sends_without_end_is_left(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = {"Content-Length": "", "Transfer-Encoding": "chunked"}
    file = bucket.put(NEW, "gvisor.tar.bz2", BODY, headers=endless, send=send_forever)
    with pytest.raises(ReleaseError, match="has an unknown number of bytes"):
        get(tmp_path)
    file.headers = {"Content-Length": "1000", "Transfer-Encoding": "chunked"}
    with pytest.raises(ReleaseError, match="has more than the 1000 bytes"):
        get(tmp_path)
    file.headers, file.send = {"Content-Length": str(MAX_FILE + 1)}, None
    with pytest.raises(ReleaseError, match=f"has {MAX_FILE + 1} bytes"):
        get(tmp_path)
    assert parts(tmp_path) == []
    digest = bucket.files[bucket.path(NEW, "gvisor.tar.bz2.sha512")]
    digest.headers, digest.send = endless, send_forever
    with pytest.raises(ReleaseError, match="should be a digest"):
        get(tmp_path)


def test_a_silent_server_is_left(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "READ_SECONDS", 0.3)
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    silent = {"Content-Length": str(len(BODY) * 2)}
    bucket.put(NEW, "gvisor.tar.bz2", BODY, headers=silent)
    with pytest.raises(ReleaseError, match="The read operation timed out"):
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
    with pytest.raises(ReleaseError, match=r"no answer within 0\.5 s"):
        get(tmp_path)


@pytest.mark.parametrize(
    "target",
    ["https://example.com/runsc", "http://{host}/runsc", "gvisor.tar.bz2", "https://[", ""],
)
def test_a_redirect_is_not_followed(bucket: Bucket, tmp_path: Path, target: str) -> None:
    file = bucket.put(NEW, "gvisor.tar.bz2", BODY, status=302)
    file.headers["Location"] = target.format(host=HOST)
    with pytest.raises(ReleaseError, match="redirects to"):
        get(tmp_path)
    assert set(bucket.connects) == {f"{HOST}:443"}
    assert len(bucket.seen) == 2
    assert parts(tmp_path) == []


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
    with pytest.raises(ReleaseError, match="too little free space"):
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
