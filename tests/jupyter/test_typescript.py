"""The kernelspec gvisor-typescript: jupyter_kernel_test's checks, results, interrupts, restarts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.kernel.command import check_on_host

from ..gvisor import gvisor_release
from ..world import PROJECT, World
from .conformance import Conformance
from .helpers import SANDBOXED, SECONDS, execute, running_kernel, wait_for_text

pytest.importorskip("deno", reason="deno, the kernel of TypeScript, is not installed")
pytestmark = pytest.mark.skipif(not SANDBOXED, reason="another kernel than ours")

NAME = "gvisor-typescript"


@pytest.fixture(scope="module", autouse=True)
def kernelspec(world: World) -> Iterator[None]:
    """The installed kernelspec without snapshots: none must be made during the tests."""
    install = ["install", "--user", "--language", "typescript", "--set", "snapshot=off"]
    assert main(install) == 0
    yield
    assert main(["uninstall", "--user", "--name", NAME]) == 0


class TestConformance(Conformance):
    __test__ = True

    kernel_name = NAME
    language_name = "typescript"
    file_extension = ".ts"
    code_hello_world = "console.log('hello, world')"
    code_stderr = "console.error('oh')"
    completion_samples = [{"text": "console.lo", "matches": {"log"}}]  # noqa: RUF012
    complete_code_samples = ["1 + 1", "function f() { return 1 }"]  # noqa: RUF012
    incomplete_code_samples = ["function f() {"]  # noqa: RUF012
    code_generate_error = "throw new Error('no')"

    # code_execute_result and code_display_data are not set: Deno 2.7 sends null for transient, also
    # without a sandbox. test_results_and_outputs_are_shown checks the same without the schema.


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    start = {"cwd": str(tmp_path_factory.mktemp("typescript"))}
    with running_kernel(NAME, settings={"snapshot": "off"}, start=start) as both:
        yield both


def test_kernel_runs_in_sandbox(client: BlockingKernelClient) -> None:
    code = (
        "console.log(Deno.uid(), Deno.cwd()); console.log(Deno.readTextFileSync('/proc/version'))"
    )
    text = execute(client, code).text
    assert text.startswith("1000 /workspace\n")
    assert gvisor_release() in text
    assert execute(client, "Deno.writeTextFileSync('outputs/file', 'kept')").error == ""


def test_results_and_outputs_are_shown(client: BlockingKernelClient) -> None:
    assert execute(client, "const n: number = 6; n * 7").result == "\x1b[33m42\x1b[39m"
    assert execute(client, "console.log('hello')").text == "hello\n"
    (error,) = execute(client, "console.error('oh')").of_type("stream")
    assert error["content"] == {"name": "stderr", "text": "oh\n"}
    (shown,) = execute(
        client, "await Deno.jupyter.display({'image/svg+xml': '<svg/>'}, { raw: true })"
    ).of_type("display_data")
    assert shown["content"]["data"] == {"image/svg+xml": "<svg/>"}


def test_declarations_persist_between_cells(client: BlockingKernelClient) -> None:
    execute(client, "interface Point { x: number }; const p: Point = { x: 4 }")
    assert execute(client, "console.log(p.x + 1)").text == "5\n"


def test_interrupt_ends_only_running_cell(
    manager: KernelManager, client: BlockingKernelClient
) -> None:
    execute(client, "const before = 'here'")
    client.execute("console.log('begun'); while (true) {}")
    wait_for_text(client, "begun")
    manager.interrupt_kernel()
    assert execute(client, "console.log(before)").text == "here\n"


def test_restart_clears_state(manager: KernelManager, client: BlockingKernelClient) -> None:
    execute(client, "var gone = 1")
    manager.restart_kernel()
    client.wait_for_ready(timeout=SECONDS)
    assert execute(client, "console.log(typeof gone)").text == "undefined\n"


def test_missing_program_is_named() -> None:
    with pytest.raises(GvisorKernelError, match="needs the program deno") as caught:
        check_on_host("/usr/bin/python3", ["deno", "{connection_file}"])
    assert "pip install 'deno" in str(caught.value)


def test_kernelspec_has_logos() -> None:
    logos = {path.name for path in (PROJECT / "kernelspecs" / NAME).glob("logo-*")}
    assert logos == {"logo-32x32.png", "logo-64x64.png", "logo-svg.svg"}
