"""install and uninstall: the kernelspecs that Jupyter finds, and errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from gvisor_kernel.cli import kernelspecs, snapshots
from gvisor_kernel.cli.checks.jupyter import check_kernelspec
from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import KernelspecError, SnapshotError
from gvisor_kernel.images import Store
from gvisor_kernel.images.importer import Import
from gvisor_kernel.jupyter.kernelspecs import find_kernelspecs, find_template, read_kernelspec
from gvisor_kernel.kernel import restore, snapshot_builder
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.warm_up import Report
from gvisor_kernel.snapshots.snapshot import Snapshot

from ..world import PROJECT


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory of Jupyter for this user."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "data"


def test_jupyter_finds_installed_kernelspec(data_dir: Path) -> None:
    assert main(["install", "--user", "--name", "gk-one", "--display-name", "One"]) == 0
    spec = KernelSpecManager().get_kernel_spec("gk-one")
    assert Path(spec.resource_dir) == data_dir / "kernels/gk-one"
    assert spec.display_name == "One"
    assert spec.argv == [
        *(sys.executable, "-P", "-m", "gvisor_kernel", "launch"),
        *("--kernel", "gk-one", "-f", "{connection_file}"),
    ]
    assert spec.metadata["kernel_provisioner"] == {
        "provisioner_name": "gvisor-provisioner",
        "config": {},
    }
    logos = {path.name for path in Path(spec.resource_dir).glob("logo-*")}
    assert logos == {"logo-32x32.png", "logo-64x64.png", "logo-svg.svg"}


def test_uninstall_removes_kernelspec(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["install", "--user", "--name", "gk-one"])
    assert main(["uninstall", "--name", "gk-one"]) == 0
    assert not (data_dir / "kernels/gk-one").exists()
    assert main(["uninstall", "--name", "gk-one"]) == 1
    assert "There is no kernelspec 'gk-one'" in capsys.readouterr().err


def test_second_install_replaces_settings(data_dir: Path) -> None:
    main(["install", "--user", "--name", "gk-one", "--set", "memory_limit=1G"])
    chosen = ["--set", "uploads=None", "--set", "cpu_shares=9", "--set", "spare=false"]
    main(["install", "--user", "--name", "gk-one", *chosen])
    assert read_kernelspec(data_dir / "kernels/gk-one").settings == {
        "uploads": None,
        "cpu_shares": 9,
        "spare": False,
    }


def test_a_kernelspec_of_an_own_name_is_told_from_the_usual_one(data_dir: Path) -> None:
    for name in ("gvisor-bash", "gk-one"):
        main(["install", "--user", "--name", name, "--language", "bash"])
    shown = {spec.name: spec.display_name for spec in find_kernelspecs(data_dir / "kernels")}
    assert shown == {"gvisor-bash": "Bash (gVisor)", "gk-one": "Bash (gVisor, gk-one)"}


def test_an_update_keeps_what_it_does_not_name(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--set", "memory_limit=1G", "--set", "cpu_shares=9", "--display-name", "One"]
    main(["install", "--user", "--name", "gk-one", "--language", "bash", *chosen])
    directory = data_dir / "kernels/gk-one"
    before = read_kernelspec(directory)
    document = json.loads((directory / "kernel.json").read_text())
    document |= {"env": {"A": "b"}, "metadata": {**document["metadata"], "mine": [1]}}
    (directory / "kernel.json").write_text(json.dumps(document))
    update = ["install", "--update", "--name", "gk-one"]
    assert main([*update, "--memory", "8G", "--set", "pids_limit=99"]) == 0
    after = read_kernelspec(directory)
    assert after.settings == {**before.settings, "memory_limit": "8G", "pids_limit": 99}
    assert (after.display_name, after.language) == ("One", "bash")
    kept = json.loads((directory / "kernel.json").read_text())
    kept["metadata"]["kernel_provisioner"] = document["metadata"]["kernel_provisioner"]
    assert kept == document
    assert main(update) == 0
    assert read_kernelspec(directory) == after
    assert main([*update, "--set", "memory_limit=1 apple"]) == 1
    assert read_kernelspec(directory) == after
    prefix = ["--prefix", str(tmp_path / "other")]
    assert main([*update, *prefix]) == 1
    assert "no kernelspec 'gk-one' of gvisor-kernel to update" in capsys.readouterr().err


def test_an_update_changes_the_kernelspec_that_jupyter_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one in a folder of JUPYTER_PATH, to which an install does not write."""
    main(["install", "--prefix", str(tmp_path), "--name", "gk-one"])
    (tmp_path / "share/jupyter").rename(tmp_path / "mine")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "mine"))
    update = ["install", "--update", "--name", "gk-one", "--no-snapshot"]
    assert main([*update, "--memory", "8G"]) == 0
    found = read_kernelspec(tmp_path / "mine/kernels/gk-one")
    assert found.settings["memory_limit"] == "8G"
    assert main([*update, "--language", "bash"]) == 1
    assert "leave out --language" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["memory_limit=1 apple", "memroy_limit=1G", "memory_limit"])
