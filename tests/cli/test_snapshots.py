"""``gvisor-kernel snapshot``: what it prints, which snapshots it removes, what it refuses."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from gvisor_kernel.cli import snapshots as module
from gvisor_kernel.cli.main import main
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.jupyter.plan_factory import check_provisioner
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import LaunchRequest, MountView
from gvisor_kernel.runtimes.mounts.outputs import keeps_outputs
from gvisor_kernel.snapshots.key import KernelFacts, find_host_facts, make_key
from gvisor_kernel.snapshots.manifest import make_manifest
from gvisor_kernel.snapshots.snapshot import PRELOADED, Meta, Snapshot
from gvisor_kernel.snapshots.snapshot_store import Store

from ..world import DEFAULT_KERNEL, World

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
        facts = KernelFacts([], {}, "/", {"preload": preload})
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


def test_commands_report_an_empty_store(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["list"], ["verify"], ["remove", "--all"], ["remove", "--stale"]):
        assert run(*argv) == 0
    assert capsys.readouterr().out == "No snapshots.\nNo snapshots.\n" + "Nothing to remove.\n" * 2
    assert run("remove", "0") == 1
    assert "There is no snapshot '0'" in capsys.readouterr().err


def test_list_shows_snapshots(store: Store, add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = add(), add("numpy", "pandas", kernel="\x1b[31mgvisor-other")
    os.utime(store.root / first / "used", (2e9, 2e9))
    os.utime(store.root / second / "used", (1e9, 1e9))
    assert run("list") == 0
    title, one, two, sums = capsys.readouterr().out.splitlines()
    assert title.split() == ["ID", "KERNEL", "PYTHON", "PRELOAD", "SIZE", "AGE", "USED", "STATE"]
    assert one.split()[:5] == [first[:12], "gvisor-python", "3.11.7", "3", "MiB"]
    assert one.split()[-1] == "fits"
    assert two.split()[:5] == [second[:12], "\\x1b[31mgvisor-other", "3.11.7", "numpy,", "pandas"]
    assert sums.startswith("6 MiB of at most ")
    assert str(store.root) in sums
    assert run("list", "--json") == 0
    listed: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [snapshot["id"] for snapshot in listed] == [first, second]
    assert listed[1]["preload"] == "numpy, pandas"
    assert listed[0]["created"] == 1e9
    assert (listed[0]["fits"], listed[0]["reason"]) == (True, None)
    assert "s3cret" not in json.dumps(listed)


def test_list_shows_why_snapshot_is_stale(
    add: Add, library: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    library.write_text("upgraded")
    assert run("list") == 0
    assert f"stale: {library} has changed" in capsys.readouterr().out.splitlines()[1]
    assert run("list", "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["fits"], listed["reason"]) == (False, f"{library} has changed")

    def find_no_runsc(parts: object, program: object) -> list[str]:
        raise RuntimeMissing("The program runsc (gVisor) is not installed.")

    monkeypatch.setattr(module, "find_stale_parts", find_no_runsc)
    assert run("list") == 0
    assert "stale: The program runsc (gVisor) is not installed\n" in capsys.readouterr().out


def test_list_shows_why_snapshot_is_unusable(
    store: Store, add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after an update of gvisor-kernel to a release with another format."""
    fits, unusable = add(), add("numpy")
    meta = store.root / unusable / "meta.json"
    meta.write_text("{}")
    assert run("list") == 0
    _, one, two, sums = capsys.readouterr().out.splitlines()
    assert one.startswith(fits[:12])
    assert two.startswith(unusable[:12])
    assert two.endswith(f"unusable: {meta} is damaged, or of another release")
    assert sums.startswith("3 MiB of at most ")


