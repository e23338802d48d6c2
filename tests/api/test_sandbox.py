"""A sandbox of a program: code, output, time limits, files, commands, deaths."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel import AsyncSandbox, Execution, OutputsError, Result, Sandbox, open_output
from gvisor_kernel.api import runner, shell
from gvisor_kernel.api.execution import Missing, Omitted, Printed
from gvisor_kernel.api.files import FileFailed, Moved
from gvisor_kernel.api.manager import choose_settings
from gvisor_kernel.errors import SandboxError, SettingError, UnknownSetting
from gvisor_kernel.jupyter.plan_factory import make_provisioner, read_configuration


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A sandbox with both folders, for the tests that leave it alive."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "data").mkdir()
    (folder / "data" / "sales.csv").write_text("a,b\n1,2\n")
    with Sandbox(uploads=folder / "data", outputs=folder / "out", memory="1G") as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared: Sandbox) -> Sandbox:
    if not shared.alive:
        shared.restart()
    return shared


def test_a_run_gives_value_output_and_count(sandbox: Sandbox) -> None:
    execution = sandbox.run("import sys; print('out'); print('err', file=sys.stderr); 6 * 7")
    assert (execution.text, execution.stdout, execution.stderr) == ("42", "out\n", "err\n")
    assert execution.ok
    assert execution.ended_by is None
    assert execution.duration > 0
    assert sandbox.run("_").execution_count == (execution.execution_count or 0) + 1


def test_an_exception_is_a_result(sandbox: Sandbox) -> None:
    error = sandbox.run("1 / 0").error
    assert error is not None
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert "\x1b[" in "".join(error.traceback_raw)
    assert "\x1b" not in error.traceback
    assert sandbox.run("raise").error is not None
    assert sandbox.run("this is no Python").error.name == "SyntaxError"  # type: ignore[union-attr]


def test_what_is_displayed_keeps_its_forms(sandbox: Sandbox) -> None:
    code = "from IPython.display import *\ndisplay(HTML('<b>x</b>')); display({'a': 1})\n"
    code += "display({'image/png': 'iVBORw=='}, raw=True)\n3"
    execution = sandbox.run(code)
    assert [result.formats() for result in execution] == [
        ("text", "html"),
        ("text",),
        ("png",),
        ("text",),
    ]
    assert execution.results[2].png == b"\x89PNG"
    assert [result.is_main_result for result in execution] == [False] * 3 + [True]


def test_a_picture_does_not_count_as_text(sandbox: Sandbox) -> None:
    code = "from IPython.display import Image, display\n"
    code += "display(Image(b'\\x89PNG\\r\\n\\x1a\\n' + bytes(87_000), format='png')); 'x' * 30_000"
    execution = sandbox.run(code, max_output=20_000)
    assert execution.results[0].png is not None
    assert len(execution.results[0].png) == 87_008
    assert set(execution.text or "") == {"'", "x"}
    assert execution.missing.results > 10_000
    assert not execution.missing.rich
    small = sandbox.run(code, max_rich=80_000)
    assert small.missing == Missing(rich=(Omitted("image/png", 1, 87_018),))
    assert "image/png (85 KiB): display it smaller" in str(small.missing)
    assert sandbox.output(small).results[0].png == execution.results[0].png


def test_a_restart_returns_when_the_kernel_answers(sandbox: Sandbox) -> None:
    """Otherwise the next run's timeout would count the rest of the start."""
    work = sandbox._target._runner
    assert work is not None
    work._answered.clear()
    sandbox.restart()
    assert work._answered.is_set()


@pytest.mark.once
def test_values_of_typescript_have_no_colours() -> None:
    pytest.importorskip("deno", reason="deno, the kernel of TypeScript, is not installed")
    with Sandbox(language="typescript") as sandbox:
        execution = sandbox.run("({ a: 1, b: 'x' })")
        assert execution.text == '{ a: 1, b: "x" }'
        assert "\x1b[" in execution.results[0].data["text/plain"]


