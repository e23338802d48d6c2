"""A store of images for each test, and a function that imports into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gvisor_kernel.archive.layers import Budget
from gvisor_kernel.images.image import RootImage, Store
from gvisor_kernel.images.importer import Import

ImportImage = Callable[..., RootImage]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    # Syncing the disk takes a second on a busy machine, and no test here depends on it.
    monkeypatch.setattr("gvisor_kernel.archive.tree.sync_file_system", lambda directory: None)
    return Store.open()


@pytest.fixture
def import_image(store: Store) -> ImportImage:
    """Imports a path into the store, under the name ``world`` by default."""

    def run(
        path: Path,
        name: str = "world",
        reference: str | None = None,
        budget: Budget | None = None,
    ) -> RootImage:
        importing = Import(store, name, reference=reference, budget=budget)
        return importing.unpack(path, path.name).image

    return run


@pytest.fixture(autouse=True)
def no_unfinished_image_is_left(store: Store) -> object:
    """After each test, the store contains complete images only, also after a failed import."""
    yield
    left = {path.name for path in store.root.iterdir()} - {"lock", "names"}
    assert all(len(name) == 64 for name in left), left