def test_verify_shows_reasons(
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
    assert "stale: the CPU features or the number of CPUs changed" in capsys.readouterr().out


def test_each_stale_part_has_reason() -> None:
    from gvisor_kernel.snapshots.key import find_stale_parts

    assert set(find_stale_parts({})) == set(module.REASONS)


def test_remove_removes_chosen_snapshots(
    store: Store, add: Add, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted([add(), add("numpy"), add("pandas")])
    assert run("remove", names[0][:12]) == 0
    assert f"Removed {names[0][:12]}, 3 MiB" in capsys.readouterr().out
    assert sorted(snapshot.meta.key for snapshot in store.snapshots()) == names[1:]
    assert run("remove", "--stale") == 0
    assert capsys.readouterr().out == "Nothing to remove.\n"
    library.write_text("edited")
    fresh = add("scipy")
    assert run("remove", "--stale") == 0
    assert [snapshot.meta.key for snapshot in store.snapshots()] == [fresh]
    assert run("remove", "--all") == 0
    assert store.snapshots() == []


def test_ambiguous_id_is_refused(
    store: Store, add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    add(), add("numpy")
    assert run("remove", "") == 1
    assert "The IDs of 2 snapshots begin with ''" in capsys.readouterr().err


def test_snapshot_in_use_is_kept(
    store: Store, add: Add, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gvisor_kernel.snapshots.snapshot_store.BUSY_SECONDS", 0.05)
    name = add()
    with store.use(name):
        assert run("remove", name) == 1
    assert f"Kernels are starting from {name[:12]} now" in capsys.readouterr().err
    assert len(store.snapshots()) == 1


def test_build_reports_result(
    store: Store, add: Add, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def build(kernel: str, preload: object, report: Callable[[str, float], None]) -> Snapshot:
        asked.append((kernel, preload))
        report("starting \x1b[31m", 0.1)
        report("writing", 0.9)
        add()
        made = store.snapshots()[0]
        left_out = {"wanted": ["odd"], "imported": [], "left_out": {"odd": "it ends\x1b[31m"}}
        return replace(made, meta=replace(made.meta, facts={PRELOADED: left_out}))

    checked: list[str] = []
    factory = "gvisor_kernel.jupyter.plan_factory"
    monkeypatch.setattr(f"{factory}.check_provisioner", checked.append)
    monkeypatch.setattr("gvisor_kernel.cli.snapshots._make_plan", lambda name: name)
    monkeypatch.setattr("gvisor_kernel.kernel.snapshot_builder.build_snapshot", build)
    assert run("build", "--preload", "numpy, pandas,numpy,") == 0
    assert run("build", "--kernel", "other") == 0
    assert asked == [("gvisor-python", ("numpy", "pandas")), ("other", None)]
    assert checked == ["gvisor-python", "other"]
    captured = capsys.readouterr()
    assert captured.out.startswith("Made ")
    assert captured.out.count("Not imported ahead: odd (it ends") == 2
    assert "\x1b" not in captured.out + captured.err
    assert captured.err == ""
    assert run("build", "--preload", "os; print()") == 1
    assert "preload[0]" in capsys.readouterr().err


def test_a_snapshot_that_is_made_below_usr_fits_notebooks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels in folders of a system keep no outputs, so theirs would fit no notebook's kernel."""
    monkeypatch.chdir("/usr")
    plan = module._make_plan(DEFAULT_KERNEL)
    assert keeps_outputs(plan.spec, plan.request)


KERNELSPEC = {
    "argv": ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "Python 3",
    "language": "python",
}
OURS = {"metadata": {"kernel_provisioner": {"provisioner_name": "gvisor-provisioner"}}}


@pytest.fixture
def kernelspecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which Jupyter finds kernelspecs, with ``theirs`` and ``mine`` in it."""
    folder = tmp_path / "data" / "kernels"
    for name, more in (("theirs", {}), ("mine", OURS)):
        (folder / name).mkdir(parents=True)
        (folder / name / "kernel.json").write_text(json.dumps({**KERNELSPEC, **more}))
    monkeypatch.setattr(KernelSpecManager, "kernel_dirs", [str(folder)])
    monkeypatch.delenv("JUPYTER_DEFAULT_PROVISIONER_NAME", raising=False)
    return folder


@pytest.mark.usefixtures("store")
def test_build_refuses_kernelspec_of_other_provisioner(
    kernelspecs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build", "--kernel", "theirs") == 1
    said = capsys.readouterr().err
    assert "The kernelspec 'theirs' does not start kernels in gVisor" in said
    assert "its provisioner is local-provisioner" in said
    assert "name one of these kernelspecs: mine." in said
    (kernelspecs / "mine" / "kernel.json").unlink()
    assert run("build", "--kernel", "theirs") == 1
    assert "run: gvisor-kernel install" in capsys.readouterr().err
    assert run("build", "--kernel", "none") == 1
    assert "There is no kernelspec named 'none'" in capsys.readouterr().err


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("runtime", ["slurm", "ssh"])
def test_build_for_other_machines_says_when_they_have_snapshots(
    kernelspecs: Path, capsys: pytest.CaptureFixture[str], runtime: str
) -> None:
    stanza = {"provisioner_name": "gvisor-provisioner"}
    config = {"runtime": runtime, "ssh": {"hosts": ["node1"]}}
    metadata = {"kernel_provisioner": {**stanza, "config": config}}
    document = json.dumps({**KERNELSPEC, "metadata": metadata})
    (kernelspecs / "mine" / "kernel.json").write_text(document)
    assert run("build", "--kernel", "mine") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "Snapshots of kernels on other machines are made there, after a cold start" in said
    assert "start a kernel" in said


def test_our_provisioner_is_accepted_also_as_default(
    kernelspecs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_provisioner("mine")
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "gvisor-provisioner")
    check_provisioner("theirs")
