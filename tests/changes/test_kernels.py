"""What real kernels change in /workspace, and the commands that apply it."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from gvisor_kernel import Sandbox
from gvisor_kernel.changes import control_client
from gvisor_kernel.changes.backups import Backups
from gvisor_kernel.changes.change import ChangesError
from gvisor_kernel.changes.control import SOCKET
from gvisor_kernel.cli.main import main
from gvisor_kernel.kernel import workspace
from gvisor_kernel.runtimes.state.records import state_root

from ..jupyter.helpers import KERNEL, WAYS, execute, kernel_log, running_kernel

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
    sandbox: Sandbox, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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

    assert main(["apply", name, "a", "old.txt", "gone.txt", "folder", "link"]) == 1
    assert "Refused link: " in capsys.readouterr().err
    assert (folder / "old.txt").read_text() == "old\nmore\n"
    assert (folder / "a" / "b" / "c\x1b[2J.txt").read_text() == "x"
    assert names(folder) == ["a", "folder", "old.txt", "outputs", "same.txt"]
    assert names(folder / "folder") == ["new"]
    assert [c.path for c in sandbox.changes().changes] == ["fifo", "link"]

    sandbox.run("open('old.txt', 'a').write('again')")  # applied by us: no conflict
    assert sandbox.apply("/workspace/old.txt").applied == ("old.txt",)
    assert Sandbox.undo().undone == ("old.txt",)
    assert main(["undo"]) == 0
    assert names(folder) == ["folder", "gone.txt", "old.txt", "outputs", "same.txt"]
    assert (folder / "old.txt").read_text() == "old\n"
    assert names(folder / "folder") == ["hidden"]


def test_a_conflict_needs_force(sandbox: Sandbox, folder: Path) -> None:
    sandbox.run("open('old.txt', 'a').write('more')")
    (change,) = sandbox.changes().changes
    (folder / "old.txt").write_text("mine")
    assert [one.path for one in sandbox.apply(change).refused] == ["old.txt"]
    assert [one.path for one in sandbox.apply("old.txt").refused] == ["old.txt"]
    assert sandbox.apply("old.txt", force=True).applied == ("old.txt",)
    assert (folder / "old.txt").read_text() == "old\nmore"
    with pytest.raises(ChangesError, match="not changed"):
        sandbox.apply("nothing")


def test_a_folder_in_place_of_a_file_and_the_other_way_round_need_force(
    sandbox: Sandbox, folder: Path
) -> None:
    code = "import os, shutil; os.remove('old.txt'); os.mkdir('old.txt'); shutil.rmtree('folder')"
    assert sandbox.run(f"{code}; open('old.txt/in', 'w').close(); open('folder', 'w').close()")
    refused = sandbox.apply("old.txt").refused
    assert [one.path for one in refused] == ["old.txt", "old.txt/in"]
    result = sandbox.apply(["old.txt", "folder"], force=True)
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
    for question in ({"do": "nothing"}, {}, {"do": "apply", "changes": [["/etc/passwd", "x"]]}):
        with pytest.raises(ChangesError, match="malformed"):
            control_client.ask(directory, question)
    assert control_client.list_changes(directory)[0].changes == ()
    sandbox.close()
    with pytest.raises(ChangesError, match="does not answer"):
        control_client.ask(directory, {"do": "list"})


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
    monkeypatch.setattr(workspace, "shows_outputs", lambda uploads, outputs: True)
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
        assert not caplog.records  # the files are still there
        with caplog.at_level(logging.WARNING):
            manager.shutdown_kernel()
    (record,) = [r for r in caplog.records if "are lost with the sandbox" in r.getMessage()]
    assert "other.csv, result.csv" in record.getMessage() or (
        "result.csv, other.csv" in record.getMessage()
    )


def test_a_notebook_that_was_run_in_a_batch_names_all_files(folder: Path) -> None:
    code = ["open('a.csv', 'w').write('1')", "open('folder/b', 'w').write('1')", "1 + 1"]
    cells = [nbformat.v4.new_code_cell(text) for text in code]
    notebook = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name=KERNEL, resources=resources).execute()
    texts = [
        output["data"]["text/plain"]
        for cell in cells
        for output in cell.outputs
        if output["output_type"] == "display_data"
    ]
    (text,) = texts
    assert "when the sandbox ends: a.csv, folder/b. Write to outputs/" in text
    assert all(output["output_type"] != "stream" for cell in cells for output in cell.outputs)
