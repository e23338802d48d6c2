"""What a server makes ready before somebody clicks."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.processes import is_stopped
from gvisor_kernel.jupyter.plan_factory import make_plan
from gvisor_kernel.kernel import preparation
from gvisor_kernel.kernel.client import private_connection_info
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.runtimes.state.listed import find_all
from gvisor_kernel.server import kernel_preparer
from gvisor_kernel.server.kernel_preparer import Listings
from gvisor_kernel.snapshots.manifest import Manifest
from gvisor_kernel.snapshots.snapshot import Meta

from ..jupyter.helpers import SECONDS, wait_until
from ..jupyter.server import JupyterServer
from ..world import World

KERNEL = "gk-warm"


@pytest.fixture(scope="module", autouse=True)
def kernelspec(world: World) -> None:
    """One whose kernels start from snapshots and take spares."""
    spec = json.loads((world.kernelspecs / "gvisor-python/kernel.json").read_text())
    spec["metadata"]["kernel_provisioner"]["config"] |= {"snapshot": "auto", "spare": True}
    world.add_kernelspec(KERNEL, spec)


@pytest.fixture
def server(tmp_path: Path, shared_snapshot: str) -> Iterator[JupyterServer]:
    (tmp_path / "below").mkdir()
    server = JupyterServer(
        tmp_path,
        f"--MultiKernelManager.default_kernel_name={KERNEL}",
        extensions=("gvisor_kernel.server",),
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


def spares() -> list[str]:
    """Return the folders of the spares that can be taken: they are stopped."""
    found = [one.record for one in find_all() if one.state == "spare"]
    return [one.folder for one in found if is_stopped(one.processes["sentry"].pid)]


def test_first_kernel_takes_what_was_made_ready(server: JupyterServer) -> None:
    """At the start for the root folder; then for a folder that any front end lists, if it has
    notebooks; then for the folder that a client names."""
    folder = server.folder / "below"
    for name in ("listed", "other"):
        (server.folder / name).mkdir()
    (server.folder / "listed/n.ipynb").write_text("{}")
    api = f"{server.url}/gvisor-kernel/api"
    headers = {"Authorization": f"token {server.token}"}
    wait_until(lambda: spares() == [str(server.folder)], "a spare for the root folder")
    server.ask("GET", "contents/listed")
    server.ask("GET", "contents/other")
    wait_until(lambda: spares() == [str(server.folder / "listed")], "a spare for the listed folder")
    body = {"kernel_name": KERNEL, "path": "below"}
    answer = requests.post(f"{api}/warm", json=body, headers=headers, timeout=SECONDS)
    assert (answer.status_code, answer.json()) == (202, {"accepted": True})
    wait_until(lambda: spares() == [str(folder)], "a spare for the folder")

    def start() -> str:
        kernel = server.ask("POST", "kernels", path="below/new.ipynb")["id"]
        found = requests.get(f"{api}/kernels/{kernel}", headers=headers, timeout=SECONDS).json()
        server.ask("DELETE", f"kernels/{kernel}")
        assert found["folder"] == str(folder)
        return str(found["start"]["kind"])

    # The first start may come in the moment in which the stopped sandbox is looked at. It takes two
    # starts until a spare is made because of starts, so the second can only take this one.
    assert "spare" in (start(), start())


def test_only_a_folder_that_is_gone_to_is_a_visit(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/n.ipynb").write_text("{}")
    (tmp_path / "n.ipynb").write_text("{}")
    visited: list[str] = []

    async def visit(folder: str) -> None:
        visited.append(folder)

    async def list_all() -> None:
        with ThreadPoolExecutor(1) as executor:
            listings = Listings(None, str(tmp_path), executor, visit)
            for path in ("/a", "a/n.ipynb", "../a", "none", "a\0", "", "a"):
                listings.note(path)
                if listings._working is not None:
                    await listings._working

    asyncio.run(list_all())
    assert visited == ["a", ""]


class Keeper:
    """Notes what is asked of the queue of snapshots and the keeper of spares."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.on_made: Callable[[], None] = lambda: None

    def instance(self) -> Keeper:
        return self

    def request(self, plan: KernelPlan, on_made: Callable[[], None]) -> None:
        self.asked.append("snapshot")
        self.on_made = on_made

    def prepare(self, plan: KernelPlan) -> None:
        self.asked.append("spare")


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Keeper:
    keeper = Keeper()
    monkeypatch.setattr(preparation, "SnapshotQueue", keeper)
    monkeypatch.setattr(preparation, "SpareKeeper", keeper)
    return keeper


MADE = Meta("0" * 32, {}, 1, "", Manifest({}, {}))


def plan(name: str) -> KernelPlan:
    return make_plan(name, private_connection_info(), "")


def test_missing_snapshot_is_made_before_the_spare(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "find_snapshot", lambda plan: None)
    assert preparation.prepare(plan(KERNEL)) == "snapshot"
    assert keeper.asked == ["snapshot"]
    keeper.on_made()
    assert keeper.asked == ["snapshot", "spare"]


def test_settings_turn_it_off(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without snapshots nothing is made, without spares only a snapshot."""
    assert preparation.prepare(plan("gvisor-python-direct")) == "nothing"
    monkeypatch.setattr(preparation, "find_snapshot", lambda plan: MADE)
    assert preparation.prepare(plan("gvisor-python-restored")) == "nothing"
    assert keeper.asked == []


def test_change_of_packages_is_noticed_when_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot is made anew before anybody starts a kernel."""
    (tmp_path / "one").mkdir()
    folders = SimpleNamespace(site_directories=(f"{tmp_path}/one", f"{tmp_path}/none"))
    folders.user_site = None
    monkeypatch.setattr(kernel_preparer, "ask_interpreter", lambda python: folders)
    made: list[KernelPlan] = []
    monkeypatch.setattr(kernel_preparer, "prepare", lambda plan: None)
    monkeypatch.setattr(kernel_preparer, "renew", made.append)
    kernel, choice = plan(KERNEL), kernel_preparer.KernelChoice(KERNEL, tmp_path)
    preparer = kernel_preparer.KernelPreparer(None, ThreadPoolExecutor(), True)
    monkeypatch.setattr(preparer, "_make_plan", lambda choice: kernel)
    preparer._prepare(choice)
    assert preparer._last == (choice, kernel)

    def look() -> int:
        preparer._look(*preparer._last)  # type: ignore[misc]
        return len(made)

    assert look() == 0
    for name in ("first", "second"):  # while packages are installed
        (tmp_path / "one" / name).touch()
        os.utime(tmp_path / "one", ns=(0, len(name)))
        assert look() == 0
    assert [look(), look()] == [1, 1]
    kernel = replace(kernel, spec=replace(kernel.spec, image="other"))
    os.utime(tmp_path / "one", ns=(0, 99))
    assert [preparer._packages.have_changed(kernel) for _ in range(2)] == [False, False]


def test_kernel_that_cannot_start_is_not_made_ready(keeper: Keeper, world: World) -> None:
    def refuse(*words: Any) -> bool:
        raise LaunchError("no")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "find_obstacle", refuse)
        with pytest.raises(LaunchError):
            preparation.prepare(plan(KERNEL))
    assert keeper.asked == []
