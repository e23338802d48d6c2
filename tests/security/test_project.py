"""What ``uploads = "project"`` shows: which folder is one, what is hidden in it, and swaps."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError, LaunchError
from gvisor_kernel.host import homes
from gvisor_kernel.host.folders import birth_time, open_path
from gvisor_kernel.runtimes.copies.contents import Contents, add_inputs
from gvisor_kernel.runtimes.mounts import project
from gvisor_kernel.runtimes.mounts.folders import Inputs, find_project_path, open_inputs
from gvisor_kernel.runtimes.mounts.written_folders import note_written, read_written
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.runtimes.state import records

from ..runtimes.conftest import make_request
from ..runtimes.standin import Conversation, standin_argv
from ..sweeps import ALL
from .inside import Host
from .races import PERSON, Stop, exchange

SPEC = SandboxSpec(uploads="project", snapshot="off")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    """A project with a folder of notebooks, one for data and hidden files; beside it a home."""
    for name in ("proj/.git/config", "proj/data/.key", "proj/.env", "home/data/secret"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("hidden")
    for name in (
        "notebooks/sub/a.txt",
        "data/a.txt",
        "notebooks/outputs/.b",
        "x/outputs/c",
        "x/outputs/.d",
    ):
        (tmp_path / "proj" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "proj" / name).write_text("shown")
    return tmp_path / "proj" / "notebooks"


@pytest.fixture
def inputs(notebooks: Path) -> Iterator[Inputs]:
    with ExitStack() as stack:
        yield open_inputs(SPEC, make_request(notebooks), stack)


def find(folder: Path) -> str | None:
    return find_project_path(str(folder))


def test_the_nearest_marker_makes_a_project(notebooks: Path) -> None:
    proj = notebooks.parent
    assert find(notebooks) == find(notebooks / "sub") == find(proj) == str(proj)
    (notebooks / "environment.yml").touch()
    assert find(notebooks / "sub") == str(notebooks)
    assert find(proj / "data") == str(proj)
    hidden = proj / ".work" / "notebooks"
    hidden.mkdir(parents=True)
    assert find(hidden) is None, "the notebook's own folder would be hidden"
    assert find(proj.parent) is None


def test_no_home_and_no_planted_marker_makes_a_project(
    notebooks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proj = notebooks.parent
    with monkeypatch.context() as patch:
        patch.setenv("HOME", str(proj))
        patch.setattr(homes, "_cache", {})
        assert find(notebooks) is None
        patch.setenv("HOME", str(proj / "data"))
        assert find(notebooks) is None, "a folder above a home"
    (proj / ".git").rename(proj / "git")
    (proj / ".git").symlink_to("git")
    assert find(notebooks) is None
    written = notebooks / "outputs" / "report"
    (written / ".git").mkdir(parents=True)
    (notebooks / "outputs" / "pyproject.toml").touch()
    assert find(written) == str(written), "a kernel shows a later one what it has made itself"
    assert find(notebooks / "outputs") is None


@as_root
def test_a_marker_of_another_user_makes_no_project(notebooks: Path) -> None:
    """Nor does one of the owner of the notebook's folder, except in a project of that person."""
    proj = notebooks.parent
    os.chown(proj / ".git", PERSON, PERSON)
    assert find(notebooks) is None
    os.chown(notebooks, PERSON, PERSON)
    assert find(notebooks) is None
    os.chown(proj, PERSON, PERSON)
    assert find(notebooks) == str(proj)
    os.chown(notebooks, PERSON + 1, PERSON + 1)
    assert find(notebooks) is None
    os.chown(proj / ".git", 0, 0)
    assert find(notebooks) is None, "a folder of another user, who may have moved it there"


