"""The kernelspecs of Bash, TypeScript and Java: jupyter_kernel_test's checks, and common uses."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.jupyter.kernelspecs import read_kernelspec
from gvisor_kernel.kernel.command import check_on_host, fill_data, host_path

from ..gvisor import gvisor_release
from ..sweeps import needs_all
from ..world import PROJECT, World
from .conformance import Conformance
from .helpers import SANDBOXED, SECONDS, execute, finish, running_kernel, wait_for_text

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="another kernel than ours")

JAR = "kernels/java/jjava.jar"
LOGOS = {"logo-32x32.png", "logo-64x64.png", "logo-svg.svg"}


@dataclass(frozen=True)
class Language:
    """``where`` prints the folder and gVisor's release; ``busy`` prints "begun", and goes on."""

    name: str
    title: str
    where: str
    write: str
    set_variable: str
    print_variable: str
    busy: str

    @property
    def kernel_name(self) -> str:
        return f"gvisor-{self.name}"


BASH = Language(
    "bash",
    "Bash (gVisor)",
    "pwd; uname -r; id -u",
    "echo kept > /mnt/user-data/outputs/file && ls outputs",
    "before=here",
    "echo $before",
    # Bash sometimes loses an interrupt between two commands, also without a sandbox.
    "sh -c 'echo begun; exec sleep 600'",
)
TYPESCRIPT = Language(
    "typescript",
    "TypeScript (gVisor)",
    "console.log(Deno.cwd(), Deno.readTextFileSync('/proc/version'), Deno.uid())",
    "Deno.writeTextFileSync('outputs/file', 'kept')",
    "var before = 'here'",
    "console.log(before)",
    "console.log('begun'); while (true) {}",
)
JAVA = Language(
    "java",
    "Java (gVisor)",
    'for (var it : new String[] {"user.dir", "os.version"})'
    " System.out.println(System.getProperty(it));"
    " System.out.println(1000 + 0 * new java.security.SecureRandom().nextInt())",
    'java.nio.file.Files.writeString(java.nio.file.Path.of("outputs/file"), "kept")',
    'String before = "here";',
    "System.out.println(before)",
    # jjava sometimes loses an interrupt between two statements, also without a sandbox.
    '{ System.out.println("begun"); Thread.sleep(600_000); }',
)


def needs(module: str, program: str = "") -> Any:
    """Return a mark that skips where a language's kernel, or its program, is not installed."""
    is_there = importlib.util.find_spec(module) is not None and (
        not program or shutil.which(program, path=host_path("/usr/bin/python3")) is not None
    )
    return pytest.mark.skipif(not is_there, reason=f"{module} or {program} is not installed")


INSTALLED = {
    BASH: needs("bash_kernel"),
    TYPESCRIPT: needs("deno"),
    JAVA: needs("jjava", "java"),
}


def only(*languages: Language) -> Any:
    """Run a test with these languages."""
    given = [pytest.param(it, marks=INSTALLED[it], id=it.name) for it in languages]
    return pytest.mark.parametrize("language", given, indirect=True, scope="module")


every_language = only(BASH, TYPESCRIPT, JAVA)


@pytest.fixture(scope="module", autouse=True)
def kernelspecs(world: World) -> Iterator[None]:
    """The installed kernelspecs without snapshots: none must be made during the tests."""
    installed = [it for it, mark in INSTALLED.items() if not mark.args[0]]
    for language in installed:
        install = ["install", "--user", "--language", language.name, "--set", "snapshot=off"]
        assert main(install) == 0
    yield
    for language in installed:
        assert main(["uninstall", "--user", "--name", language.kernel_name]) == 0


@needs_all  # its replies are not made here; TypeScript's are always checked
@INSTALLED[BASH]
class TestBash(Conformance):
    __test__ = True

    kernel_name = BASH.kernel_name
    language_name = "bash"
    file_extension = ".sh"
    code_hello_world = "echo hello, world"
    completion_samples = [{"text": "unal", "matches": {"unalias"}}]  # noqa: RUF012
    code_generate_error = "false"
    # bash_kernel runs bash on one terminal, so stderr of a program is stdout of the kernel.


@INSTALLED[TYPESCRIPT]
class TestTypeScript(Conformance):
    __test__ = True

    kernel_name = TYPESCRIPT.kernel_name
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


@needs_all  # as Bash's
@INSTALLED[JAVA]
class TestJava(Conformance):
    __test__ = True

    kernel_name = JAVA.kernel_name
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
def language(request: pytest.FixtureRequest) -> Language:
    found: Language = request.param
    return found


