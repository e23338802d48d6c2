"""An engine that is absent, hangs, or lacks something: each error says how to fix it."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.cli.checks.jupyter import find_specs
from gvisor_kernel.cli.doctor import run_check
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError, LaunchError, RuntimeMissing
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.checks import Check
from gvisor_kernel.runtimes.docker import engine
from gvisor_kernel.runtimes.docker.checks import check_engines
from gvisor_kernel.runtimes.docker.connection import explain_no_answer
from gvisor_kernel.runtimes.docker.runtime import DockerRuntime

from ..world import World
from .fake_engine import HEALTHY, fake_engine

INFO = HEALTHY["/info"]
SPEC = SandboxSpec(runtime="docker", image="some/image:1")


def start(address: str, monkeypatch: pytest.MonkeyPatch) -> GvisorKernelError:
    """Start a sandbox with the engine at ``address``; return the error."""
    monkeypatch.setenv("DOCKER_HOST", address)
    request = LaunchRequest("gvisor-python", "", Path("/"), "python3", {})
    with pytest.raises(GvisorKernelError) as caught:
        DockerRuntime().start(SPEC, request)
    assert address in caught.value.fact
    return caught.value


def test_answer_timeout_is_below_three_seconds() -> None:
    """The first question to a silent engine fails, and no other follows."""
    assert engine.ANSWER_SECONDS < 3


def test_missing_docker_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(RuntimeMissing) as caught:
        engine.connect()
    assert "gvisor-kernel[docker]" in caught.value.hint


def make_no_socket(path: Path) -> None:
    """There is no socket at all."""


def make_dead_socket(path: Path) -> None:
    """An engine that was killed leaves its socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("state", [make_no_socket, make_dead_socket])
