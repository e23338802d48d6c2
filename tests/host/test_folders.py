"""Opening folders by descriptor, without following links that another user or a kernel made."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvisor_kernel.host import folders
from gvisor_kernel.host.folders import (
    LinkRefused,
    Opened,
    find_identity,
    open_below,
    open_path,
    open_real,
    reopen,
)
from gvisor_kernel.host.owners import make_folder

pytestmark = pytest.mark.once


@pytest.fixture(params=["openat2", "walk"])
def with_and_without_openat2(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the test with the system call openat2, and as on a Linux without it."""
    if request.param == "walk":

        def missing(*arguments: object) -> int:
            raise OSError(errno.ENOSYS, "no such call")

        monkeypatch.setattr(folders, "openat2", missing)


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def find(path: Path, *writable: Path) -> Path:
    with open_path(str(path), lambda name, fd: Path(name) in writable) as found:
        assert (os.fstat(found.fd).st_dev, os.fstat(found.fd).st_ino) == found.identity
        return Path(found.path)


def assert_fails(code: int, path: Path, *writable: Path) -> OSError:
    with pytest.raises(OSError, match="Errno") as caught:
        find(path, *writable)
    assert caught.value.errno == code
    return caught.value


@pytest.mark.usefixtures("with_and_without_openat2")
class TestOpenPath:
    def test_trusted_links_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "file").touch()
        (tmp_path / "short").symlink_to("a/b")
        (tmp_path / "a" / "b" / "up").symlink_to("..")
        (tmp_path / "long").symlink_to(f"/..{tmp_path}/./short//up/b/../file")
        assert find(tmp_path / "short") == tmp_path / "a" / "b"
        assert find(tmp_path / "short" / "up") == tmp_path / "a"
        assert find(tmp_path / "long") == tmp_path / "a" / "file"
        assert find(Path("/")) == Path("/")

    def test_impossible_path_raises_oserror(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "nowhere").symlink_to("missing")
        assert_fails(errno.ELOOP, tmp_path / "loop")
        assert_fails(errno.ENOENT, tmp_path / "nowhere")
        assert_fails(errno.ENOTDIR, tmp_path / "file" / "x")
        assert_fails(errno.EINVAL, Path("relative"))

    def test_link_in_writable_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "w" / "deep").mkdir(parents=True)
        (tmp_path / "w" / "deep" / "out").symlink_to(tmp_path)
        error = assert_fails(errno.ELOOP, tmp_path / "w" / "deep" / "out", tmp_path / "w")
        assert isinstance(error, LinkRefused)
        assert (error.link, error.target) == (f"{tmp_path}/w/deep/out", str(tmp_path))
        # A folder there may be opened; and links outside of it are trusted again.
        assert find(tmp_path / "w" / "deep", tmp_path / "w") == tmp_path / "w" / "deep"
        (tmp_path / "in").symlink_to("w/deep/../../x")
        (tmp_path / "x").symlink_to("w")
        assert find(tmp_path / "in", tmp_path / "w") == tmp_path / "w"
        # Also on a path that begins with a trusted link into the writable folder.
        (tmp_path / "mine").symlink_to("w/deep/out")
        assert_fails(errno.ELOOP, tmp_path / "mine", tmp_path / "w")

    def test_magic_link_is_resolved_by_its_text(self, tmp_path: Path) -> None:
        fd = os.open(tmp_path, os.O_PATH)
        try:
            moved = tmp_path.with_name("moved")
            tmp_path.rename(moved)
            found = find(Path(f"/proc/self/fd/{fd}"))
            assert found == moved
            moved.rename(tmp_path)
        finally:
            os.close(fd)


@pytest.mark.usefixtures("with_and_without_openat2")
class TestOpenBelow:
    def test_no_link_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "l").symlink_to("a")
        with open_path(str(tmp_path)) as folder:
            for path in ("a/b", "./a//b/", "a"):
                with open_below(folder, path) as found:
                    assert found.path == os.path.normpath(f"{tmp_path}/{path}")
            for path, code in {
                "l": errno.ELOOP,
                "l/b": errno.ELOOP,
                "../x": errno.EXDEV,
                "a/../../x": errno.EXDEV,
                "/etc": errno.EXDEV,
                "missing": errno.ENOENT,
            }.items():
                with pytest.raises(OSError, match="Errno") as caught:
                    open_below(folder, path)
                assert caught.value.errno == code, path

    def test_moved_folder_is_used_by_descriptor(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        with open_path(str(tmp_path / "a")) as folder:
            (tmp_path / "a").rename(tmp_path / "old")
            (tmp_path / "a").symlink_to("/etc")
            with open_below(folder, "b") as found:
                assert found.identity == find_identity(str(tmp_path / "old" / "b"))

    def test_made_folder_belongs_to_owner_of_its_parent(self, tmp_path: Path) -> None:
        owner = (4711, 4712) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        os.chown(tmp_path, *owner)
        with open_path(str(tmp_path)) as folder:
            with make_folder(folder, "new") as made:
                status = made.status()
            assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (*owner, 0o755)
            with pytest.raises(FileExistsError):
                make_folder(folder, "new")
        # This thread acts as root again, or never acted as another user.
        (tmp_path / "file").touch()
        assert (tmp_path / "file").stat().st_uid == os.geteuid()


@pytest.mark.usefixtures("with_and_without_openat2")
def test_reopen_refuses_another_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    identity = find_identity(str(tmp_path / "a"))
    assert identity is not None
    reopen(str(tmp_path / "a"), identity).close()
    (tmp_path / "a").rename(tmp_path / "old")
    with pytest.raises(FileNotFoundError):
        reopen(str(tmp_path / "a"), identity)
    (tmp_path / "b").rename(tmp_path / "a")
    with pytest.raises(OSError, match="another file") as caught:
        reopen(str(tmp_path / "a"), identity)
    assert caught.value.errno == errno.ESTALE
    with pytest.raises(OSError, match="another file"):
        reopen(str(tmp_path / "a"), identity, same_boot=False)
    other_boot = identity._replace(device=identity.device + 1)
    reopen(str(tmp_path / "old"), other_boot, same_boot=False).close()
    (tmp_path / "link").symlink_to("old")
    with pytest.raises(OSError, match="link") as caught:
        reopen(str(tmp_path / "link"), identity)
    assert caught.value.errno == errno.ELOOP


def test_read_reads_the_opened_file_after_a_rename(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("first")
    with open_real(str(tmp_path / "file")) as found:
        (tmp_path / "file").rename(tmp_path / "old")
        (tmp_path / "file").write_text("second")
        fd = found.read()
        assert os.read(fd, 10) == b"first"
        os.close(fd)
    assert isinstance(found, Opened)