def test_wrong_setting_installs_nothing(
    data_dir: Path, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install", "--user", "--set", setting]) == 1
    assert setting.partition("=")[0] in capsys.readouterr().err
    assert not data_dir.exists()


def test_setting_that_jupyters_configuration_completes_is_accepted(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is when the kernel starts: arguments that the administrator allows, and hosts that only
    the configuration names. The doctor accepts the kernelspecs, too."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "jupyter_config.py").write_text(
        "c.GVisorProvisioner.slurm = {'allowed_arguments': ['--constraint=*']}\n"
        "c.GVisorProvisioner.ssh = {'hosts': ['node1']}\n"
    )
    for runtime in ("slurm", "ssh"):
        slurm = '{"arguments": ["--constraint=avx512"]}'
        command = ["install", "--user", "--name", f"gk-{runtime}", "--set", f"runtime={runtime}"]
        assert main([*command, "--set", f"slurm={slurm}"]) == 0, capsys.readouterr().err
        found = read_kernelspec(data_dir / f"kernels/gk-{runtime}")
        assert check_kernelspec(found).state == "ok"
    assert main([*command, "--set", 'slurm={"arguments": ["--exclusive"]}']) == 1
    assert "the administrator allows (--constraint=*)" in capsys.readouterr().err


def test_install_and_uninstall_with_prefix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install", "--prefix", str(tmp_path)]) == 0
    assert f"JUPYTER_PATH={tmp_path}/share/jupyter" in capsys.readouterr().out
    directory = tmp_path / "share/jupyter/kernels/gvisor-python"
    assert find_kernelspecs(directory.parent) == [read_kernelspec(directory)]
    assert main(["uninstall", "--prefix", str(tmp_path)]) == 0
    assert not directory.exists()


def test_foreign_kernelspec_is_not_changed(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = data_dir / "kernels/gk-one"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text('{"argv": ["python3"], "display_name": "x", "metadata": {}}')
    assert main(["install", "--user", "--name", "gk-one"]) == 1
    assert main(["uninstall", "--user", "--name", "gk-one"]) == 1
    assert "is not a kernelspec of gvisor-kernel" in capsys.readouterr().err
    assert (other / "kernel.json").exists()


@pytest.mark.parametrize("name", ["../x", "A B", "", "a/b"])
def test_invalid_kernelspec_name_is_refused(data_dir: Path, name: str) -> None:
    assert main(["install", "--user", "--name", name]) == 1
    assert not data_dir.exists()


def test_installed_files_are_readable_with_any_umask(data_dir: Path) -> None:
    before = os.umask(0o077)
    try:
        main(["install", "--user", "--name", "gk-one"])
    finally:
        os.umask(before)
    directory = data_dir / "kernels/gk-one"
    assert directory.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o644}


def test_unwritable_prefix_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "share").write_text("a file, which is in the way for root too")
    assert main(["install", "--prefix", str(tmp_path)]) == 1
    assert "--user" in capsys.readouterr().err


