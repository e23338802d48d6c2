"""``gvisor-kernel snapshot``: what it says of images, and which it removes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.cli import snapshots as module
from gvisor_kernel.cli.main import main
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import LaunchRequest, MountView
from gvisor_kernel.snapshots.host_facts import find_host_facts
from gvisor_kernel.snapshots.key import KernelFacts, make_key
from gvisor_kernel.snapshots.manifest import make_manifest
from gvisor_kernel.snapshots.store import Meta, Snapshot, Store

Add = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Store.open()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "site" / "library.py"
    path.parent.mkdir()
    path.touch()
    return path


@pytest.fixture
def add(store: Store, library: Path, tmp_path: Path) -> Add:
    request = LaunchRequest("gvisor-python", "", tmp_path, sys.executable, {})
    described = get_runtime("runsc").describe(SandboxSpec(), request)

    def add_one(*preload: str, kernel: str = "gvisor-python") -> str:
        facts = KernelFacts([], {}, "/", "auto", preload)
        key = make_key(described, facts, find_host_facts())
        manifest = make_manifest(
            ["/site/library.py"], [], [MountView(str(library.parent), "/site", True)]
        )
        label = {"kernel": kernel, "python": "3.11.7", "preload": ", ".join(preload)}
        meta = Meta(key.name, dict(key.parts), 1, "s3cret", manifest, label, created=1e9)
        with store.write() as draft:
            (draft.files / "pages.img").write_bytes(bytes(3 << 20))
            store.keep(draft, key, meta)
        return key.name

    return add_one


def run(*argv: str) -> int:
    return main(["snapshot", *argv])


def test_no_images(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["list"], ["verify"], ["remove", "--all"], ["remove", "--stale"]):
        assert run(*argv) == 0
    assert capsys.readouterr().out == "No snapshots.\nNo snapshots.\n" + "Nothing to remove.\n" * 2
    assert run("remove", "0") == 1
    assert "There is no image '0'" in capsys.readouterr().err


def test_list(store: Store, add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = add(), add("numpy", "pandas", kernel="\x1b[31mgvisor-other")
    os.utime(store.root / first / "used", (2e9, 2e9))
    os.utime(store.root / second / "used", (1e9, 1e9))
    assert run("list") == 0
    title, one, two, sums = capsys.readouterr().out.splitlines()
    assert title.split() == ["ID", "KERNEL", "PYTHON", "SIZE", "AGE", "USED", "PRELOAD"]
    assert one.split()[:5] == [first[:12], "gvisor-python", "3.11.7", "3", "MiB"]
    assert two.split()[:2] == [second[:12], "\\x1b[31mgvisor-other"]
    assert two.endswith("numpy, pandas")
    assert sums.startswith("6 MiB of at most ")
    assert str(store.root) in sums
    assert run("list", "--json") == 0
    listed: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [image["id"] for image in listed] == [first, second]
    assert listed[1]["preload"] == "numpy, pandas"
    assert listed[0]["created"] == 1e9
    assert "s3cret" not in json.dumps(listed)


def test_verify(
    add: Add, library: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = add()
    assert run("verify") == 0
    assert capsys.readouterr().out == f"{name[:12]}  gvisor-python  fits\n"
    library.write_text("edited")
    assert run("verify") == 1
    assert f"stale: {library} has changed" in capsys.readouterr().out
    assert run("verify", "--json") == 1
    assert json.loads(capsys.readouterr().out) == [
        {"id": name, "fits": False, "reason": f"{library} has changed"}
    ]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(99)))
    assert run("verify") == 1
    assert "stale: the processors are others" in capsys.readouterr().out


def test_there_are_words_for_all_that_is_verified() -> None:
    from gvisor_kernel.snapshots.host_facts import find_stale_parts

    assert set(find_stale_parts({})) == set(module.REASONS)


def test_remove(store: Store, add: Add, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted([add(), add("numpy"), add("pandas")])
    assert run("remove", names[0][:12]) == 0
    assert f"Removed {names[0][:12]}, 3 MiB" in capsys.readouterr().out
    assert sorted(image.meta.key for image in store.snapshots()) == names[1:]
    assert run("remove", "--stale") == 0
    assert capsys.readouterr().out == "Nothing to remove.\n"
    library.write_text("edited")
    fresh = add("scipy")
    assert run("remove", "--stale") == 0
    assert [image.meta.key for image in store.snapshots()] == [fresh]
    assert run("remove", "--all") == 0
    assert store.snapshots() == []


def test_an_id_that_is_not_enough(
    store: Store, add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    add(), add("numpy")
    assert run("remove", "") == 1
    assert "is the beginning of 2 images' ids" in capsys.readouterr().err


def test_one_in_use_stays(
    store: Store, add: Add, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gvisor_kernel.snapshots.store.BUSY_SECONDS", 0.05)
    name = add()
    with store.use(name):
        assert run("remove", name) == 1
    assert "just now" in capsys.readouterr().err
    assert len(store.snapshots()) == 1


def test_build_says_what_it_does(
    store: Store, add: Add, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def build(kernel: str, preload: object, report: Callable[[str, float], None]) -> Snapshot:
        asked.append((kernel, preload))
        report("starting \x1b[31m", 0.1)
        report("writing", 0.9)
        add()
        return store.snapshots()[0]

    monkeypatch.setattr("gvisor_kernel.jupyter.plan_factory.find_plan", lambda name, *_: name)
    monkeypatch.setattr("gvisor_kernel.kernel.snapshot_builder.build_snapshot", build)
    assert run("build", "--preload", "numpy, pandas,numpy,") == 0
    assert run("build", "--kernel", "other") == 0
    assert asked == [("gvisor-python", ("numpy", "pandas")), ("other", None)]
    captured = capsys.readouterr()
    assert captured.out.startswith("Made ")
    assert "\x1b[31m" not in captured.err
    assert run("build", "--preload", "os; print()") == 1
    assert "preload[0]" in capsys.readouterr().err