def test_stopped_engine_is_an_error(
    state: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state(tmp_path / "s")
    error = start(f"unix://{tmp_path}/s", monkeypatch)
    assert "does not answer: nothing listens there" in error.fact
    assert "systemctl start docker" in error.hint
    assert "DOCKER_HOST" in error.hint


def test_silent_engine_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ANSWER_SECONDS", 0.3)
    with fake_engine(tmp_path / "s", version=None) as address:
        error = start(address, monkeypatch)
    assert "no answer within" in error.fact


def test_permission_denied_names_the_docker_group() -> None:
    error = explain_no_answer("unix:///x", PermissionError(13, "Permission denied"))
    assert "may not use" in error.fact
    assert "usermod -aG docker" in error.hint


VERSION = "Error while fetching server API version: "
SSL = f"{VERSION}HTTPSConnectionPool(host='h', port=1): Max retries exceeded (Caused by SSLError("
FAILED = "'[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"


@pytest.mark.parametrize(
    ("words", "fact", "hint"),
    [
        (
            f'{VERSION}400 Client Error ("Client sent an HTTP request to an HTTPS server.")',
            "wants TLS",
            "DOCKER_TLS_VERIFY=1",
        ),
        (
            f"{SSL}SSLError(1, '[SSL: WRONG_VERSION_NUMBER] wrong version')))",
            "not speak TLS",
            "2376",
        ),
        (f"{SSL}SSLCertVerificationError(1, {FAILED}: self-signed')))", "its cert", "CA_BUNDLE"),
        (f"{SSL}SSLCertVerificationError(1, {FAILED}: Hostname mism')))", "its cert", "ca.pem"),
        (f"{SSL}SSLError(1, '[SSL] tlsv1 alert unknown ca')))", "this user's cert", "cert.pem"),
        (f"{SSL}SSLError(1, '[SSL] certificate required')))", "this user's cert", "cert.pem"),
        (
            "TLSParameterError('Path to a certificate and key')",
            "cannot be read",
            "DOCKER_CERT_PATH",
        ),
        (f"{VERSION}(Caused by NameResolutionError('...'))", "name is not known", "DOCKER_HOST"),
        ("Invalid bind address format: foo", "no address", "ssh://user@host"),
        (f"{VERSION}(Errno 111] Connection refused", "nothing listens", "on its machine"),
    ],
)
def test_engine_elsewhere_is_not_told_to_be_started_for_other_faults(
    words: str, fact: str, hint: str
) -> None:
    """The words are those of a real engine with TLS."""
    error = explain_no_answer("tcp://h:1", Exception(words))
    assert re.search(fact, error.fact), error.fact
    assert hint in error.hint
    assert ("systemctl start docker" in error.hint) == (fact == "nothing listens")


def test_old_engine_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_engine(tmp_path / "s", version={"ApiVersion": "1.41"}) as address:
        error = start(address, monkeypatch)
    assert "too old" in error.fact
    assert "Docker 26" in error.hint


@pytest.mark.parametrize(
    ("info", "fact", "hint"),
    [
        ({**INFO, "Runtimes": {"runc": {"path": "runc"}}}, "no runtime runsc", "runsc install"),
        ({**INFO, "Runtimes": None}, "no runtime runsc", "runsc install"),
        ({**INFO, "Runtimes": {"runsc": {"path": "/usr/bin/runc"}}}, "another program", "install"),
        ({**INFO, "Runtimes": {"runsc": {"runtimeType": "x.y"}}}, "another program", "install"),
        ({**INFO, "MemoryLimit": False}, "cannot limit.*MemoryLimit", "cgroups"),
        ({**INFO, "PidsLimit": False}, "cannot limit.*PidsLimit", "cgroups"),
        ({**INFO, "OSType": "windows"}, "containers of windows", "Linux"),
    ],
)
def test_engine_without_a_needed_feature_is_an_error(
    info: dict[str, Any],
    fact: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fake_engine(tmp_path / "s", info=info) as address:
        error = start(address, monkeypatch)
    assert isinstance(error, RuntimeMissing)
    assert re.search(fact, error.fact)
    assert hint in error.hint


@pytest.mark.parametrize("answer", [b"", b"no JSON", b"[1]", b'"text"', b"{}", b"null"])
@pytest.mark.parametrize("question", ["version", "info"])
def test_malformed_answer_is_an_error(
    question: str, answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_engine(tmp_path / "s", **{question: answer}) as address:
        assert isinstance(start(address, monkeypatch), RuntimeMissing)


def test_missing_image_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_engine(tmp_path / "s") as address:
        error = start(address, monkeypatch)
    assert isinstance(error, LaunchError)
    assert "has no image some/image:1" in error.fact
    assert "docker pull some/image:1" in error.hint


# -- the doctor ------------------------------------------------------------------------------------


@pytest.fixture
def kernelspec(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One kernelspec only, of an image in an engine."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "d"))
    monkeypatch.setenv("JUPYTER_PATH", "")
    for name in ("ENV_JUPYTER_PATH", "SYSTEM_JUPYTER_PATH"):
        monkeypatch.setattr(f"jupyter_core.paths.{name}", [])
    from gvisor_kernel.cli.main import main

    assert main(["install", "--user", "--image", "some/image:1", "--set", "runtime=docker"]) == 0


def check_used() -> list[Check]:
    return check_engines(find_specs("docker"))


@pytest.mark.usefixtures("kernelspec")
def test_doctor_reports_what_a_start_would_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/s")
    (check,) = run_check("docker", 10, check_used)
    assert (check.name, check.state) == ("docker", "failed")
    assert "systemctl start docker" in check.fix
    with fake_engine(tmp_path / "s", info={**INFO, "Runtimes": {}}):
        (check,) = run_check("docker", 10, check_used)
    assert (check.name, check.state) == ("docker", "failed")
    assert "runsc install" in check.fix
    (tmp_path / "s").unlink()
    with fake_engine(tmp_path / "s"):
        engine, image = run_check("docker", 10, check_used)
    assert (engine.name, engine.state) == ("docker", "ok")
    assert (image.name, image.state) == ("image some/image:1", "failed")
    assert "docker pull some/image:1" in image.fix
    (tmp_path / "s").unlink()
    with fake_engine(tmp_path / "s", json={"Id": "sha256:0", "Config": {}}):
        assert [check.state for check in run_check("docker", 10, check_used)] == ["ok", "ok"]


def test_doctor_asks_no_engine_without_a_kernelspec_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr("gvisor_kernel.cli.checks.jupyter.find_kernelspecs", list)
    assert check_used() == []
