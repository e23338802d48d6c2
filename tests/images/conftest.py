"""A store of images for each test, and what imports into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gvisor_kernel.images.importer import import_image
from gvisor_kernel.images.inspection import RootImage
from gvisor_kernel.images.store import Store

Import = Callable[..., RootImage]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    # Waiting for the disk takes a second of its own on a busy machine, and shows nothing here.
    monkeypatch.setattr("gvisor_kernel.archive.tree.sync_file_system", lambda directory: None)
    return Store.open()


@pytest.fixture
def take(store: Store) -> Import:
    """Imports a path, called ``world`` unless told otherwise."""

    def take_in(path: Path, name: str = "world", reference: str | None = None) -> RootImage:
        return import_image(
            store,
            path,
            name,
            reference=reference,
            owner=None,
            origin=path.name,
            report=lambda words, done: None,
        ).image

    return take_in


@pytest.fixture(autouse=True)
def nothing_is_left_of_an_import(store: Store) -> object:
    """Whether it succeeded or not: images, and nothing else."""
    yield
    left = {path.name for path in store.root.iterdir()} - {"lock", "names"}
    assert all(len(name) == 64 for name in left), left
