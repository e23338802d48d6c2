"""An installed wheel, without the repository: it contains all files, and the commands work."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ..world import PROJECT

LOGOS = {"logo-32x32.png", "logo-64x64.png", "logo-svg.svg"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel. Its dependencies come from this environment."""
    base = tmp_path_factory.mktemp("wheel")

    def run(*argv: object) -> None:
        result = subprocess.run(
            [str(word) for word in argv], cwd=PROJECT, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stdout + result.stderr

    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", base / "dist")
    (wheel,) = (base / "dist").iterdir()
    venv = base / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", "-q"]
    run(*pip, "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", wheel)
    # A path in a .pth file is searched last, and .pth files in it are not read: so the editable
    # installs of this environment are not found.
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv


def run_in(environment: Path, *argv: str) -> str:
    result = subprocess.run(
        [environment / "bin" / argv[0], *argv[1:]],
        cwd=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_wheel_contains_the_kernelspec(environment: Path) -> None:
    kernelspec = environment / "share/jupyter/kernels/gvisor-python"
    assert {path.name for path in kernelspec.iterdir()} == {"kernel.json"} | LOGOS
    document = json.loads((kernelspec / "kernel.json").read_text())
    assert document["metadata"]["kernel_provisioner"]["provisioner_name"] == "gvisor-provisioner"


def test_wheel_is_imported_and_not_the_repository(environment: Path) -> None:
    where = run_in(environment, "python", "-c", "import gvisor_kernel as g; print(g.__file__)")
    assert where.startswith(str(environment))


@pytest.mark.parametrize("command", ["gvisor-kernel", "jupyter-gvisor"])
def test_wheel_installs_the_commands(environment: Path, command: str) -> None:
    assert "Jupyter kernels that run inside" in run_in(environment, command, "--help")


def test_install_and_uninstall_work_without_the_repository(environment: Path) -> None:
    options = ("--sys-prefix", "--name", "gk-wheel", "--no-snapshot")
    run_in(environment, "gvisor-kernel", "install", *options)
    kernelspec = environment / "share/jupyter/kernels/gk-wheel"
    assert {path.name for path in kernelspec.iterdir()} == {"kernel.json"} | LOGOS
    argv = json.loads((kernelspec / "kernel.json").read_text())["argv"]
    assert argv[0] == str(environment / "bin/python")
    run_in(environment, "gvisor-kernel", "uninstall", "--sys-prefix", "--name", "gk-wheel")
    assert not kernelspec.exists()


def test_wheel_enables_the_extension_of_the_server(environment: Path) -> None:
    """Which does no harm where there is no server: nothing of one is imported."""
    enabled = environment / "etc/jupyter/jupyter_server_config.d/gvisor_kernel.json"
    extensions = json.loads(enabled.read_text())["ServerApp"]["jpserver_extensions"]
    assert extensions == {"gvisor_kernel.server": True}
    code = (
        "import sys, gvisor_kernel.server as s; from pathlib import Path; here = Path(s.__file__)"
        ".parent; print('jupyter_server' in sys.modules, (here / 'openapi.json').exists(),"
        " (here / 'events.yaml').exists())"
    )
    assert run_in(environment, "python", "-c", code).split() == ["False", "True", "True"]


def test_wheel_contains_the_skills(environment: Path) -> None:
    code = (
        "from gvisor_kernel.skills import find_shipped as f, shipped_skills as s; print(f(), *s())"
    )
    folder, *names = run_in(environment, "python", "-c", code).split()
    assert folder.startswith(str(environment))
    assert sorted(names) == sorted(path.name for path in (PROJECT / "skills").glob("*/*"))
    assert (Path(folder) / "examples/skill-creator/reference/format.md").exists()


def test_wheel_is_typed_and_complete(environment: Path) -> None:
    (package,) = environment.glob("lib/python*/site-packages/gvisor_kernel")
    assert (package / "py.typed").exists()
    for path in (PROJECT / "gvisor_kernel").rglob("*.py"):
        assert (package / path.relative_to(PROJECT / "gvisor_kernel")).exists()


def test_wheel_contains_the_dockerfiles(environment: Path) -> None:
    code = "from gvisor_kernel.images.engines import find_chain as f; print(*f('python'))"
    found = [Path(word) for word in run_in(environment, "python", "-c", code).split()]
    assert [path.name for path in found] == ["base", "python"]
    assert all(path.is_relative_to(environment) for path in found)