@as_root
def test_no_neighbour_chooses_the_project_of_a_user(
    notebooks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is no root is not served with what the owner of a notebook's folder has marked."""
    for path in (notebooks, notebooks.parent, notebooks.parent / ".git"):
        os.chown(path, PERSON, PERSON)
    written = read_written(SPEC)
    with open_path(str(notebooks)) as folder:
        for user, shown in ((PERSON + 1, False), (PERSON, True)):
            monkeypatch.setattr(os, "geteuid", lambda user=user: user)
            found = project.find_project(folder, written)
            assert (found is not None) == shown
            if found is not None:
                found.folder.close()


def test_a_folder_that_others_may_write_is_no_project(
    notebooks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proj = notebooks.parent
    for mode in (0o757, 0o1777):
        proj.chmod(mode)
        assert find(notebooks) is None, "as /tmp"
    proj.chmod(0o775)
    assert find(notebooks) == str(proj), "the group of this user alone"
    monkeypatch.setattr(os, "getegid", lambda: proj.stat().st_gid + 1)
    assert find(notebooks) is None


def test_a_marker_with_a_second_name_makes_no_project(notebooks: Path) -> None:
    proj = notebooks.parent
    (proj / ".git").rename(proj / "git")
    (proj / ".jupyter-project").hardlink_to(proj / ".env")
    assert find(notebooks) is None
    (proj / ".env").unlink()
    assert find(notebooks) == str(proj)


def test_hidden_paths(inputs: Inputs) -> None:
    assert inputs.within == "notebooks"
    assert [hidden.path for hidden in inputs.hidden or ()] == [
        ".env",
        ".git",
        "data/.key",
        "x/outputs/.d",
    ], "a folder is not outputs of a kernel by its name"


def test_outputs_of_a_kernel_are_shown_with_hidden_files(notebooks: Path) -> None:
    outputs = notebooks.parent / "x" / "outputs"
    with open_path(str(outputs)) as folder, records.locked():
        note_written([folder])
    with ExitStack() as stack:
        found = open_inputs(SPEC, make_request(notebooks), stack)
        assert "x/outputs/.d" not in [hidden.path for hidden in found.hidden or ()]


@as_root
def test_outputs_of_another_person_are_hidden(notebooks: Path) -> None:
    os.chown(notebooks.parent / "x" / "outputs", PERSON + 1, PERSON + 1)
    with ExitStack() as stack:
        found = open_inputs(SPEC, make_request(notebooks), stack)
        assert "x/outputs" in [hidden.path for hidden in found.hidden or ()]


@as_root
def test_a_project_that_a_sandbox_cannot_read_is_not_shown(
    notebooks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that its user reaches by a further group alone, which does not count in a sandbox."""
    notebooks.chmod(0o750)
    os.chown(notebooks, PERSON, os.getegid())
    assert find(notebooks) == str(notebooks.parent)
    os.chown(notebooks, PERSON, PERSON)
    assert find(notebooks) is None
    with ExitStack() as stack:
        found = open_inputs(SPEC, make_request(notebooks), stack)
        assert (found.within, found.hidden) == ("", None)
    assert f"a sandbox may not read {notebooks}" in caplog.text
    os.chown(notebooks, 0, 0)
    notebooks.parent.chmod(0o750)
    os.chown(notebooks.parent, 0, PERSON)
    assert find(notebooks) == str(notebooks.parent), "its owner may read it"


@pytest.mark.parametrize("limit", ["MAX_HIDDEN", "MAX_VISITED", "MAX_SECONDS"])
def test_a_project_that_is_too_large_is_not_shown(
    notebooks: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project, limit, -1)
    with ExitStack() as stack:
        found = open_inputs(SPEC, make_request(notebooks), stack)
        assert found.uploads is not None
        assert found.uploads.path == str(notebooks)
        assert (found.within, found.hidden) == ("", None)


def test_deep_folders_are_hidden(notebooks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "MAX_DEPTH", 0)
    with ExitStack() as stack:
        found = open_inputs(SPEC, make_request(notebooks), stack)
        assert "data" in [hidden.path for hidden in found.hidden or ()]


def test_copies_lack_what_is_hidden(inputs: Inputs, notebooks: Path) -> None:
    """For Docker, pods and nodes that files are copied to; also what was hidden since."""
    (notebooks / ".new").touch()
    contents = Contents()
    add_inputs(contents, inputs, ())
    packed = io.BytesIO(b"".join(contents.archive(2**30)))
    with tarfile.open(fileobj=packed) as archive:
        names = {name.removeprefix("uploads") for name in archive.getnames()}
    assert {"/data/a.txt", "/notebooks/sub/a.txt"} <= names
    assert not [name for name in names if "/." in name]


FILES = "(os.path.join(d, n) for d, _, f in os.walk('/mnt/user-data/uploads') for n in f)"
SEEN = f"[p for p in {FILES} if os.path.exists(p) and os.path.getsize(p)]"
STEPS = ("host/stage.py", "host/folders.py", "runtimes/mounts/folders.py", "mounts/project.py")


@as_root
def test_swap_at_each_step_of_start_is_harmless(notebooks: Path) -> None:
    """Another person who may write the project swaps a part of it for a link into a home."""
    runtime = RunscRuntime(init_argv=standin_argv(sys.executable))
    proj, home = notebooks.parent, notebooks.parent.parent / "home"
    host = Host((home,))
    before = host.look()

    def start() -> bool:
        try:
            sandbox = runtime.start(SPEC, make_request(notebooks))
        except GvisorKernelError:
            return False
        try:
            seen = Conversation(sandbox).ask(SEEN)
            wrong = [path for path in seen if "secret" in path or "/." in path]
            assert not [path for path in wrong if "/notebooks/outputs/" not in path], seen
        finally:
            sandbox.close()
        return True

    with Stop() as stop:
        assert start(), "it does not start even without a swap"
    steps = [step for step in stop.passed if step.split()[1].startswith(STEPS)]
    steps += [step for step in stop.passed if "mounts/project.py" in step]
    assert len(steps) > 20
    parts = [proj, notebooks, proj / "data", proj / ".git"]
    started = 0
    for number, step in enumerate(steps if ALL else steps[:: len(steps) // 5]):
        for part in parts if ALL else [parts[number % len(parts)]]:
            link = part.with_name("link")
            link.symlink_to(home)
            os.lchown(link, PERSON, PERSON)
            with Stop(step, lambda part=part, link=link: exchange(part, link)) as stop:
                started += start()
            assert step in stop.passed
            if part.is_symlink():
                exchange(part, link)
            link.unlink()
    assert 0 < started < len(steps)
    assert host.look() == before


CHANGES = {
    "swapped": "runtimes/runsc/runtime.py:_start",
    "removed": "runtimes/runsc/runtime.py:_start",
    "swapped while it was looked at": "runtimes/mounts/project.py:find_hidden",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_moved_during_a_start_is_not_uncovered(notebooks: Path, change: str) -> None:
    """Two folders are swapped, of which one has a hidden file: the start is refused."""
    runtime = RunscRuntime(init_argv=standin_argv(sys.executable))
    data, decoy = notebooks.parent / "data", notebooks.parent.parent / "decoy"
    decoy.mkdir()
    event = "call"
    if change == "swapped while it was looked at":
        exchange(data, decoy)
        event = "return"

    def act() -> None:
        if change == "removed":
            (data / ".key").unlink()
        else:
            exchange(data, decoy)

    with (
        Stop(f"{event} {CHANGES[change]}", act) as stop,
        pytest.raises(LaunchError, match=r"data/\.key was moved or replaced"),
    ):
        runtime.start(SPEC, make_request(notebooks)).close()
    assert f"{event} {CHANGES[change]}" in stop.passed


def test_what_is_made_during_a_start_does_not_stop_it(notebooks: Path) -> None:
    """As Jupyter makes a folder of checkpoints when a notebook is opened for the first time."""
    runtime = RunscRuntime(init_argv=standin_argv(sys.executable))
    with open_path(str(notebooks)) as folder:
        if not birth_time(folder.fd):
            pytest.skip("this file system has no times of birth: the start is refused")
    step = "call runtimes/runsc/runtime.py:_start"
    with Stop(step, (notebooks / ".ipynb_checkpoints").mkdir) as stop:
        runtime.start(SPEC, make_request(notebooks)).close()
    assert step in stop.passed


def test_spare_is_not_taken_when_more_is_hidden_now(notebooks: Path) -> None:
    runtime = RunscRuntime(init_argv=standin_argv(sys.executable))
    request = make_request(notebooks)
    sandbox = runtime.start(SPEC, request)
    try:
        assert runtime.has_current_mounts(sandbox, SPEC, request)
        (notebooks / ".new").touch()
        assert not runtime.has_current_mounts(sandbox, SPEC, request)
        (notebooks / ".new").unlink()
        assert runtime.has_current_mounts(sandbox, SPEC, request)
        (notebooks / "environment.yml").touch()
        assert not runtime.has_current_mounts(sandbox, SPEC, request)
    finally:
        sandbox.close()


def test_spare_is_not_taken_when_a_hidden_file_was_made_anew(notebooks: Path) -> None:
    """A removed file takes its cover along, and the new one may get its inode: no other test of the
    file system but the time of change tells. Linking the file again keeps the inode surely."""
    runtime = RunscRuntime(init_argv=standin_argv(sys.executable))
    request, secret = make_request(notebooks), notebooks.parent / ".env"
    sandbox = runtime.start(SPEC, request)
    try:
        assert runtime.has_current_mounts(sandbox, SPEC, request)
        other = secret.with_name("other")
        other.hardlink_to(secret)
        secret.unlink()
        other.rename(secret)
        assert not runtime.has_current_mounts(sandbox, SPEC, request)
    finally:
        sandbox.close()
