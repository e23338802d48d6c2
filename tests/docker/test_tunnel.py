"""An engine that is reached by SSH: over a real sshd, to a fake engine and to a real one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvisor_kernel.runtimes.clients import client_argv, make_control
from gvisor_kernel.runtimes.docker.connection import EngineNotAnswering
from gvisor_kernel.runtimes.docker.engine import connect

from ..jupyter.helpers import execute, running_kernel
from ..nodes.sshd import Sshd, needs_sshd, running_sshd
from ..sweeps import needs_all
from ..world import WAYS
from .dockerd import Dockerd, needs_dockerd
from .fake_engine import fake_engine
from .helpers import OUTPUTS

pytestmark = needs_sshd


class Reached:
    """Addresses of engines by the tests' sshd."""

    def __init__(self, sshd: Sshd) -> None:
        self._sshd = sshd
        self._addresses: set[str] = set()

    def address(self, path: str, host: str = "n1") -> str:
        """Return the address of the engine with a socket at ``path``."""
        self._addresses.add(f"ssh://{host}{path}")
        return f"ssh://{host}{path}"

    def end_connections(self) -> None:
        for address in self._addresses:
            argv = client_argv(f"engine\0{address}", make_control(), str(self._sshd.config))
            subprocess.run([*argv, "-O", "exit", "n1"], capture_output=True, check=False)


@pytest.fixture
def reached(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reached]:
    """An ssh on PATH reads the configuration of the tests' sshd, as OpenSSH ignores HOME."""
    folder = tmp_path_factory.mktemp("sshd")
    with running_sshd(folder, tmp_path / "state") as sshd:
        script = tmp_path / "bin" / "ssh"
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {sshd.config} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        found = Reached(sshd)
        yield found
        found.end_connections()


def test_engine_is_reached_by_ssh_and_again_after_the_connection_has_ended(
    reached: Reached, tmp_path: Path
) -> None:
    with fake_engine(tmp_path / "s"):
        engine = connect(reached.address(f"{tmp_path}/s"))
        try:
            assert "Runtimes" in engine.info()
            reached.end_connections()
            assert "Runtimes" in engine.info()
        finally:
            engine.close()


@pytest.mark.parametrize(
    ("host", "path", "fact", "hint"),
    [
        ("dead", "", "it does not answer", "sshd"),
        ("stranger", "", "its key is not the one", "log in once by hand"),
        ("n1", "/none", "it closes the connection", "ssh://host/path/docker.sock"),
        ("-oProxyCommand=x", "", "no address of SSH", "ssh://"),
    ],
)
def test_engine_that_ssh_does_not_reach_is_an_error_of_ssh(
    reached: Reached, host: str, path: str, fact: str, hint: str
) -> None:
    address = reached.address(path, host)
    with pytest.raises(EngineNotAnswering) as caught:
        connect(address)
    assert address in caught.value.fact
    assert fact in caught.value.fact
    assert hint in caught.value.hint


@needs_all
@pytest.mark.parametrize("once", [pytest.param(None, marks=needs_dockerd)])
def test_kernel_in_an_engine_that_is_reached_by_ssh(
    once: None, reached: Reached, dockerd: Dockerd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "data.csv").write_text("1,2")
    monkeypatch.setenv("DOCKER_HOST", reached.address(str(dockerd.socket)))
    with running_kernel(settings=WAYS["docker"], start={"cwd": str(folder)}) as (_, client):
        assert execute(client, "print(open('data.csv').read())").text == "1,2\n"
        assert execute(client, "len('x' * 10**7); print('y' * 10**6)").text == "y" * 10**6 + "\n"
        execute(client, f"open('{OUTPUTS}/made', 'w').write('inside')")
    assert (folder / "outputs" / "made").read_text() == "inside"
    assert dockerd.ours() == []