def test_listeners_hear_all_of_it_as_it_comes(sandbox: Sandbox) -> None:
    heard: list[str] = []
    execution = sandbox.run(
        "import sys; print('a' * 5000); sys.stdout.flush(); print('b', file=sys.stderr); 1 / 0",
        on_stdout=heard.append,
        on_stderr=lambda text: heard.append(f"stderr {text}"),
        on_error=lambda error: heard.append(error.name),
        max_output=100,
    )
    assert "".join(heard) == "a" * 5000 + "\nstderr b\nZeroDivisionError"
    assert execution.stdout == "a" * 100
    assert execution.missing == Missing(stdout=4901)
    assert sandbox.output(execution).stdout == "a" * 5000 + "\n"


def test_a_listener_that_fails_ends_the_run(sandbox: Sandbox) -> None:
    def fail(text: str) -> None:
        raise LookupError(text)

    with pytest.raises(LookupError, match="first"):
        sandbox.run("print('first', flush=True)\nwhile True: pass", on_stdout=fail)
    assert sandbox.run("'alive'").text == "'alive'"


def test_a_stream_yields_what_comes_and_then_the_execution(sandbox: Sandbox) -> None:
    events = list(sandbox.stream("print('x')\n7"))
    assert events[0] == Printed("stdout", "x\n")
    assert isinstance(events[1], Result)
    assert isinstance(events[2], Execution)
    assert events[2].text == "7"


def test_leaving_a_stream_ends_the_code(sandbox: Sandbox) -> None:
    for event in sandbox.stream("import time\nfor i in range(10**9): print(i); time.sleep(0.01)"):
        assert isinstance(event, Printed)
        break
    assert sandbox.run("'alive'").text == "'alive'"


def test_code_over_its_time_is_interrupted(sandbox: Sandbox) -> None:
    execution = sandbox.run("x = 1\nimport time; time.sleep(600)", timeout=0.5)
    assert execution.ended_by == "interrupt"
    assert execution.error is not None
    assert execution.error.name == "Timeout"
    assert execution.error.value == "The code ran longer than 0.5 s and was interrupted."
    assert "KeyboardInterrupt" in execution.error.traceback
    assert sandbox.run("x").text == "1"


def test_code_that_ignores_its_interrupt_is_killed(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.5)
    code = "import time\nwhile True:\n  try: time.sleep(600)\n  except KeyboardInterrupt: pass"
    execution = sandbox.run(code, timeout=0.5)
    assert execution.ended_by == "kill"
    assert execution.error is not None
    assert execution.error.value.endswith("ignored its interrupt; the kernel was killed.")
    with pytest.raises(SandboxError, match=r"restart\(\)"):
        sandbox.run("1")
    sandbox.restart()
    assert sandbox.run("1").text == "1"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; print('last', flush=True); os._exit(3)", "with exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("exit()", None),
        ("x = bytearray(1 << 20); y = [x * 3000]", "of memory; its limit is"),
    ],
)
def test_a_death_is_a_result_with_its_reason(
    sandbox: Sandbox, code: str, reason: str | None
) -> None:
    execution = sandbox.run(code)
    if reason is None:
        return  # ipykernel ends by itself, when it has answered
    assert execution.ended_by == "death"
    assert execution.error is not None
    assert execution.error.name == "KernelDied"
    assert reason in execution.error.value
    assert execution.stdout == ("last\n" if "last" in code else "")


def test_ctrl_c_ends_the_code_and_is_raised(sandbox: Sandbox) -> None:
    def interrupt(_: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sandbox.run("print('go', flush=True)\nimport time; time.sleep(600)", on_stdout=interrupt)
    assert sandbox.run("'alive'").text == "'alive'"


def test_another_thread_may_interrupt(sandbox: Sandbox) -> None:
    interrupting = threading.Thread(target=sandbox.interrupt)
    code = "print('go', flush=True)\nimport time; time.sleep(600)"
    execution = sandbox.run(code, on_stdout=lambda _: interrupting.start())
    interrupting.join()
    assert execution.error is not None
    assert (execution.error.name, execution.ended_by) == ("KeyboardInterrupt", None)


def test_runs_of_many_threads_take_turns(sandbox: Sandbox) -> None:
    found: list[str | None] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(sandbox.run(f"{i}").text))
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=str) == sorted(map(str, range(20)))


def test_uploads_are_read_and_outputs_are_written(sandbox: Sandbox) -> None:
    assert sandbox.run("open('sales.csv').read()").text == "'a,b\\n1,2\\n'"
    sandbox.run("open('/mnt/user-data/outputs/x.txt', 'w').write('made')")
    assert [entry.name for entry in sandbox.files.list("/mnt/user-data/outputs")] == ["x.txt"]