@pytest.fixture(scope="module")
def shared(
    language: Language, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    start = {"cwd": str(tmp_path_factory.mktemp(language.name))}
    settings = {"snapshot": "off"}
    with running_kernel(language.kernel_name, settings=settings, start=start) as both:
        yield both


@every_language
def test_kernel_runs_in_sandbox(language: Language, client: BlockingKernelClient) -> None:
    text = execute(client, language.where).text
    assert text.startswith("/workspace")
    assert gvisor_release() in text
    assert text.split()[-1] == "1000"
    assert execute(client, language.write).error == ""


@every_language
def test_interrupt_ends_only_running_cell(
    language: Language, manager: KernelManager, client: BlockingKernelClient
) -> None:
    execute(client, language.set_variable)
    client.execute(language.busy)
    wait_for_text(client, "begun")
    manager.interrupt_kernel()
    assert execute(client, language.print_variable).text == "here\n"


@only(BASH)
def test_shell_state_persists_between_cells(client: BlockingKernelClient) -> None:
    execute(client, "name=world; greet() { echo hello $1; }; cd /tmp")
    assert execute(client, "greet $name; pwd; cd /workspace").text == "hello world\n/tmp\n"
    code = "for n in 3 1 2; do echo $n; done > numbers; sort numbers | head -n 2 | tr '\\n' ' '"
    assert execute(client, code).text.split() == ["1", "2"]


@only(TYPESCRIPT)
def test_results_and_outputs_are_shown(client: BlockingKernelClient) -> None:
    assert execute(client, "const n: number = 6; n * 7").result == "\x1b[33m42\x1b[39m"
    (error,) = execute(client, "console.error('oh')").of_type("stream")
    assert error["content"] == {"name": "stderr", "text": "oh\n"}
    (shown,) = execute(
        client, "await Deno.jupyter.display({'image/svg+xml': '<svg/>'}, { raw: true })"
    ).of_type("display_data")
    assert shown["content"]["data"] == {"image/svg+xml": "<svg/>"}
    execute(client, "interface Point { x: number }; const p: Point = { x: 4 }")
    assert execute(client, "console.log(p.x + 1)").text == "5\n"


@only(JAVA)
def test_input_is_answered(client: BlockingKernelClient) -> None:
    asked = client.execute("new Scanner(System.in).nextLine()", allow_stdin=True)
    client.get_stdin_msg(timeout=SECONDS)
    client.input("typed")
    assert finish(client, asked).result == "typed"


@pytest.mark.parametrize(
    "language",
    [
        pytest.param(TYPESCRIPT, marks=INSTALLED[TYPESCRIPT]),
        pytest.param(JAVA, marks=(INSTALLED[JAVA], needs_all)),
    ],
    indirect=True,
    scope="module",
    ids=["typescript", "java"],
)
def test_restart_clears_state(
    language: Language, manager: KernelManager, client: BlockingKernelClient
) -> None:
    execute(client, language.set_variable)
    manager.restart_kernel()
    client.wait_for_ready(timeout=SECONDS)
    assert execute(client, language.print_variable).error in (
        "ReferenceError",
        "CompilationException",
    )


@every_language
def test_kernelspec_has_name_language_and_logos(world: World, language: Language) -> None:
    found = read_kernelspec(world.kernelspecs / language.kernel_name)
    assert found.display_name == language.title
    document = json.loads((found.directory / "kernel.json").read_text())
    assert document["language"] == language.name
    logos = {path.name for path in (PROJECT / "kernelspecs" / found.name).glob("logo-*")}
    assert {path.name for path in found.directory.glob("logo-*")} == logos == LOGOS


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


def test_what_a_language_lacks_is_named() -> None:
    with pytest.raises(GvisorKernelError, match="needs the program deno") as caught:
        check_on_host("/usr/bin/python3", ["deno", "{connection_file}"])
    assert "pip install 'deno" in str(caught.value)
    with pytest.raises(GvisorKernelError, match=JAR) as caught:
        fill_data(["java", f"{{data}}/{JAR}"], "/usr/bin/python3", lambda path: False, "It")
    assert "pip install --pre jjava" in str(caught.value)
    found = fill_data([f"{{data}}/{JAR}"], "/opt/x/bin/python3", lambda path: True, "It")
    assert found == [f"/opt/x/share/jupyter/{JAR}"]
