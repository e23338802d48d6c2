"""What a sandbox of image ``host`` looks like from inside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gvisor_kernel.config.mounts import ExtraMount
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import SettingError
from gvisor_kernel.runtimes.base import MountView
from gvisor_kernel.runtimes.mounts.host_python import find_host_python
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.spec.layout import LAYOUT, OUTPUTS

from .conftest import AS_ROOT, Start, make_request, root_only
from .standin import Conversation, Failed, standin_argv


def read_mounts(shared: Conversation) -> dict[str, list[str]]:
    lines = shared.ask("read('/proc/mounts')").splitlines()
    return {line.split()[1]: line.split()[3].split(",") for line in lines}


def test_layout_mounts_have_file_descriptors_5_to_10(shared: Conversation) -> None:
    mounts = read_mounts(shared)
    found = {target: mounts[target] for target in LAYOUT}
    for number, target in enumerate(LAYOUT, start=5):
        assert f"rfdno={number}" in found[target]
        assert ("rw" if target == OUTPUTS else "ro") in found[target]


def test_every_bind_but_outputs_is_read_only(shared: Conversation) -> None:
    for target, options in read_mounts(shared).items():
        if any(option.startswith("rfdno=") for option in options) and target != OUTPUTS:
            assert "ro" in options, target


REMOUNT = """
import ctypes
libc = ctypes.CDLL(None)
def remount(target):
    done = [libc.mount(b"none", target, b"none", flags, None) for flags in (32, 32 | 4096)]
    writes = libc.open(target, os.O_WRONLY), libc.open(target + b"/x", os.O_CREAT | os.O_RDWR, 384)
    return [0 in done, max(writes) >= 0]