def test_a_link_in_outputs_is_named_and_not_followed(sandbox: Sandbox) -> None:
    out = sandbox._target._outputs_folder
    assert out is not None
    folder = Path(out) / "links"
    code = "import os; at = '/mnt/user-data/outputs/links'; os.mkdir(at)"
    code += "; os.symlink('/etc/passwd', f'{at}/users.csv'); open(f'{at}/.file', 'w').write('text')"
    sandbox.run(code).raise_for_error()
    assert (folder / "users.csv").read_text().startswith("root:")  # as a program would read it
    listing = sandbox.outputs()
    assert [file.path for file in listing.files if "links/" in file.path] == ["links/.file"]
    assert [(other.path, other.kind) for other in listing.others] == [("links/users.csv", "link")]
    with open_output(out, "links/.file") as file:
        assert file.read() == b"text"
    for path in ("links/users.csv", "links/../../x", "../secret", "/etc/passwd"):
        with pytest.raises(OutputsError), open_output(out, path):
            pass
    shutil.rmtree(folder)


def test_a_sandbox_without_outputs_says_so() -> None:
    with pytest.raises(OutputsError, match="outputs="):
        asyncio.run(AsyncSandbox().outputs())


def test_code_that_exits_is_a_death(sandbox: Sandbox) -> None:
    execution = sandbox.run("exit()")
    assert (execution.ended_by, execution.ok) == ("death", False)
    assert "exit status 0" in str(execution.error)
    sandbox.restart()
    assert sandbox.run("6 * 7").text == "42"


def test_a_timeout_is_more_than_nothing_and_code_is_text(sandbox: Sandbox) -> None:
    for seconds in (0, -1):
        for ask in (sandbox.run, sandbox.shell):
            with pytest.raises(ValueError, match="more than 0 seconds"):
                ask("1", timeout=seconds)
    with pytest.raises(TypeError, match="must be text, not int"):
        sandbox.run(5)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="there is no /nowhere"):
        Sandbox(uploads="/nowhere")


def test_a_listener_runs_in_the_context_of_its_caller(sandbox: Sandbox) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("cell", default="none")
    seen = []
    for cell in ("first", "second"):
        variable.set(cell)
        sandbox.run("print('x')", on_stdout=lambda _: seen.append(variable.get()))
    assert seen == ["first", "second"]


# -- files and commands ----------------------------------------------------------------------------


