"""What is counted of the imports of kernels, which modules are chosen, and hostile reports."""

from __future__ import annotations

import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gvisor_kernel.bridge import SnapshotRun
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.jupyter.plan_factory import make_plan
from gvisor_kernel.kernel import learned_modules, snapshot_builder
from gvisor_kernel.kernel.client import private_connection_info
from gvisor_kernel.kernel.learned_modules import (
    ImportReports,
    Report,
    find_kind,
    is_installed,
    read_report,
)
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.preparation import Kind, Spare
from gvisor_kernel.kernel.restore import MIN_LEARNED_MEMORY, Restored, find_kernel_facts
from gvisor_kernel.kernel.snapshot_builder import Misbehaved
from gvisor_kernel.snapshots.key import SnapshotKey
from gvisor_kernel.snapshots.learned import (
    DROP_KERNELS,
    MAX_CHOSEN,
    MAX_KERNELS,
    MAX_NAMES,
    PRIOR,
    Counts,
    Preloaded,
    add_report,
    choose,
    find_difference,
    is_module_name,
    is_outdated,
    read_counts,
    read_preloaded,
)
from gvisor_kernel.snapshots.snapshot_store import Store, builder_lock

from ..world import kernelspec_of


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelPlan:
    """The plan of a kernel that learns, with a cache of the test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = make_plan(kernelspec_of("restored"), private_connection_info(), "")
    return replace(made, spec=replace(made.spec, preload="auto"))


def report(names: object, **more: object) -> bytes:
    head = json.dumps({"do": "imports", "names": names, **more}).encode()
    return struct.pack(">I", len(head)) + head


def add(kernel: ImportReports, found: Report) -> None:
    if kernel.take(found):
        kernel.count()


# -- the choice ------------------------------------------------------------------------------------


def test_usual_modules_are_chosen_until_something_is_learned() -> None:
    assert choose(Counts()) == PRIOR
    assert choose(Counts(1, {"polars": 1})) == PRIOR
    assert choose(Counts(2, {"polars": 2})) == ("polars",)
    assert choose(Counts(DROP_KERNELS, {"polars": 0})) == ()


def test_modules_of_enough_kernels_are_chosen_the_most_used_first() -> None:
    counts = Counts(20, {"rare": 3, "often": 12, "just": 4, "always": 20, "once": 1})
    assert choose(counts) == ("always", "often", "just")
    assert choose(Counts(2, {"a": 1, "b": 2})) == ("b",)
    many = {f"m{number}": 9 for number in range(MAX_NAMES)}
    assert len(choose(Counts(9, many))) == MAX_CHOSEN


def test_kernel_counts_once_and_old_use_fades() -> None:
    counts = add_report(Counts(), ["numpy"], is_first=True)
    counts = add_report(counts, ["pandas"], is_first=False)
    assert counts == Counts(1, {"numpy": 1, "pandas": 1})
    counts = Counts(MAX_KERNELS - 1, {"old": 40, "gone": 1, "new": 80})
    assert add_report(counts, ["new"], is_first=True) == Counts(50, {"old": 20, "new": 40})


def test_names_are_bounded_and_the_rarest_are_dropped() -> None:
    counts = Counts(9, {f"m{number}": 2 for number in range(MAX_NAMES - 1)} | {"rare": 1})
    counts = add_report(counts, ["new"], is_first=True)
    assert len(counts.names) == MAX_NAMES
    assert "new" in counts.names
    assert "rare" not in counts.names
    assert max(add_report(Counts(1, {"a": 1}), ["a"], is_first=False).names.values()) == 1


def test_snapshot_is_made_anew_for_a_new_module_or_an_unused_one() -> None:
    made = Preloaded(("numpy", "bad"), ("numpy",), {"bad": "why"})
    assert not is_outdated(made, Counts(4, {"numpy": 4, "bad": 4}))
    assert is_outdated(made, Counts(4, {"numpy": 4, "polars": 2}))
    assert not is_outdated(made, Counts(DROP_KERNELS - 1, {"bad": 4}))
    assert is_outdated(made, Counts(DROP_KERNELS, {"bad": 4}))
    assert not is_outdated(made, Counts(10, {"numpy": 1, "bad": 4}))


def test_restored_kernel_must_be_as_it_was_but_for_random_state() -> None:
    before = {"threads": 1, "children": 0, "random": "a", "numpy.random": "b"}
    fresh = {"random": "c", "numpy.random": "d"}
    assert find_difference(before, {**before, **fresh}) is None
    assert "random" in (find_difference(before, {**before, **fresh, "random": "a"}) or "")
    assert "numpy" in (find_difference(before, {**before, **fresh, "numpy.random": "b"}) or "")
    assert "2 threads" in (find_difference(before, {**before, **fresh, "threads": 2}) or "")
    assert "children" in (find_difference(before, {**before, **fresh, "children": None}) or "")


def test_variable_that_modules_read_leaves_them_out(
    plan: KernelPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As does another setting, a kernel that cannot report, or one with little memory."""
    assert find_kernel_facts(plan).settings["preload"] == "auto"
    spec = replace(plan.spec, environment=("OMP_NUM_THREADS",))
    request = replace(plan.request, environment={"OMP_NUM_THREADS": "1"})
    assert find_kernel_facts(replace(plan, spec=spec, request=request)).settings["preload"] == ()
    assert (
        find_kernel_facts(replace(plan, argv=("python", "{connection_file}"))).settings["preload"]
        == ()
    )
    relayed = replace(plan, spec=replace(plan.spec, kernel_mode="relay"))
    assert find_kernel_facts(relayed).settings["preload"] == ()
    small = replace(plan, spec=replace(plan.spec, memory_limit=MIN_LEARNED_MEMORY - 1))
    assert find_kernel_facts(small).settings["preload"] == ()  # it would begin above its limit
    assert learned_modules.learning_variables(plan)
    for other in (relayed, replace(plan, spec=replace(plan.spec, preload=("numpy",)))):
        assert learned_modules.learning_variables(other) == {}


