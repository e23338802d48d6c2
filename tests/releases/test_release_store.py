"""The stores of releases: what is installed and chosen, and what is refused there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gvisor_kernel.errors import ReleaseError
from gvisor_kernel.host import private_directories
from gvisor_kernel.releases import release_store
from gvisor_kernel.releases.release_store import (
    Release,
    choose,
    find_chosen,
    find_release,
    find_releases,
    locked_install,
    make_store,
    publish,
    release_name,
    remove,
    write,
)
from gvisor_kernel.runtimes.mounts.covers import holds_keys, is_private

OWNER = os.geteuid()


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An own store, and one of root; as root they are the same."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    shared = tmp_path / "lib" / "runsc"
    monkeypatch.setattr(release_store, "SHARED", shared)
    shared.parent.mkdir(mode=0o755)
    return make_store(), shared


@pytest.fixture
def own(stores: tuple[Path, Path]) -> Path:
    return stores[0]


def add(name: str, content: bytes = b"#!/bin/sh\nexec sleep 60\n", sha512: str = "ab") -> Release:
    with write() as draft:
        (draft / "runsc").write_bytes(content)
        (draft / "gvisor-bin").mkdir()
        (draft / "gvisor-bin" / "sidecar").write_bytes(b"x")
        return publish(draft, name, name, sha512, "a test")


def names() -> list[str]:
    return [release.name for release in find_releases()]


def test_a_release_is_published_found_and_removed(own: Path) -> None:
    assert find_releases() == []
    assert find_chosen() is None
    made = add("20240729.0")
    assert find_releases() == [made]
    assert made.directory == own / "20240729.0"
    modes = {
        str(path.relative_to(own)): path.stat().st_mode & 0o777
        for path in made.directory.rglob("*")
        if path.name != "lock"
    }
    assert modes == {
        "20240729.0/runsc": 0o555,
        "20240729.0/release.json": 0o444,
        "20240729.0/gvisor-bin": 0o755,
        "20240729.0/gvisor-bin/sidecar": 0o555,
    }
    remove(made)
    assert find_releases() == []
    assert sorted(path.name for path in own.iterdir()) == ["lock"]


def test_what_was_not_published_is_removed(own: Path) -> None:
    with write() as draft:
        (draft / "runsc").write_bytes(b"x")
    with pytest.raises(ReleaseError, match="cannot be used: No space left"), write() as draft:
        raise OSError(28, "No space left on device")
    assert sorted(path.name for path in own.iterdir()) == ["lock"]


def test_the_same_release_may_be_installed_again_and_another_not(own: Path) -> None:
    first = add("20240729.0")
    assert add("20240729.0") == first
    with pytest.raises(ReleaseError, match=r"another release 20240729\.0 of runsc, from a test"):
        add("20240729.0", sha512="cd")
    assert sorted(path.name for path in own.iterdir()) == ["20240729.0", "lock"]


def test_the_point_may_be_left_out(own: Path) -> None:
    for name in ("20240729.0", "20240729.9", "20240729.10", "202407290", "20240729.x"):
        add(name)
    found = find_release("20240729")
    assert found.name == "20240729.10"
    for name in ("2024072", "20240729.", "../lib", ""):
        with pytest.raises(ReleaseError, match="is not installed"):
            find_release(name)


def test_a_choice_is_kept(own: Path) -> None:
    made = add("20240729.0")
    choose("20240729")
    assert find_chosen() == made
    assert (own / "chosen").read_text() == "20240729.0\n"
    assert (own / "chosen").stat().st_mode & 0o777 == 0o644
    with pytest.raises(ReleaseError, match="New kernels start with"):
        remove(made)
    with pytest.raises(ReleaseError, match="The release 1999 of runsc is not installed"):
        choose("1999")
    assert find_chosen() == made
    choose("system")
    assert find_chosen() is None
    remove(made)


def test_a_chosen_release_that_is_gone_is_named(own: Path) -> None:
    made = add("20240729.0")
    choose("20240729.0")
    shutil.rmtree(made.directory)
    said = r"20240729\.0 of runsc is chosen, but not installed"
    with pytest.raises(ReleaseError, match=said) as raised:
        find_chosen()
    assert raised.value.hint.startswith("gvisor-kernel runsc install")
    add("20230101.0")
    with pytest.raises(ReleaseError, match=said) as raised:
        find_chosen()
    assert raised.value.hint.startswith("gvisor-kernel runsc use 20230101.0;")


def test_a_release_that_is_used_stays(own: Path) -> None:
    made = add("20240729.0", Path("/bin/sleep").read_bytes())
    process = subprocess.Popen([made.program, "60"])
    try:
        said = rf"Sandboxes run with .*: processes {process.pid} \(uid {OWNER}\)"
        with pytest.raises(ReleaseError, match=said):
            remove(made)
    finally:
        process.kill()
        process.wait(10)
    remove(made)


@pytest.mark.parametrize(
    ("version", "name"),
    [("release-20240729.0", "20240729.0"), ("0.0~20240729.0", "20240729.0"), ("x-1+g", "x-1+g")],
)
def test_a_version_gives_the_name(version: str, name: str) -> None:
    assert release_name(version) == name


@pytest.mark.parametrize(
    "version",
    [
        *("", "..", "../x", "a/b", "system", "lock", "chosen", "new-1", "gone-1", "-x", "a\nb"),
        *("x" * 65, "partial", "installing", ".hidden", "release-"),
    ],
)
def test_a_version_that_is_no_name_is_refused(version: str) -> None:
    with pytest.raises(ReleaseError, match="cannot have the name"):
        release_name(version)


def link_entry(store: Path) -> None:
    (store / "20240729.0").rename(store.parent / "elsewhere")
    (store / "20240729.0").symlink_to(store.parent / "elsewhere")


def link_program(store: Path) -> None:
    (store / "20240729.0" / "runsc").rename(store.parent / "program")
    (store / "20240729.0" / "runsc").symlink_to(store.parent / "program")


def link_sidecars(store: Path) -> None:
    (store / "20240729.0" / "gvisor-bin").rename(store.parent / "sidecars")
    (store / "20240729.0" / "gvisor-bin").symlink_to(store.parent / "sidecars")


def link_sidecar(store: Path) -> None:
    (store / "20240729.0" / "gvisor-bin" / "sidecar").unlink()
    (store / "20240729.0" / "gvisor-bin" / "sidecar").symlink_to("/bin/true")


def open_entry(store: Path) -> None:
    (store / "20240729.0").chmod(0o777)


def open_program(store: Path) -> None:
    (store / "20240729.0" / "runsc").chmod(0o775)


def facts(text: str) -> Callable[[Path], None]:
    def change(store: Path) -> None:
        (store / "20240729.0" / "release.json").chmod(0o644)
        (store / "20240729.0" / "release.json").write_text(text)

    return change


def pipe_facts(store: Path) -> None:
    (store / "20240729.0" / "release.json").unlink()
    os.mkfifo(store / "20240729.0" / "release.json")


DAMAGES = [
    *(link_entry, link_program, link_sidecars, link_sidecar, open_entry, open_program),
    *(pipe_facts, facts(""), facts("[" * 100_000), facts('{"name": 1}')),
    facts("{" + '"name": "20240729.0",' * 1000 + "}"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_release_is_not_used(own: Path, damage: Callable[[Path], None]) -> None:
    add("20240729.0")
    add("20250101.0")
    choose("20240729.0")
    damage(own)
    assert names() == ["20250101.0"]
    with pytest.raises(ReleaseError, match="is not installed"):
        find_release("20240729.0")
    with pytest.raises(ReleaseError):
        find_chosen()
    choose("20250101.0")
    assert find_chosen() is not None
    assert add("20240729.0", sha512="cd") == find_release("20240729"), "it cannot be repaired"


@pytest.mark.parametrize(
    "content", [b"", b"../../x", b"\xff\xfe", b"x" * 200, b"a\nb", b"\x1b[31m", b"system-"]
)
def test_a_hostile_choice_is_refused(own: Path, content: bytes) -> None:
    add("20240729.0")
    (own / "chosen").write_bytes(content)
    with pytest.raises(ReleaseError):
        find_chosen()


def test_a_choice_that_is_no_file_is_refused(own: Path, tmp_path: Path) -> None:
    add("20240729.0")
    (tmp_path / "target").write_text("20240729.0")
    (own / "chosen").symlink_to(tmp_path / "target")
    with pytest.raises(ReleaseError, match="chosen cannot be read"):
        find_chosen()
    (own / "chosen").unlink()
    os.mkfifo(own / "chosen")
    with pytest.raises(ReleaseError, match="chosen cannot be read"):
        find_chosen()


def test_a_store_that_others_can_change_is_not_used(stores: tuple[Path, Path]) -> None:
    own, _ = stores
    add("20240729.0")
    for mode in (0o777, 0o775, 0o1777):
        own.chmod(mode)
        with pytest.raises(ReleaseError, match=r"The releases in .* are not used"):
            find_releases()
        with pytest.raises(ReleaseError, match="are not used"):
            find_chosen()
    own.chmod(0o755)
    own.rename(own.with_name("moved"))
    own.symlink_to(own.with_name("moved"))
    with pytest.raises(ReleaseError, match="is no folder"):
        find_releases()


@pytest.mark.skipif(OWNER != 0, reason="only root can make root's store")
def test_each_folder_above_roots_store_is_looked_at(stores: tuple[Path, Path]) -> None:
    _, shared = stores
    add("20240729.0")
    for folder in (shared.parent, shared.parent.parent):
        mode = folder.stat().st_mode & 0o7777
        folder.chmod(0o777)
        private_directories._checked.clear()  # as in another process
        with pytest.raises(ReleaseError, match=f"{folder} contains .* uid 0 and has the mode 777"):
            find_chosen()
        folder.chmod(mode)
    os.chown(shared, 4711, 4711)
    with pytest.raises(ReleaseError, match="belongs to uid 4711"):
        find_releases()


@contextmanager
def other_user(home: Path, uid: int = 4711) -> Iterator[None]:
    """Act as a user who can enter the folders above ``home``, which belongs to that user."""
    home.mkdir()
    os.chown(home, uid, uid)
    modes = {place: place.stat().st_mode & 0o7777 for place in home.parents}
    for place, mode in modes.items():
        place.chmod(mode | 0o711)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        for place, mode in modes.items():
            place.chmod(mode)


@pytest.mark.skipif(OWNER != 0, reason="only root can make root's store")
def test_roots_store_serves_other_users(
    stores: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = add("20240729.0")
    choose("20240729.0")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    with other_user(tmp_path / "home"):
        assert find_releases() == [roots]
        assert find_chosen() == roots
        with pytest.raises(ReleaseError, match="is in root's store"):
            remove(roots)
        own = add("20240729.0", b"own")
        assert own.directory.is_relative_to(tmp_path / "home")
        assert find_releases() == [own, roots]
        assert find_chosen() == roots
        choose("system")
        assert find_chosen() is None
        choose("20240729.0")
        assert find_chosen() == own
        own.directory.rename(own.directory.with_name("gone"))
        assert find_chosen() == roots, "what root keeps is not used in its place"
    assert find_chosen() == roots


def test_no_kernel_is_shown_the_store(own: Path, tmp_path: Path) -> None:
    assert is_private(str(own))
    assert is_private(str(own.parent))
    assert holds_keys(str(own / "20240729.0"))
    assert not is_private(str(tmp_path / "elsewhere"))


def test_one_install_at_a_time(own: Path) -> None:
    another = pytest.raises(ReleaseError, match="Another process installs a release")
    with locked_install(), another, locked_install():
        pass
    with locked_install():
        pass


def test_what_a_killed_process_was_writing_is_removed_by_the_next(
    own: Path, stores: tuple[Path, Path]
) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from gvisor_kernel.releases import release_store\n"
        "release_store.SHARED = Path(sys.argv[1])\n"
        "with release_store.locked_install(), release_store.write() as draft:\n"
        "    (draft / 'runsc').write_bytes(b'x'); print(draft.name, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(stores[1])], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        with write():
            assert (own / name).is_dir(), "what is being written was removed"
        process.send_signal(signal.SIGKILL)
    assert (own / name).is_dir()
    with locked_install(), write():
        assert not (own / name).exists()