def test_files_are_written_read_listed_and_removed(sandbox: Sandbox, tmp_path: Path) -> None:
    files = sandbox.files
    large = os.urandom(3_000_000)
    files.write("made/a.bin", large)
    files.write("made/b.txt", "héllo")
    files.write("made/empty", b"")
    assert files.read("made/a.bin", "bytes") == large
    assert files.read("made/b.txt") == "héllo"
    assert files.read("made/empty") == ""
    entries = files.list("made")
    assert [(e.name, e.kind, e.size) for e in entries] == [
        ("a.bin", "file", 3_000_000),
        ("b.txt", "file", 6),
        ("empty", "file", 0),
    ]
    assert entries[0].path == "/workspace/made/a.bin"
    files.rename("made/b.txt", "made/c.txt")
    assert (files.exists("made/b.txt"), files.exists("made/c.txt")) == (False, True)
    files.download("made/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == large
    files.upload(tmp_path / "a.bin", "again.bin")
    assert files.read("again.bin", "bytes") == large
    files.remove("made")
    assert not files.exists("made")
    assert sandbox.run("sorted(k for k in globals() if 'json' in k or 'answer' in k)").text == "[]"


def test_what_is_moved_is_copied_if_it_must_be() -> None:
    """Between file systems, and from one that cannot be written."""
    outputs = "/mnt/user-data/outputs"
    with Sandbox() as sandbox:
        files = sandbox.files

        def tree() -> str:
            return sandbox.shell(f"cd {outputs}; find . | sort | tr '\\n' ' '").stdout.strip()

        sandbox.shell(
            "mkdir -p d/e d2; echo 1 > d/e/f; ln -s e d/l; mkfifo p; echo n > n; echo m > m"
        )
        assert files.move("d", f"{outputs}/d") == Moved(False, False, True)
        assert files.move("n", f"{outputs}/a/n") == Moved(False, False)
        assert files.move("m", f"{outputs}/a/n") == Moved(False, True)
        assert files.read(f"{outputs}/a/n") == "m\n"
        whole = ". ./a ./a/n ./d ./d/e ./d/e/f ./d/l"
        assert tree() == whole
        assert sandbox.shell("ls").stdout == "d2\noutputs\np\n"
        refused = (
            *(("d2", "d", "already"), ("p", "x/p", "device"), ("none", "x/y", "No such file")),
            *(
                ("/usr", "usr", "are free"),
                ("/", "all", "into itself"),
                ("d2", "a/n/x", "Not a dir"),
            ),
        )
        for path, name, reason in refused:
            with pytest.raises(FileFailed, match=reason):
                files.move(path, f"{outputs}/{name}")
        assert tree() == whole
        assert files.move("/etc/hostname", f"{outputs}/hostname") == Moved(True, False)
        assert files.exists("/etc/hostname")
        with pytest.raises(FileFailed, match="was copied"):
            files.rename("/etc/hostname", f"{outputs}/again")


def test_a_move_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncSandbox(outputs=tmp_path) as sandbox:
            await sandbox.shell("truncate -s 1G big")
            target = "/mnt/user-data/outputs/a/big"
            moving = asyncio.ensure_future(sandbox.files.move("big", target))
            while not list(tmp_path.glob(".moving-*")):
                await asyncio.sleep(0.001)
            moving.cancel()
            await asyncio.wait({moving})
            assert moving.cancelled()
            while list(tmp_path.iterdir()):
                assert not (tmp_path / "a" / "big").exists()
                await asyncio.sleep(0.01)
            assert await sandbox.files.exists("big")

    asyncio.run(scenario())


def test_a_name_may_be_no_text(sandbox: Sandbox) -> None:
    sandbox.files.write("\udcff.txt", "x")
    assert sandbox.files.read("\udcff.txt") == "x"
    assert "\udcff.txt" in [entry.name for entry in sandbox.files.list()]
    assert sandbox.run("print('\\udcff')").stdout == "\ufffd\n"
    sandbox.files.remove("\udcff.txt")


def test_a_file_that_cannot_be_had_says_why(sandbox: Sandbox, tmp_path: Path) -> None:
    for path, reason in (("none", "No such file"), ("/", "Is a directory"), ("a\0b", "null")):
        with pytest.raises(FileFailed, match=reason):
            sandbox.files.read(path)
    with pytest.raises(FileFailed, match=r"Read-only|Permission"):
        sandbox.files.write("/mnt/user-data/uploads/x", "x")
    sandbox.files.write("binary", b"\xff")
    with pytest.raises(FileFailed, match="bytes"):
        sandbox.files.read("binary")
    sandbox.run("open('sparse', 'w').truncate(10**12)")
    with pytest.raises(FileFailed, match="more than 1000 bytes"):
        sandbox.files.download("sparse", tmp_path / "sparse", limit=1000)
    assert not (tmp_path / "sparse").exists()


def test_deep_and_long_names_are_an_error_that_leaves_nothing(sandbox: Sandbox) -> None:
    deep = "import os\nfor _ in range(600): os.mkdir('d'); os.chdir('d')\nos.chdir('/workspace')"
    sandbox.run(deep)
    with pytest.raises(FileFailed, match="folders in folders"):
        sandbox.files.move("d", "/mnt/user-data/outputs/deep/d")
    assert not sandbox.files.exists("/mnt/user-data/outputs/deep")
    assert not [
        entry for entry in sandbox.files.list("/mnt/user-data/outputs") if "mov" in entry.name
    ]
    sandbox.shell("rm -r d")
    names = (
        "import os\nos.mkdir('many')\nfor n in range(9000): open(f'many/{n:05}' + '\\1' * 240, 'w')"
    )
    sandbox.run(names)
    with pytest.raises(FileFailed, match="more than"):
        sandbox.files.list("many")
    sandbox.files.remove("many")


def test_without_threads_a_call_fails_alone(sandbox: Sandbox) -> None:
    with Sandbox(pids_limit=64, snapshot="off") as other:
        done = []
        thread = threading.Thread(
            target=lambda: done.append(
                other.shell("while ! [ -e stop ]; do sleep 0.05; done; echo ended")
            )
        )
        thread.start()
        bomb = "import os, time\nopen('began', 'w')\ntry:\n"
        bomb += "    while True:\n        if not os.fork(): time.sleep(1000)\nexcept OSError: pass"
        assert other.run(bomb).ok
        with pytest.raises(FileFailed):
            other.files.exists("began")
        other.run("open('stop', 'w').close()")
        thread.join(60)
        assert done[0].stdout == "ended\n"


def test_what_is_no_file_is_neither_read_nor_written(sandbox: Sandbox) -> None:
    sandbox.run("import os; os.mkfifo('pipe')")
    for path in ("pipe", "/dev/zero", "/dev/tty"):
        with pytest.raises(FileFailed):
            sandbox.files.read(path)
        with pytest.raises(FileFailed):
            sandbox.files.write(path, "x")
    sandbox.files.remove("pipe")


def test_a_command_gives_status_and_output(sandbox: Sandbox) -> None:
    done = sandbox.shell("echo out; echo err >&2; cat; exit 3")
    assert (done.status, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert (done.ok, done.output) == (False, "out\nerr\n")
    assert sandbox.shell("kill -9 $$").status == -9
    assert sandbox.shell("pwd").stdout == "/workspace\n"


def test_a_command_over_its_time_ends_with_its_children(sandbox: Sandbox) -> None:
    done = sandbox.shell("sleep 1000 & sleep 1000", timeout=0.5)
    assert (done.status, done.ended_by) == (-2, "interrupt")
    assert done.error is not None
    assert done.error.value == "The command ran longer than 0.5 s and was interrupted."
    assert "sleep" not in sandbox.shell("cat /proc/*/cmdline").stdout


def test_a_command_that_ignores_its_interrupt_is_killed(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "GRACE_SECONDS", 0.5)
    done = sandbox.shell("trap '' INT; echo on; while true; do sleep 1; done", timeout=3)
    assert (done.status, done.ended_by, done.stdout) == (-9, "kill", "on\n")
    assert sandbox.alive


def test_a_process_in_the_background_lives_on(sandbox: Sandbox) -> None:
    code = "while ! [ -e stop ]; do echo x; sleep 0.05; done; echo end > ended"
    assert "started\n" in sandbox.shell(f"({code}) & echo started").output
    sandbox.files.write("stop", "")
    waiting = "import os, time\nwhile not os.path.exists('ended'): time.sleep(0.05)"
    assert sandbox.run(waiting, timeout=60).ok


def test_files_and_commands_do_not_wait_for_code(sandbox: Sandbox) -> None:
    began = threading.Event()

    def use(_: str) -> None:
        sandbox.files.write("while", "busy")
        assert sandbox.shell("cat while").stdout == "busy"
        began.set()
        sandbox.interrupt()

    code = "print('go', flush=True)\nwhile True: pass"
    assert sandbox.run(code, on_stdout=use).error is not None
    assert began.is_set()


def test_a_command_whose_output_nobody_takes_waits(sandbox: Sandbox) -> None:
    """Other commands and files go on meanwhile."""
    held = threading.Event()

    async def run() -> int:
        def take(_: str) -> None:
            if not held.is_set():
                held.set()

        command = "head -c 3000000 /dev/zero; echo end >&2"
        done = await sandbox._target.shell(command, on_output=take, max_output=10)
        assert done.stderr == "end\n"
        return len(done.stdout) + done.missing.stdout

    running = asyncio.run_coroutine_threadsafe(run(), sandbox._thread._loop)
    assert held.wait(60)
    assert sandbox.shell("echo other").stdout == "other\n"
    assert running.result(60) == 3_000_000


def test_code_that_kills_the_service_process_harms_itself_alone(sandbox: Sandbox) -> None:
    kill = "import os, signal\nfor p in os.listdir('/proc'):\n"
    kill += "    if p.isdigit() and int(p) not in (1, os.getpid()):\n"
    kill += "        try: os.kill(int(p), signal.SIGKILL)\n        except OSError: pass"
    failed = []

    def run() -> None:
        failed.append(sandbox.shell("echo on > began; sleep 1000"))

    thread = threading.Thread(target=run)
    thread.start()
    waiting = "import os, time\nwhile not os.path.exists('began'): time.sleep(0.05)"
    assert sandbox.run(waiting, timeout=60).ok
    assert sandbox.run(kill).ok
    thread.join(60)
    assert (failed[0].status, failed[0].error.name) == (None, "CommandFailed")
    assert sandbox.shell("echo again").stdout == "again\n"


def test_the_end_of_a_kernel_ends_its_commands(sandbox: Sandbox) -> None:
    done = []
    thread = threading.Thread(
        target=lambda: done.append(sandbox.shell("echo on > going; sleep 1000"))
    )
    thread.start()
    code = "import os, time\nwhile not os.path.exists('going'): time.sleep(0.05)\nos._exit(5)"
    assert sandbox.run(code).ended_by == "death"
    thread.join(60)
    assert (done[0].status, done[0].ended_by) == (None, "death")
    with pytest.raises(SandboxError, match="does not run"):
        sandbox.files.list()


# -- settings --------------------------------------------------------------------------------------


def test_a_runtimes_own_setting_is_a_setting() -> None:
    for name in ("ssh", "slurm", "kubernetes"):
        assert choose_settings({"runtime": name, name: {}})[name] == {}
    with pytest.raises(UnknownSetting, match="There is no setting 'kubernete'") as caught:
        choose_settings({"kubernete": {}})
    assert "use 'kubernetes' if that was meant" in caught.value.hint


def test_a_wrong_setting_is_refused_before_anything_starts() -> None:
    with pytest.raises(UnknownSetting, match="memory_limit"):
        Sandbox(memory_limits="2G")
    with pytest.raises(SettingError, match="memory_limit is given as well"):
        Sandbox(memory="2G", memory_limit="2G")
    with pytest.raises(SettingError, match="one of python, bash, typescript, java"):
        Sandbox(language="ruby")
    with pytest.raises(SettingError, match="pids_limit"):
        Sandbox(pids_limit=-1)


def test_what_the_configuration_forbids_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither dropped nor lowered without a word, as it is for a kernelspec."""
    folder, jupyter = tmp_path / "data", tmp_path / "jupyter"
    (folder / "a").mkdir(parents=True)
    jupyter.mkdir()
    mounts = [{"source": str(folder), "target": f"/mnt/{name}"} for name in ("ours", "more")]
    configured = {"mounts": mounts[:1], "egress": [], "memory_limit": "1G", "pids_limit": 300}
    (jupyter / "jupyter_config.json").write_text(json.dumps({"GVisorProvisioner": configured}))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(jupyter))
    wrong: dict[str, Any] = {"mounts": mounts, "egress": ["packages"]}
    for name, value in {**wrong, "memory": "2G", "pids": 301}.items():
        with pytest.raises(SettingError, match=name) as raised:
            Sandbox(**{name: value})
        assert f"c.GVisorProvisioner.{raised.value.setting} in Jupyter's" in raised.value.hint
    with Sandbox(mounts=mounts[:1], memory="512M") as sandbox:
        assert sandbox.run("import os; os.listdir('/mnt/ours')").text == "['a']"
    asked = {**choose_settings({"memory": "2G"}), "mounts": mounts}
    kept = make_provisioner(asked, read_configuration()).sandbox_spec()
    assert (len(kept.mounts), kept.memory_limit) == (1, 2**30), "a kernelspec goes on without"


def test_outputs_that_are_the_uploads_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("1")
    with (
        pytest.raises(SettingError, match="is the folder of uploads"),
        Sandbox(uploads=tmp_path, outputs=tmp_path) as sandbox,
    ):
        sandbox.run("open('/mnt/user-data/outputs/sales.csv', 'w').close()")
    assert (tmp_path / "sales.csv").read_text() == "1"


def test_the_programs_folder_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private").touch()
    monkeypatch.chdir(tmp_path)
    with Sandbox(language="bash") as sandbox:
        assert sandbox.run("ls -A /workspace /mnt/user-data/uploads | grep private").stdout == ""
        sandbox.files.write("made.txt", "x")
        assert sandbox.shell("cat made.txt; pwd").stdout == "x/workspace\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "private"]
    with pytest.raises(SandboxError, match="was closed"):
        sandbox.run("1")