"""


def test_remount_by_pid_1_makes_nothing_writable(start: Start) -> None:
    """With all capabilities and no filter it remounts read-write; the host still refuses writes."""
    inside = start()
    inside.ask(f"run({REMOUNT!r})")
    shown = [target for target, options in read_mounts(inside).items() if "ro" in options]
    found = {target: inside.ask(f"remount({target.encode()!r})") for target in shown}
    assert any(remounted for remounted, _ in found.values())
    assert [target for target, (_, written) in found.items() if written] == []


def test_scratch_has_the_disk_limit(shared: Conversation) -> None:
    mounts = read_mounts(shared)
    for target in ("/tmp", "/home/user", "/run/gvisor-kernel/workspace"):
        # gVisor shows bytes, Linux KiB.
        assert {f"size={2 * 1024**3}", f"size={2 * 1024**2}k"} & set(mounts[target])


def test_sandbox_runs_gvisor_without_a_network(shared: Conversation) -> None:
    assert shared.ask("os.uname().release") != os.uname().release
    assert [name for _, name in shared.ask("__import__('socket').if_nameindex()")] == ["lo"]
    with pytest.raises(Failed, match="FileNotFound"):
        shared.ask("read('/etc/resolv.conf')")


def test_meminfo_shows_the_memory_limit(shared: Conversation) -> None:
    assert re.match(r"MemTotal:\s+4194304 kB", shared.ask("read('/proc/meminfo')"))


def test_nothing_inside_names_host_paths(shared: Conversation) -> None:
    host = str(shared.sandbox.directory)
    for path in ("/proc/mounts", "/proc/self/mountinfo", "/container_info.json"):
        assert host not in shared.ask(f"read({path!r})")
    environment = shared.ask("read('/proc/1/environ')").split("\0")
    assert {entry.partition("=")[0] for entry in environment if entry} <= {"PATH", "LANG", "HOME"}
    names = [line.split(":")[0] for line in shared.ask("read('/etc/passwd')").splitlines()]
    assert names == ["root", "user", "nobody"]


def test_container_info_names_the_identity(shared: Conversation) -> None:
    info = json.loads(shared.ask("read('/container_info.json')"))
    assert info["identity"] == shared.sandbox.identity
    assert info["versions"]["python"] == "{}.{}.{}".format(*sys.version_info)


def test_python_is_the_hosts(shared: Conversation) -> None:
    assert shared.sandbox.view.python == sys.executable
    assert shared.ask("sys.prefix") == sys.prefix
    assert shared.ask("__import__('ssl').create_default_context() and 1") == 1
    import traitlets

    found = "__import__('importlib.util').util.find_spec('traitlets').origin"
    if "PYTHONPATH" not in os.environ:
        assert shared.ask(found) == traitlets.__file__


def test_only_the_guest_part_of_the_package_is_shown(shared: Conversation) -> None:
    names = shared.ask("sorted(os.listdir('/opt/gvisor-kernel/gvisor_kernel'))")
    assert names == ["__init__.py", "guest", "link", "strict_json.py"]


def test_kernel_environment_has_only_allowed_variables(shared: Conversation) -> None:
    environment = shared.sandbox.view.environment
    assert environment["WANTED"] == "w"
    assert "SECRET" not in environment
    assert environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)


def test_uploads_are_read_only_and_readable_as_their_owner(shared: Conversation) -> None:
    assert shared.ask("read('/mnt/user-data/uploads/data.csv')") == "a,b\n"
    assert shared.ask("read('/mnt/user-data/uploads/private.txt')") == "mine"
    with pytest.raises(Failed, match="Read-only"):
        shared.ask("open('/mnt/user-data/uploads/new', 'w')")


def test_system_files_of_the_host_are_read_only(shared: Conversation) -> None:
    with pytest.raises(Failed, match=r"Read-only|PermissionError"):
        shared.ask("open('/usr/bin/written', 'w')")


def test_mount_views_name_the_host_paths(shared: Conversation) -> None:
    views = {view.target: view for view in shared.sandbox.view.mounts}
    assert set(LAYOUT) <= set(views)
    assert views["/mnt/transcripts"].source == str(shared.sandbox.view.transcripts)
    assert not views[OUTPUTS].read_only


def test_outputs_belong_to_the_owner_of_the_folder(start: Start, folder: Path) -> None:
    if AS_ROOT:
        os.chown(folder, 12345, 12346)
    inside = start()
    inside.ask("open('/mnt/user-data/outputs/plot.png', 'w').write('x')")
    written = folder / "outputs" / "plot.png"
    assert written.read_text() == "x"
    owner = folder.stat()
    assert (written.stat().st_uid, written.stat().st_gid) == (owner.st_uid, owner.st_gid)
    inside.sandbox.close()
    assert written.exists()


def test_last_sandbox_removes_empty_outputs(start: Start, folder: Path) -> None:
    first, second = start(), start()
    outputs = folder / "outputs"
    first.sandbox.close()
    assert outputs.is_dir()
    second.sandbox.close()
    assert not outputs.exists()


def test_sandboxes_closed_together_remove_empty_outputs(start: Start, folder: Path) -> None:
    sandboxes = [start().sandbox for _ in range(4)]
    with ThreadPoolExecutor(len(sandboxes)) as pool:
        list(pool.map(lambda sandbox: sandbox.close(), sandboxes))
    assert not (folder / "outputs").exists()


def test_existing_outputs_folder_is_kept(start: Start, folder: Path) -> None:
    (folder / "outputs").mkdir()
    start().sandbox.close()
    assert (folder / "outputs").is_dir()


@root_only
def test_outputs_are_lent_and_given_back_without_idmapped_mounts(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gvisor_kernel.runtimes.runsc.runtime.can_map_owner", lambda path: False)
    os.chown(folder, 12345, 12346)
    first, second = start(), start()
    for number, inside in enumerate((first, second)):
        inside.ask(f"os.makedirs('/mnt/user-data/outputs/{number}/deep')")
        inside.ask(f"os.symlink('/etc/shadow', '/mnt/user-data/outputs/{number}/link')")
    first.sandbox.close()
    second.ask("open('/mnt/user-data/outputs/late', 'w').close()")
    second.sandbox.close()
    third = start()  # it may change files of the earlier ones
    third.ask("open('/mnt/user-data/outputs/late', 'a').close()")
    third.ask("os.rmdir('/mnt/user-data/outputs/0/deep')")
    third.ask("os.mkdir('/mnt/user-data/outputs/0/deep')")
    third.sandbox.close()
    found = [folder / "outputs", *(folder / "outputs").rglob("*")]
    assert len(found) == 8
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in found} == {(12345, 12346)}
    assert Path("/etc/shadow").stat().st_uid == 0


def test_sandbox_without_host_folders_leaves_nothing(start: Start, folder: Path) -> None:
    (folder / "data.csv").touch()
    inside = start(uploads=None, outputs=None, transcripts=False)
    assert inside.ask("os.listdir('/mnt/user-data/uploads')") == []
    assert inside.ask("open('/mnt/user-data/outputs/x', 'w').write('x')") == 1
    assert list(folder.iterdir()) == [folder / "data.csv"]
    assert inside.sandbox.view.transcripts is None


def test_home_is_shown_only_by_an_explicit_mount(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = folder / "ada"
    home.mkdir()
    (home / ".netrc").touch()
    monkeypatch.setenv("HOME", str(home))
    for where in (home, folder):
        inside = start(where, outputs=None)
        assert inside.ask("os.listdir('/mnt/user-data/uploads')") == []
    with pytest.raises(SettingError, match="the home of an account"):
        start(home, uploads=str(home), outputs=None)
    inside = start(home, mounts=(ExtraMount(str(home), "/mnt/ada"),), outputs=None)
    assert inside.ask("os.listdir('/mnt/ada')") == [".netrc"]


def test_error_names_uploads_that_do_not_exist(start: Start) -> None:
    with pytest.raises(SettingError, match=r"uploads.*'no/such'"):
        start(uploads="no/such")


def test_extra_mounts_are_shown_with_their_mode(start: Start, tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "file"
    data.mkdir()
    file.write_text("content")
    inside = start(
        mounts=(
            ExtraMount(str(data), "/mnt/data/deep", read_only=False),
            ExtraMount(str(file), "/srv/file"),
        )
    )
    inside.ask("open('/mnt/data/deep/new', 'w').write('x')")
    assert (data / "new").read_text() == "x"
    assert inside.ask("read('/srv/file')") == "content"
    with pytest.raises(Failed, match="Read-only"):
        inside.ask("open('/srv/file', 'w')")
    assert MountView(str(data), "/mnt/data/deep", False) in inside.sandbox.view.mounts


def test_extra_mount_over_the_interpreter_is_refused(start: Start, tmp_path: Path) -> None:
    root = find_host_python(sys.executable).roots[0]
    with pytest.raises(SettingError, match=re.escape(root)):
        start(mounts=(ExtraMount(str(tmp_path), f"{root}/x"),))


def test_interpreter_in_scratch_cannot_be_replaced(folder: Path, tmp_path: Path) -> None:
    """If it lies in /tmp on the host, its parent folders are in the sandbox's own /tmp."""
    python = tmp_path / "on" / "the" / "way" / "bin" / "python"
    environment = python.parent.parent
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    runtime = RunscRuntime(init_argv=standin_argv(str(python)))
    sandbox = runtime.start(SandboxSpec(), make_request(folder, python=str(python)))
    try:
        inside = Conversation(sandbox)
        inside.ask("run('import tempfile, shutil')")
        for parent in (environment, *environment.parents):
            if str(parent) in ("/tmp", "/"):
                break
            for change in (f"os.mkdir('{parent}/new')", f"os.rename('{parent}', '{parent}.old')"):
                with pytest.raises(Failed):
                    inside.ask(change)
            with pytest.raises(Failed):
                inside.ask(f"shutil.rmtree('{parent}')")
        assert inside.ask(f"os.path.exists('{python}')")
        inside.ask("os.mkdir('/tmp/new')")
    finally:
        sandbox.close()


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_servers_umask_does_not_change_modes_inside(
    umask: int, folder: Path, tmp_path: Path
) -> None:
    """Other uids than the server's have to read what it makes for the sandbox."""
    python = tmp_path / "on" / "the" / "way" / "bin" / "python"
    venv = [sys.executable, "-m", "venv", "--without-pip", python.parent.parent]
    subprocess.run(venv, check=True)
    runtime = RunscRuntime(init_argv=standin_argv(str(python)))
    before = os.umask(umask)
    try:
        sandbox = runtime.start(SandboxSpec(), make_request(folder, python=str(python)))
    finally:
        os.umask(before)
    try:
        inside = Conversation(sandbox)
        assert "identity" in inside.ask("read('/container_info.json')")
        assert inside.ask("os.listdir('/opt/gvisor-kernel/gvisor_kernel')")
        for place in ("/", "/etc", "/mnt", "/opt", "/opt/gvisor-kernel", str(tmp_path / "on")):
            assert inside.ask(f"os.stat('{place}').st_mode & 0o777") == 0o755, place
        assert inside.ask("os.stat('/etc/passwd').st_mode & 0o777") == 0o644
    finally:
        sandbox.close()


def test_skills_folder_is_shown(start: Start, tmp_path: Path) -> None:
    (tmp_path / "skills" / "public").mkdir(parents=True)
    (tmp_path / "skills" / "public" / "a.skill").touch()
    inside = start(skills=str(tmp_path / "skills"))
    assert inside.ask("os.listdir('/mnt/skills/public')") == ["a.skill"]
    assert inside.ask("os.listdir('/mnt/skills/examples')") == []


def test_transcripts_are_read_only(start: Start) -> None:
    inside = start()
    transcripts = inside.sandbox.view.transcripts
    assert transcripts is not None
    (transcripts / "transcript.jsonl").write_text("{}\n")
    (transcripts / "transcript.jsonl").chmod(0o600)
    assert inside.ask("read('/mnt/transcripts/transcript.jsonl')") == "{}\n"
    with pytest.raises(Failed, match="Read-only"):
        inside.ask("open('/mnt/transcripts/x', 'w')")
