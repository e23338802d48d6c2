"""Kernels that start with what others were seen to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.jupyter.plan_factory import make_plan
from gvisor_kernel.kernel import learned_modules, preparation
from gvisor_kernel.kernel.client import private_connection_info
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.snapshot_builder import build_snapshot
from gvisor_kernel.snapshots.learned import Counts, Preloaded, add_report, read_preloaded
from gvisor_kernel.snapshots.snapshot import PRELOADED
from gvisor_kernel.snapshots.snapshot_store import Store

from ..jupyter.helpers import SECONDS, execute, kernel_log, running_kernel, wait_until
from .conftest import packages_of

SETTINGS = {"preload": "auto"}
AUTO = {"preload": "auto"}

LOOK = """
import sys
print([name for name in ("gk_good", "gk_thread", "gk_own") if name in sys.modules])
import gk_good, gk_thread, gk_own, json
from gk_good import value
"""
REPORT = """
import socket, struct, sys
sys.path.insert(0, "/opt/gvisor-kernel")
from gvisor_kernel.guest.cell_hooks import send_report
names = ["gk_new", "gk_evil", "gk_new; evil", "../gk_new", "gk_good"] * 2
send_report(names, ["OMP_NUM_THREADS"])
"""


def test_kernel_starts_with_what_kernels_import(
    own_store: Store,
    kernelspec: str,
    environment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it imports itself is counted: modules of the environment, and nothing else, whatever it
    reports, and once, however often it is restarted. A variable that one kernel sets changes
    nothing. When another module is used often enough, the snapshot is made anew; until then this
    one serves."""
    packages = packages_of(environment)
    (packages / "gk_good.py").write_text("value = 3\n")
    (packages / "gk_new.py").touch()
    (packages / "gk_again.py").touch()
    (packages / "gk_thread.py").write_text(
        "import threading\nend = threading.Event()\n"
        "threading.Thread(target=end.wait, daemon=True).start()\n"
    )
    monkeypatch.chdir(tmp_path)  # below /usr, as a clone may be, outputs are not kept
    plan = make_plan(kernelspec, private_connection_info(), "")
    kind = learned_modules.find_kind(plan)
    names = ("gk_good", "gk_thread", "gk_gone")
    learned_modules.change(kind, lambda counts: Counts(2, dict.fromkeys(names, 2)))
    snapshot = build_snapshot(plan, None, lambda text, done: None)
    made = read_preloaded(snapshot.meta.facts[PRELOADED])
    left_out = {"gk_thread": "its import starts a thread"}
    assert made == Preloaded(("gk_gone", "gk_good", "gk_thread"), ("gk_good",), left_out)
    assert snapshot.meta.label["preload"] == "gk_good"

    asked: list[KernelPlan] = []

    class Queue:
        @staticmethod
        def instance() -> Any:
            return Queue

        @staticmethod
        def request(plan: KernelPlan, *words: object, **more: object) -> None:
            asked.append(plan)

    monkeypatch.setattr(preparation, "SnapshotQueue", Queue)
    folder = tmp_path / "notebook"
    folder.mkdir()
    (folder / "gk_own.py").touch()
    start = {"cwd": str(folder)}
    with running_kernel(kernelspec, settings=AUTO, start=start) as (manager, client):
        assert "the kernel was restored from a snapshot" in kernel_log(manager)
        assert execute(client, LOOK).text == "['gk_good']\n"
        assert execute(client, REPORT).status == "ok"
        counts = {"gk_good": 3, "gk_thread": 3, "gk_gone": 2, "gk_new": 1}
        wait_until(lambda: learned_modules.read(kind) == Counts(3, counts, 1), "the report")
        manager.restart_kernel(now=True)
        client.wait_for_ready(SECONDS)
        assert execute(client, LOOK + REPORT.replace("gk_evil", "gk_again")).status == "ok"
        counts["gk_again"] = 1
        wait_until(lambda: "gk_again" in learned_modules.read(kind).names, "the second report")
        assert learned_modules.read(kind) == Counts(3, counts, 1)
    assert asked == []
    learned_modules.change(kind, lambda counts: add_report(counts, ["gk_new"], is_first=True))
    with running_kernel(kernelspec, settings=AUTO, start=start) as (manager, client):
        assert "the kernel was restored from a snapshot" in kernel_log(manager)
        wait_until(lambda: bool(asked), "the request of another snapshot")
    assert asked[0].learned == ("gk_good", "gk_thread", "gk_gone", "gk_new")