# -- reports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", "a" * 101, "a.b.c.d", "a b", "../a", "a;b", "class", "a.", "é", 3, None, ["a"], "a\n"],
)
def test_odd_names_are_none_of_modules(name: object) -> None:
    assert not is_module_name(name)
    assert read_report(report([name, "numpy"])) == Report(("numpy",))


def test_hostile_reports_are_bounded() -> None:
    assert read_report(report(["numpy", "numpy", "a.b"])) == Report(("numpy", "a.b"))
    assert read_report(report([f"m{number}" for number in range(MAX_NAMES + 1)])) == Report()
    assert read_report(report({"numpy": 1})) == Report()
    assert read_report(report("numpy")) == Report()
    assert read_report(report(["numpy"], variables={})) == Report()
    odd = ["HOME", 3, ["OMP_NUM_THREADS"], "MKL_NUM_THREADS"]
    assert read_report(report([], variables=odd)) == Report((), frozenset({"MKL_NUM_THREADS"}))
    for other in (b"", b"1234", report(["a" * 9000]), b"\0\0\0\1[", b"\0\0\0\2{}", b"abcd[" * 1500):
        assert read_report(other) is None


def test_kernel_counts_only_what_is_installed_and_once(
    plan: KernelPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def look(plan: KernelPlan, name: str) -> bool:
        looked.append(name)
        return is_installed(plan, name)

    monkeypatch.setattr(learned_modules, "is_installed", look)
    kernel = ImportReports(plan)
    with ThreadPoolExecutor(4) as pool:
        reports = [Report(("numpy", "evil", "json", "numpy.linalg", "numpy.evil"))] * 20
        list(pool.map(lambda report: add(kernel, report), reports))
    add(kernel, Report(tuple(f"evil{number}" for number in range(200))))
    assert len(looked) == len(set(looked)) == MAX_NAMES
    add(kernel, Report(("pandas",)))
    counted = learned_modules.read(find_kind(plan))
    assert counted == Counts(1, {"numpy": 1, "numpy.linalg": 1})
    add(ImportReports(plan), Report(("numpy",)))
    assert learned_modules.read(find_kind(plan)) == Counts(2, {"numpy": 2, "numpy.linalg": 1})
    assert learned_modules.with_learned(plan).learned == ("numpy",)
    assert learned_modules.find_outdated(plan, Preloaded(("numpy",), ("numpy",))) is None
    wanted = learned_modules.find_outdated(plan, Preloaded(("pandas",), ("pandas",)))
    assert wanted is not None
    assert wanted.learned == ("numpy",)


def test_reports_without_end_have_one_worker(
    plan: KernelPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if what they report comes while it counts, and again and again."""
    kernel = ImportReports(plan)
    counted: list[tuple[str, ...]] = []

    def change(kind: str, work: Any) -> None:
        counted.append(tuple(work(Counts()).names))
        assert not kernel.take(Report(("numpy", "pandas")))

    monkeypatch.setattr(learned_modules, "change", change)
    monkeypatch.setattr(learned_modules, "is_installed", lambda plan, name: True)
    assert kernel.take(Report(("numpy",)))
    kernel.count()
    assert counted == [("numpy",), ("pandas",)]
    assert not kernel.take(Report(("pandas", "numpy")))
    assert kernel.take(Report(("polars",)))


def test_variable_that_cells_of_enough_kernels_set_turns_it_off(
    plan: KernelPlan, caplog: pytest.LogCaptureFixture
) -> None:
    """Not one that the kernelspec has set, and not one kernel alone: nobody hears of that. It fades
    like everything else."""
    caplog.set_level("INFO")
    late = Report(("numpy",), frozenset({"OMP_NUM_THREADS"}))
    add(ImportReports(replace(plan, environment={"OMP_NUM_THREADS": "1"})), late)
    assert learned_modules.read(find_kind(plan)) == Counts(1, {"numpy": 1})
    kernel = ImportReports(plan)
    add(kernel, late)
    add(kernel, late)
    counted = learned_modules.read(find_kind(plan))
    assert counted == Counts(2, {"numpy": 2}, 1)
    assert choose(counted) == ("numpy",)
    assert not is_outdated(Preloaded(("numpy",), ("numpy",)), counted)
    assert caplog.text == ""
    for _ in range(2):
        add(ImportReports(plan), Report((), late.variables))
    counted = learned_modules.read(find_kind(plan))
    assert counted == Counts(2, {"numpy": 2}, 3)
    assert caplog.text.count("such as OMP_NUM_THREADS") == 1
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert choose(replace(counted, kernels=15)) == choose(counted) == ()
    assert choose(replace(counted, kernels=16, names={"numpy": 9})) == ("numpy",)
    assert is_outdated(Preloaded(("numpy",), ("numpy",)), counted)
    assert not is_outdated(Preloaded((), ()), counted)
    for _ in range(2):
        counted = add_report(replace(counted, kernels=MAX_KERNELS), [], is_first=False)
    assert counted.late == 0


def test_nothing_is_kept_if_it_is_turned_off(plan: KernelPlan, tmp_path: Path) -> None:
    add(ImportReports(replace(plan, spec=replace(plan.spec, preload=()))), Report(("numpy",)))
    add(ImportReports(replace(plan, spec=replace(plan.spec, snapshot="off"))), Report(("numpy",)))
    assert not (tmp_path / "cache/gvisor-kernel/imports").exists()


def test_files_are_private_and_odd_ones_are_ignored(
    plan: KernelPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned_modules, "MAX_KINDS", 2)
    for kind in ("a" * 32, "b" * 32, find_kind(plan)):
        learned_modules.change(kind, lambda counts: Counts(3, {"numpy": 3}))
    root = tmp_path / "cache/gvisor-kernel/imports"
    files = sorted(root.glob("*.json"))
    assert len(files) == 2
    path = root / f"{find_kind(plan)}.json"
    assert path in files
    assert (path.stat().st_mode & 0o777, root.stat().st_mode & 0o777) == (0o600, 0o700)
    assert json.loads(path.read_text()) == {"kernels": 3, "names": {"numpy": 3}, "late": 0}
    for odd in ("", "[]", '{"kernels": 1}', '{"kernels": true, "names": {}}', "x" * 20_000):
        path.write_text(odd)
        assert learned_modules.read(find_kind(plan)) == Counts()
    path.unlink()
    path.symlink_to(files[0])
    assert learned_modules.read(find_kind(plan)) == Counts()
    path.unlink()
    os.mkfifo(path)  # it must not be waited for
    assert learned_modules.read(find_kind(plan)) == Counts()
    learned_modules.change(find_kind(plan), lambda counts: add_report(counts, ["a"], is_first=True))
    assert learned_modules.read(find_kind(plan)) == Counts(1, {"a": 1})  # it is replaced


@pytest.mark.parametrize(
    "content",
    [
        *(None, [], {}, {"kernels": 1, "names": []}, {"kernels": 1, "names": {}}),
        *({"kernels": -1, "names": {}, "late": 0}, {"kernels": 1, "names": {}, "late": True}),
        *(
            {"kernels": 1, "names": {"a b": 1}, "late": 0},
            {"kernels": 1, "names": {"a": 1.5}, "late": 0},
        ),
        {"kernels": 1, "names": {f"m{number}": 1 for number in range(MAX_NAMES + 1)}, "late": 0},
    ],
)
def test_malformed_counts_are_refused(content: Any) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        read_counts(content)


def test_json_of_counts_and_of_what_was_imported() -> None:
    counts = Counts(3, {"numpy": 2}, 1)
    assert read_counts(asdict(counts)) == counts
    made = Preloaded(("numpy", "bad"), ("numpy",), {"bad": "why"})
    assert read_preloaded(json.loads(json.dumps(asdict(made)))) == made
    for odd in (None, {}, {"wanted": ["a b"], "imported": [], "left_out": {}}, {"wanted": 3}):
        assert read_preloaded(odd) is None


# -- snapshots -------------------------------------------------------------------------------------


def test_modules_of_a_kernel_that_is_not_restored_as_saved_are_left_out(
    plan: KernelPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def make(store: object, plan: KernelPlan, report: object, skipped: dict[str, str]) -> str:
        made.append(skipped)
        if not skipped:
            raise Misbehaved("2 threads")
        return "made"

    monkeypatch.setattr(snapshot_builder, "_make_once", make)
    wanted = replace(plan, learned=("numpy", "pandas"))
    assert snapshot_builder.make_snapshot(wanted, lambda text, done: None) == "made"  # type: ignore[comparison-overlap]
    assert made == [{}, {"numpy": "2 threads", "pandas": "2 threads"}]


def test_snapshot_that_was_asked_for_waits_for_the_one_that_is_being_made(
    plan: KernelPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_builder, "_make_once", lambda *arguments: "made")
    other, said = ExitStack(), []

    def report(text: str, done: float) -> None:
        said.append(text)
        other.close()

    assert other.enter_context(builder_lock(Store.open()))
    assert snapshot_builder.make_snapshot(plan, report) == "made"  # type: ignore[comparison-overlap]
    assert said == ["Waiting for another process that makes a snapshot"]


def test_kernel_that_ends_by_a_learned_module_is_saved_without_it() -> None:
    with pytest.raises(Misbehaved, match="it ended"), snapshot_builder.suspecting({"numpy"}):
        raise LaunchError("it ended")
    with pytest.raises(LaunchError), snapshot_builder.suspecting(()):
        raise LaunchError("it ended")


def test_spare_of_a_snapshot_that_was_replaced_does_not_fit(
    plan: KernelPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox: Any = SimpleNamespace(poll=lambda: None)
    runtime = SimpleNamespace(has_current_mounts=lambda *words: True)
    monkeypatch.setattr(
        "gvisor_kernel.kernel.preparation.get_snapshot_runtime", lambda name: runtime
    )
    key = SnapshotKey({})
    spare = Spare(Kind.of(plan), Restored(sandbox, key.name, SnapshotRun(1, "first")))
    assert spare.fits(Kind.of(plan), key, SnapshotRun(1, "first"))
    assert not spare.fits(Kind.of(plan), key, SnapshotRun(1, "second"))