def test_missing_interpreter_is_none(data_dir: Path) -> None:
    main(["install", "--user", "--name", "gk-one"])
    path = data_dir / "kernels/gk-one/kernel.json"
    spec = json.loads(path.read_text())
    spec["argv"][0] = "/nonexistent/python"
    path.write_text(json.dumps(spec))
    assert read_kernelspec(path.parent).interpreter is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"argv": 3}', '{"metadata": []}', '{"metadata": null}', "\udcff"]
)
def test_broken_kernel_json_is_no_kernelspec_of_gvisor_kernel(tmp_path: Path, text: str) -> None:
    (tmp_path / "kernel.json").write_bytes(os.fsencode(text))
    with pytest.raises(KernelspecError):
        read_kernelspec(tmp_path)


def test_template_is_that_of_the_repository() -> None:
    assert find_template() == PROJECT / "kernelspecs/gvisor-python"
    assert json.loads((find_template() / "kernel.json").read_text())["argv"][0] == "python3"


def test_installed_argv_imports_nothing_from_the_notebook_folder(
    data_dir: Path, tmp_path: Path
) -> None:
    main(["install", "--user", "--name", "gk-one"])
    for name in ("argparse", "gvisor_kernel", "shutil"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('code of the sandbox ran')")
    argv = [*read_kernelspec(data_dir / "kernels/gk-one").argv[:5], "--help"]
    result = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert result.returncode == 0, result.stderr
    assert "run one kernel in a sandbox" in result.stdout.lower()


def test_install_checks_image_and_writes_memory_limit(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The image has an empty file called python3: an install does not start it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "images"))
    install = ["install", "--user", "--name", "gk-one", "--image", "world", "--memory", "8G"]
    assert main(install) == 1
    assert "There is no image 'world'" in capsys.readouterr().err
    python = tmp_path / "root/usr/bin/python3"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    Import(Store.open(), "world").unpack(tmp_path / "root", "root")
    assert main([*install, "--display-name", "One", "--set", "cpu_shares=9"]) == 0
    found = read_kernelspec(data_dir / "kernels/gk-one")
    assert found.settings == {"image": "world", "memory_limit": "8G", "cpu_shares": 9}
    assert main([*install, "--set", "image=host"]) == 1
    assert "The setting image is given twice" in capsys.readouterr().err
    python.unlink()
    Import(Store.open(), "empty").unpack(tmp_path / "root", "root")
    assert main(["install", "--user", "--name", "gk-two", "--image", "empty"]) == 1
    assert "The image empty has no python3" in capsys.readouterr().err
    assert not (data_dir / "kernels/gk-two").exists()


@pytest.fixture
def built(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernelspecs for which an install made a snapshot."""
    names: list[str] = []

    def build(plan: KernelPlan, preload: object, report: Report) -> Snapshot:
        report("Importing [bold]", 0.5)
        names.append(plan.request.kernel_name)
        raise SnapshotError("The disk is full.")

    monkeypatch.setattr(kernelspecs, "build_missing", snapshots.build_missing)
    monkeypatch.setattr(snapshot_builder, "build_snapshot", build)
    monkeypatch.setattr(restore, "has_snapshot", lambda plan: False)
    return names


def test_install_makes_the_snapshot(
    data_dir: Path, built: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernelspec is installed even if that fails."""
    assert main(["install", "--user", "--name", "gk-one"]) == 0
    assert built == ["gk-one"]
    assert "the first kernel starts cold: The disk is full." in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--no-snapshot"], ["--set", "snapshot=off"]])
def test_install_makes_no_snapshot(data_dir: Path, built: list[str], option: list[str]) -> None:
    assert main(["install", "--user", "--name", "gk-one", *option]) == 0
    assert built == []


def test_install_keeps_a_snapshot_that_fits(
    data_dir: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "has_snapshot", lambda plan: True)
    assert main(["install", "--user", "--name", "gk-one"]) == 0
    assert built == []
