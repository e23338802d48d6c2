"""The kernelspec gvisor-java: jupyter_kernel_test's checks, input, interrupts, restarts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.kernel.command import fill_data, host_path

from ..gvisor import gvisor_release
from ..sweeps import needs_all
from ..world import PROJECT, World
from .conformance import Conformance
from .helpers import SANDBOXED, SECONDS, execute, finish, running_kernel, wait_for_text

pytest.importorskip("jjava", reason="jjava, the kernel of Java, is not installed")
pytestmark = [
    pytest.mark.skipif(not SANDBOXED, reason="another kernel than ours"),
    pytest.mark.skipif(
        shutil.which("java", path=host_path("/usr/bin/python3")) is None,
        reason="there is no java on this machine",
    ),
]

NAME = "gvisor-java"
JAR = "kernels/java/jjava.jar"


@pytest.fixture(scope="module", autouse=True)
def kernelspec(world: World) -> Iterator[None]:
    """The installed kernelspec without snapshots: none must be made during the tests."""
    install = ["install", "--user", "--language", "java", "--set", "snapshot=off"]
    assert main(install) == 0
    yield
    assert main(["uninstall", "--user", "--name", NAME]) == 0


@needs_all  # its replies are not made here; TypeScript's are always checked
class TestConformance(Conformance):
    __test__ = True

    kernel_name = NAME
    language_name = "Java"
    file_extension = ".jshell"
    code_hello_world = 'System.out.println("hello, world")'
    code_stderr = 'System.err.println("oh")'
    completion_samples = [{"text": "System.ou", "matches": {"out"}}]  # noqa: RUF012
    complete_code_samples = ["1 + 1"]  # noqa: RUF012
    incomplete_code_samples = ["class A {"]  # noqa: RUF012
    code_generate_error = 'throw new RuntimeException("no")'
    code_execute_result = [{"code": "6 * 7", "result": "42"}]  # noqa: RUF012
    code_display_data = [  # noqa: RUF012
        {"code": 'display("<b>x</b>", "text/html");', "mime": "text/html"}
    ]


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    start = {"cwd": str(tmp_path_factory.mktemp("java"))}
    with running_kernel(NAME, settings={"snapshot": "off"}, start=start) as both:
        yield both


def test_kernel_runs_in_sandbox(client: BlockingKernelClient) -> None:
    code = 'System.out.println(System.getProperty("user.dir") + System.getProperty("os.version"))'
    assert execute(client, code).text == f"/workspace{gvisor_release()}\n"
    write = 'java.nio.file.Files.writeString(java.nio.file.Path.of("outputs/file"), "kept")'
    assert execute(client, write).error == ""
    assert execute(client, "new java.security.SecureRandom().nextInt()").error == ""


def test_input_is_answered(client: BlockingKernelClient) -> None:
    asked = client.execute("new Scanner(System.in).nextLine()", allow_stdin=True)
    client.get_stdin_msg(timeout=SECONDS)
    client.input("typed")
    assert finish(client, asked).result == "typed"


def test_interrupt_ends_only_running_cell(
    manager: KernelManager, client: BlockingKernelClient
) -> None:
    execute(client, 'String before = "here";')
    # jjava sometimes loses an interrupt between two statements, also without a sandbox.
    client.execute('{ System.out.println("begun"); Thread.sleep(600_000); }')
    wait_for_text(client, "begun")
    manager.interrupt_kernel()
    assert execute(client, "System.out.println(before)").text == "here\n"


@needs_all
def test_restart_clears_state(manager: KernelManager, client: BlockingKernelClient) -> None:
    execute(client, "int gone = 1;")
    manager.restart_kernel()
    client.wait_for_ready(timeout=SECONDS)
    assert execute(client, "gone").error == "CompilationException"


def test_missing_jar_is_named() -> None:
    with pytest.raises(GvisorKernelError, match=JAR) as caught:
        fill_data(["java", f"{{data}}/{JAR}"], "/usr/bin/python3", lambda path: False, "It")
    assert "pip install --pre jjava" in str(caught.value)
    found = fill_data([f"{{data}}/{JAR}"], "/opt/x/bin/python3", lambda path: True, "It")
    assert found == [f"/opt/x/share/jupyter/{JAR}"]


def test_kernelspec_has_logos() -> None:
    logos = {path.name for path in (PROJECT / "kernelspecs" / NAME).glob("logo-*")}
    assert logos == {"logo-32x32.png", "logo-64x64.png", "logo-svg.svg"}
