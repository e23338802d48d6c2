"""The kernelspec gvisor-bash: jupyter_kernel_test's checks, and common uses of a shell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.cli.main import main
from gvisor_kernel.jupyter.kernelspecs import read_kernelspec

from ..gvisor import gvisor_release
from ..sweeps import needs_all
from ..world import PROJECT, World
from .conformance import Conformance
from .helpers import SANDBOXED, execute, running_kernel, wait_for_text

pytest.importorskip("bash_kernel")
pytestmark = pytest.mark.skipif(not SANDBOXED, reason="another kernel than ours")

NAME = "gvisor-bash"


@pytest.fixture(scope="module", autouse=True)
def kernelspec(world: World) -> Iterator[None]:
    """The installed kernelspec without snapshots: none must be made during the tests."""
    install = ["install", "--user", "--language", "bash", "--set", "snapshot=off"]
    assert main(install) == 0
    yield
    assert main(["uninstall", "--user", "--name", NAME]) == 0


@needs_all  # its replies are not made here; TypeScript's are always checked
class TestConformance(Conformance):
    __test__ = True

    kernel_name = NAME
    language_name = "bash"
    file_extension = ".sh"
    code_hello_world = "echo hello, world"
    completion_samples = [{"text": "unal", "matches": {"unalias"}}]  # noqa: RUF012
    code_generate_error = "false"
    # bash_kernel runs bash on one terminal, so stderr of a program is stdout of the kernel.


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    start = {"cwd": str(tmp_path_factory.mktemp("bash"))}
    with running_kernel(NAME, settings={"snapshot": "off"}, start=start) as both:
        yield both


def test_kernel_runs_in_sandbox(client: BlockingKernelClient) -> None:
    assert execute(client, "id -u; pwd; echo $HOME").text == "1000\n/workspace\n/home/user\n"
    assert gvisor_release() in execute(client, "uname -r").text
    assert execute(client, "echo kept > /mnt/user-data/outputs/file && ls outputs").error == ""


def test_shell_state_persists_between_cells(client: BlockingKernelClient) -> None:
    execute(client, "name=world; greet() { echo hello $1; }; cd /tmp")
    assert execute(client, "greet $name; pwd; cd /workspace").text == "hello world\n/tmp\n"


def test_shell_pipes_loops_and_files_work(client: BlockingKernelClient) -> None:
    code = "for n in 3 1 2; do echo $n; done > numbers; sort numbers | head -n 2 | tr '\\n' ' '"
    assert execute(client, code).text.split() == ["1", "2"]


def test_interrupt_ends_only_running_cell(
    manager: KernelManager, client: BlockingKernelClient
) -> None:
    execute(client, "before=here")
    # Bash sometimes loses an interrupt between two commands, also without a sandbox.
    client.execute("sh -c 'echo begun; exec sleep 600'")
    wait_for_text(client, "begun")
    manager.interrupt_kernel()
    assert execute(client, "echo $before").text == "here\n"


def test_install_fails_without_bash_kernel(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("gvisor_kernel.cli.kernelspecs.find_spec", lambda name: None)
    install = ["install", "--prefix", str(tmp_path), "--language", "bash"]
    assert main(install) == 1
    assert "has no module bash_kernel" in capsys.readouterr().err
    assert not (tmp_path / "share").exists()


def test_kernelspec_has_name_language_and_logos(world: World) -> None:
    found = read_kernelspec(world.kernelspecs / NAME)
    assert found.display_name == "Bash (gVisor)"
    assert found.argv[found.argv.index("--kernel") + 1] == NAME
    document = json.loads((world.kernelspecs / NAME / "kernel.json").read_text())
    assert document["language"] == "bash"
    logos = {path.name for path in (PROJECT / "kernelspecs" / NAME).glob("logo-*")}
    assert {path.name for path in found.directory.glob("logo-*")} == logos
    assert len(logos) == 3
