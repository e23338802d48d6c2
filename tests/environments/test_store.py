"""The store: what is found again, for whom, and when it is removed."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

import pytest

from gvisor_kernel.config.packages import Packages
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.environments.environment import Base, Environment, Store
from gvisor_kernel.errors import LaunchError, PackagesError
from gvisor_kernel.runtimes.mounts.host_python import find_host_python
from gvisor_kernel.runtimes.mounts.plan import find_base, open_packages

from .helpers import BASE, make_environment

PYTHONS = ("python", "python3")
ONE, TWO = ("demo",), ("demo", "other>=2")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return Store.open()


def spec_with(environment: Environment) -> SandboxSpec:
    return SandboxSpec(packages=Packages(environment.requirements, environment.digest))


def test_what_was_installed_is_found_again(store: Store) -> None:
    assert store.find_built(ONE, BASE) is None
    made = make_environment(store, ONE)
    newer = make_environment(store, TWO, created=2.0)
    assert store.find(made.digest, ONE) == made
    assert store.environments() == [newer, made]
    assert store.find_built(TWO[::-1], BASE) == newer
    assert store.find_built(ONE, Base(BASE.image, "")) == made
    assert made.packages == (("demo", "1.0"),)
    assert sorted(path.name for path in store.root.iterdir()) == sorted(
        [made.digest, newer.digest, "lock"]
    )
    assert sorted(path.name for path in made.directory.iterdir()) == sorted(
        ["environment.json", "lock", "tree"]
    )


def test_an_interpreter_may_have_a_path_that_is_not_utf_8(store: Store) -> None:
    base = Base("host:/opt/\udcff/python3", "3.12")
    assert store.find_built(ONE, base) is None
    made = make_environment(store, ONE, base)
    assert store.find_built(ONE, base) == made


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (Base(BASE.image, "3.13"), "for Python 3.12, and the kernel has Python 3.13"),
        (Base("f" * 64, "3.12"), "for another image"),
        (Base("host:/opt/python3", ""), "for another image"),
    ],
)
def test_other_python_or_image_is_refused(store: Store, base: Base, words: str) -> None:
    made = make_environment(store, TWO)
    assert store.find_built(TWO, base) is None
    assert open_packages(spec_with(made), BASE) == made
    assert open_packages(spec_with(made), Base(BASE.image, "")) == made
    with pytest.raises(LaunchError, match=words) as caught:
        open_packages(spec_with(made), base)
    assert 'gvisor-kernel install --with "demo other>=2"' in caught.value.hint


def test_an_interpreter_of_the_host_is_told_by_its_packages_not_by_its_name(
    tmp_path: Path,
) -> None:
    venv.create(tmp_path)
    one, same = (find_base(find_host_python(f"{tmp_path}/bin/{name}")) for name in PYTHONS)
    assert one == same
    assert one != find_base(find_host_python(sys.executable))


def test_missing_or_spoilt_environment_is_refused(store: Store) -> None:
    made = make_environment(store, ONE)
    (made.directory / "environment.json").write_text("[" * 100_000)
    with pytest.raises(LaunchError, match="are not installed here") as caught:
        open_packages(spec_with(made), BASE)
    assert "install --with" in caught.value.hint


def test_failed_draft_leaves_nothing(store: Store) -> None:
    with store.write() as draft:
        (draft.scratch / "x").mkdir(mode=0)
    assert [path.name for path in store.root.iterdir()] == ["lock"]


def test_unused_is_removed_and_used_is_kept(store: Store, tmp_path: Path) -> None:
    one, two = make_environment(store, ONE), make_environment(store, TWO)
    spec = tmp_path / "kernels/spec"
    with store.held(one, spec):
        # Its kernelspec does not exist yet.
        assert store.remove_unused(lambda e, _: False, {two.digest}) == []
    assert store.kernelspecs_of(one) == [str(spec)]
    seen: dict[str, list[str]] = {}

    def is_used(environment: Environment, folders: list[str]) -> bool:
        seen[environment.digest] = folders
        return environment == two

    assert store.remove_unused(is_used, set()) == [one]
    assert seen == {one.digest: [str(spec)], two.digest: []}
    assert store.environments() == [two]
    assert not one.directory.exists()
    with pytest.raises(LaunchError), store.held(one, spec):
        pass


def test_store_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "gvisor-kernel").mkdir()
    (tmp_path / "gvisor-kernel/environments").symlink_to(tmp_path)
    with pytest.raises(PackagesError, match="symbolic link"):
        Store.open()


def test_store_below_a_folder_that_others_may_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "open"))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PackagesError, match="other users can change it"):
        Store.open()
    assert list((tmp_path / "open").iterdir()) == []
    (tmp_path / "open").chmod(0o755)
    Store.open()
