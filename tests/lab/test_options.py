"""Which options of Jupyter, and which folders, ``gvisor-kernel lab`` takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.lab import application
from gvisor_kernel.lab.application import check_folder, make_config, private_folder
from gvisor_kernel.lab.policy import EXTENSIONS, harden, parse_options


@pytest.mark.parametrize(
    "option",
    [
        *("--ServerApp.terminals_enabled=True", "--ServerApp.jpserver_extensions={}"),
        *("--ServerApp.kernel_manager_class=x", "--ServerApp.allow_origin=*"),
        *("--ServerApp.disable_check_xsrf=True", "--IdentityProvider.token="),
        *("--ServerApp.ip=0.0.0.0", "--ServerApp.root_dir=/", "--FolderContents.allow_hidden=True"),
        *("--KernelSpecManager.ensure_native_kernel=True", "--LabApp.extension_manager=pypi"),
        "--KernelProvisionerFactory.default_provisioner_name=x",
        *("--MappingKernelManager.default_kernel_name=python3", "--GVisorServer.closed=False"),
        *("--ServerApp.tornado_settings={}", "--ServerApp.unknown=1", "--ip=0.0.0.0", "stray"),
        *("--ServerApp.port", "--ServerApp.port\n=1", "ServerApp.port=1")[1:],
    ],
)
def test_option_that_may_open_the_server_is_refused(option: str) -> None:
    with pytest.raises(GvisorKernelError, match=f"{option.partition('=')[0]} is not accepted"):
        parse_options([option])


def test_other_options_hold(tmp_path: Path) -> None:
    texts = ["--ServerApp.base_url=/x/", "--GVisorProvisioner.memory_limit=1G"]
    options = parse_options(texts)
    assert options.ServerApp.base_url == "/x/"
    config = make_config(tmp_path, tmp_path)
    config.merge(options)
    assert config.GVisorProvisioner.memory_limit == "1G"
    assert config.ServerApp.terminals_enabled is False
    # An old page would be a page of whatever server comes to its port.
    assert config.ServerApp.port not in (8888, make_config(tmp_path, tmp_path).ServerApp.port)


def test_folder_that_has_what_programs_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(os.environ["HOME"])
    environment = str(Path(sys.prefix).resolve())
    for folder in (
        str(home),
        "/",
        environment,
        f"{environment}/lib",
        os.environ["JUPYTER_DATA_DIR"],
    ):
        with pytest.raises(GvisorKernelError, match="What to do"):
            check_folder(folder)
    with pytest.raises(GvisorKernelError, match="is no folder"):
        check_folder(str(tmp_path / "missing"))
    (tmp_path / "link").symlink_to(home)
    with pytest.raises(GvisorKernelError, match="home"):
        check_folder(str(tmp_path / "link"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "project/.venv"))  # hidden, so not shown
    (tmp_path / "project/.venv").mkdir(parents=True)
    assert check_folder(str(tmp_path / "project")) == tmp_path / "project"


def test_files_with_names_that_are_not_shown_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those all of whose names are shown, nor links, nor beyond a number of names."""
    folder = tmp_path / "folder"
    (folder / ".git").mkdir(parents=True)
    (folder / "below").mkdir()
    for name in ("outside", "folder/own", "folder/.git/config"):
        (tmp_path / name).write_text(name)
    (folder / "below/own").hardlink_to(folder / "own")
    (folder / "below/outside").hardlink_to(tmp_path / "outside")
    (folder / "below/again").hardlink_to(tmp_path / "outside")
    (folder / "config").hardlink_to(folder / ".git/config")
    (folder / "link").symlink_to(tmp_path / "outside")
    found = application.find_other_names(folder)
    assert [path.parent.name for path in found] == ["below", "folder"]
    assert found[1] == folder / "config"
    monkeypatch.setattr(application, "MAX_LOOKED", 0)
    assert application.find_other_names(folder) == []


def test_private_folder_is_private_and_removed_with_those_of_killed_servers() -> None:
    runtime = Path(os.environ["JUPYTER_RUNTIME_DIR"])
    (runtime / "gvisor-lab-99999999-x").mkdir()
    settings = Path(os.environ["JUPYTER_CONFIG_DIR"], "lab/user-settings/a")
    settings.mkdir(parents=True)
    with private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "settings/a").is_dir()
        assert [found.name for found in runtime.glob("gvisor-*")] == [folder.name]
    assert not folder.exists()
    settings.rmdir()
    settings.parent.rmdir()
    settings.parent.parent.rmdir()


def test_kernelspec_comes_with_the_command_if_none_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_PATH", "/nonexistent")
    application.provide_kernelspecs(tmp_path)
    assert os.environ["JUPYTER_PATH"] == "/nonexistent"
    monkeypatch.setattr(application, "find_kernelspecs", list)
    application.provide_kernelspecs(tmp_path)
    shown = tmp_path / "share/jupyter"
    assert os.environ["JUPYTER_PATH"] == f"{shown}:/nonexistent"
    assert (shown / "kernels/gvisor-python/kernel.json").exists()


def test_command_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", str(tmp_path), "--kernel", "nothing"]) == 1
    assert "There is no kernelspec 'nothing'" in capsys.readouterr().err
    assert main(["lab", str(tmp_path), "--ServerApp.terminals_enabled=True"]) == 1
    assert "--ServerApp.terminals_enabled is not accepted" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["list", "--ServerApp.terminals_enabled=True"])
    assert "unrecognized arguments" in capsys.readouterr().err
    monkeypatch.setattr("gvisor_kernel.cli.lab.find_spec", lambda name: None)
    assert main(["lab", str(tmp_path)]) == 1
    assert "-m pip install jupyterlab" in capsys.readouterr().err


def test_hardening_names_settings_that_exist() -> None:
    """Jupyter does not start with a name that no class has, or ignores it."""
    from jupyter_server.serverapp import ServerApp
    from jupyterlab.labapp import LabApp

    from gvisor_kernel.lab.contents import FolderContents
    from gvisor_kernel.server.extension import GVisorServer

    config = Config()
    harden(config)
    classes: tuple[Any, ...] = (ServerApp, LabApp, FolderContents, GVisorServer)
    known = {each.__name__: each for each in classes}
    assert config.GVisorProvisioner == {"apply": "ask"}
    assert set(config) - {"JupyterNotebookApp", "GVisorProvisioner"} == set(known)
    for name, each in known.items():
        assert set(config[name]) <= set(each.class_traits(config=True)), name
        each(config=Config({name: config[name]}))  # values are accepted
    enabled = config.ServerApp.jpserver_extensions
    assert enabled["gvisor_kernel.server"]
    assert not {name for name, on in enabled.items() if on} - set(EXTENSIONS)
