"""Sandboxes as Jupyter's default: the configuration, the kernelspec python3, and the way back."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gvisor_kernel.cli.checks import servers
from gvisor_kernel.cli.checks.jupyter import check_others
from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import KernelspecError
from gvisor_kernel.jupyter import default_provisioner
from gvisor_kernel.jupyter.default_provisioner import (
    find_config_file,
    replace_native,
    restore_native,
    set_default,
    unset_default,
)
from gvisor_kernel.jupyter.plan_factory import find_unsandboxed

from ..patience import scale_seconds


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """A place with a kernelspec python3 of ipykernel's kind."""
    folder = tmp_path / "share/jupyter/kernels/python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text('{"argv": ["python3"], "display_name": "plain"}')
    return str(tmp_path)


@pytest.fixture
def user_place() -> Iterator[Path]:
    """The configuration of this run's home, which tests share, as it was."""
    path = find_config_file(True, None)
    before = path.read_text() if path.exists() else None
    yield path
    if before is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(before)


def test_other_configuration_is_kept(prefix: str) -> None:
    path = find_config_file(False, prefix)
    assert path == Path(prefix, "etc/jupyter/jupyter_config.json")
    path.parent.mkdir(parents=True)
    other = {"KernelProvisionerFactory": {"log_level": 10}, "ServerApp": {"port": 1}}
    path.write_text(json.dumps(other))
    path.chmod(0o600)
    for _ in range(2):
        set_default(False, prefix)
    content = json.loads(path.read_text())
    assert content["KernelProvisionerFactory"]["default_provisioner_name"] == "gvisor-provisioner"
    assert path.stat().st_mode & 0o777 == 0o600
    assert unset_default(False, prefix) == path
    assert json.loads(path.read_text()) == other
    assert unset_default(False, prefix) is None
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_that_was_made_is_removed(prefix: str) -> None:
    path = set_default(False, prefix)
    unset_default(False, prefix)
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"KernelProvisionerFactory": {"default_provisioner_name": "x"}}', "to 'x'"),
        ('{"KernelProvisionerFactory": 5}', "to 5"),
        ("[" * 300_000, "nested deeper"),
    ],
)
def test_configuration_that_is_something_else_is_left_alone(
    prefix: str, text: str, fact: str
) -> None:
    path = find_config_file(False, prefix)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(KernelspecError, match=fact):
        set_default(False, prefix)
    assert path.read_text() == text


def test_configuration_that_is_a_pipe_is_not_waited_for(prefix: str) -> None:
    path = find_config_file(False, prefix)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(KernelspecError, match="not JSON"):
        set_default(False, prefix)


def test_python3_is_replaced_and_comes_back(prefix: str) -> None:
    native = Path(prefix, "share/jupyter/kernels/python3/kernel.json")
    plain = native.read_text()
    for _ in range(2):
        replace_native(False, prefix)
        assert "gvisor-provisioner" in native.read_text()
    assert restore_native(False, prefix) == native.parent
    assert native.read_text() == plain
    assert restore_native(False, prefix) is None
    assert [entry.name for entry in Path(prefix, "share/jupyter").iterdir()] == ["kernels"]


def test_an_original_is_not_lost_to_a_second_one(prefix: str) -> None:
    native = Path(prefix, "share/jupyter/kernels/python3/kernel.json")
    replace_native(False, prefix)
    native.write_text('{"argv": ["python3"], "display_name": "installed again"}')
    with pytest.raises(KernelspecError, match="replaced before"):
        replace_native(False, prefix)
    assert "installed again" in native.read_text()


def test_the_same_kernelspec_installed_again_can_be_replaced_again(prefix: str) -> None:
    """As an upgrade of ipykernel does: it writes into the folder that is there."""
    native = Path(prefix, "share/jupyter/kernels/python3/kernel.json")
    plain = native.read_text()
    replace_native(False, prefix)
    native.write_text(plain)
    replace_native(False, prefix)
    assert "gvisor-provisioner" in native.read_text()
    native.write_text(plain)
    assert restore_native(False, prefix) is None  # the kept one is not needed any more
    assert native.read_text() == plain
    assert not Path(prefix, "share/jupyter/gvisor-kernel-replaced").exists()


def test_one_that_was_changed_since_is_taken_back(prefix: str) -> None:
    native = Path(prefix, "share/jupyter/kernels/python3/kernel.json")
    plain = native.read_text()
    changed = replace_native(False, prefix).directory / "kernel.json"
    changed.write_text(changed.read_text().replace("Python 3 (gVisor)", "mine"))
    assert restore_native(False, prefix) == native.parent
    assert native.read_text() == plain


def test_where_nothing_was_before_nothing_is_left(tmp_path: Path) -> None:
    assert replace_native(False, str(tmp_path)).name == "python3"
    assert restore_native(False, str(tmp_path)) is not None
    assert not list(Path(tmp_path, "share/jupyter/kernels").iterdir())
    assert not Path(tmp_path, "share/jupyter/gvisor-kernel-replaced").exists()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_kill_at_any_step_loses_nothing(
    prefix: str, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    """Each step is a rename; the command is killed before one of them, and then run again."""
    native = Path(prefix, "share/jupyter/kernels/python3/kernel.json")
    plain = native.read_text()
    if not can_exchange:
        monkeypatch.setattr(default_provisioner, "_libc", object())
    steps = count_steps(monkeypatch, lambda: replace_native(False, prefix))
    steps_back = count_steps(monkeypatch, lambda: restore_native(False, prefix))
    assert native.read_text() == plain
    assert (steps, steps_back) == ((2, 2) if can_exchange else (4, 4))
    for step in range(steps):
        die_before(step, monkeypatch, lambda: replace_native(False, prefix))
        assert native.exists() or not can_exchange
        replace_native(False, prefix)
        assert "gvisor-provisioner" in native.read_text()
        restore_native(False, prefix)
        assert native.read_text() == plain
        die_before(step, monkeypatch, lambda: replace_native(False, prefix))
        restore_native(False, prefix)
        assert native.read_text() == plain
        assert not Path(prefix, "share/jupyter/gvisor-kernel-replaced").exists()
    for step in range(steps_back):
        replace_native(False, prefix)
        die_before(step, monkeypatch, lambda: restore_native(False, prefix))
        assert native.exists() or not can_exchange
        restore_native(False, prefix)
        assert native.read_text() == plain
        assert not Path(prefix, "share/jupyter/gvisor-kernel-replaced").exists()


class Killed(BaseException):
    """What no code of the package catches to go on."""


def run_with_steps(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], last: int | None
) -> int:
    """Do the work, whose renames are counted; at the step ``last`` all of it ends."""
    done = 0

    def step() -> None:
        nonlocal done
        if done == last:
            raise Killed
        done += 1

    rename, exchange = Path.rename, default_provisioner.exchange

    def counted_rename(self: Path, target: Path) -> Path:
        step()
        return rename(self, target)

    def counted_exchange(one: Path, other: Path, scratch: Path) -> None:
        if hasattr(default_provisioner._libc, "renameat2"):
            step()
        exchange(one, other, scratch)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted_rename)
        patch.setattr(default_provisioner, "exchange", counted_exchange)
        if last is None:
            work()
        else:  # a process that is killed removes nothing
            patch.setattr(default_provisioner, "remove_scratch", lambda folder: None)
            with pytest.raises(Killed):
                work()
    return done


def count_steps(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> int:
    return run_with_steps(monkeypatch, work, None)


def die_before(step: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    run_with_steps(monkeypatch, work, step)


def test_a_place_that_cannot_be_written_is_left_alone(prefix: str) -> None:
    native = Path(prefix, "share/jupyter/kernels/python3/kernel.json")
    plain = native.read_text()
    Path(prefix, "share/jupyter/gvisor-kernel-replaced").write_text("")
    with pytest.raises(KernelspecError, match="cannot be replaced"):
        replace_native(False, prefix)
    assert native.read_text() == plain


def test_a_file_of_another_user_is_named(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = set_default(False, prefix)

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(KernelspecError, match=f"{path} cannot be removed: Permission denied"):
        unset_default(False, prefix)


def test_uninstall_by_name_brings_the_original_back(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = Path(prefix, "share/jupyter/kernels/python3/kernel.json")
    plain = native.read_text()
    replace_native(False, prefix)
    assert main(["uninstall", "--prefix", prefix, "--name", "python3"]) == 0
    assert native.read_text() == plain


def test_another_python3_that_comes_first_is_named(
    user_place: Path,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("JUPYTER_PATH", f"{prefix}/share/jupyter")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    options = ["--user", "--name", "of-this-test", "--default", "--replace-python3"]
    try:
        assert main(["install", *options]) == 0
        said = capsys.readouterr().out
        assert f"But Jupyter uses {prefix}/share/jupyter/kernels/python3" in said
        assert f"install --replace-python3 --prefix {prefix}\n" in said
        assert "So python3 still starts without a sandbox." in said
        assert "The kernelspec python3 starts in sandboxes now" not in said
        assert "execute, papermill" in said
        assert "Undo it with: gvisor-kernel uninstall --default --user\n" in said
        assert main(["uninstall", "--prefix", prefix, "--default"]) == 0
        assert "elsewhere: gvisor-kernel uninstall --default --user" in capsys.readouterr().out
    finally:
        assert main(["uninstall", "--user", "--default"]) == 0
        assert main(["uninstall", "--user", "--name", "of-this-test"]) == 0
    assert "elsewhere" not in capsys.readouterr().out


def test_commands_make_sandboxes_the_default_and_undo_it(
    prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install", "--prefix", prefix, "--default", "--replace-python3"]) == 0
    said = capsys.readouterr().out
    assert f"{prefix}/etc/jupyter/jupyter_config.json" in said
    assert "console, run, nbconvert and execute, papermill" in said
    assert f"{prefix}/share/jupyter/kernels/python3" in said
    assert main(["uninstall", "--prefix", prefix, "--default"]) == 0
    assert capsys.readouterr().out.count("Changed back: ") == 2
    assert main(["uninstall", "--prefix", prefix, "--default"]) == 0
    assert "Nothing to undo" in capsys.readouterr().out


def test_a_kernelspec_without_provisioner_is_started_by_ours(user_place: Path) -> None:
    """What a server does: its factory has the configuration of its application."""
    assert "python3" in find_unsandboxed()
    assert "without a sandbox start" in check_others().fact
    set_default(True, None)
    assert "python3" not in find_unsandboxed()
    assert "python3" in find_unsandboxed(configured=False)
    assert "jupyter console, nbconvert and nbclient, start without one:" in check_others().fact
    code = (
        "from jupyter_core.application import JupyterApp\n"
        "from jupyter_client.kernelspec import KernelSpec\n"
        "from jupyter_client.provisioning.factory import KernelProvisionerFactory as Factory\n"
        "app = JupyterApp(); app.load_config_file()\n"
        "factory = Factory.instance(parent=app)\n"
        "made = factory.create_provisioner_instance('x', KernelSpec(argv=['python3']), None)\n"
        "print(type(made).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "GVisorProvisioner\n"


def test_kernels_of_running_servers_without_a_sandbox_are_named(
    tmp_path: Path, user_place: Path
) -> None:
    pytest.importorskip("jupyter_server", reason="jupyter_server is not installed")
    argv = [sys.executable, "-m", "jupyter_server", "--no-browser", "--port=0", "--allow-root"]
    argv += [f"--ServerApp.root_dir={tmp_path}", "--ip=127.0.0.1"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, cwd=tmp_path) as server:
        assert server.stderr is not None
        try:
            while b"http://127.0.0.1" not in (line := server.stderr.readline()):
                assert line, "the server ended"
            found = wait_for_server(server.pid)
            wait_until_open(found.url)
            assert servers.list_kernels(found) == []
            asyncio.run(_start_kernel(found, "python3"))
            check = servers.check_servers()
            assert check.state == "warning"
            named = f"python3 ({servers.list_kernels(found)[0][0][:8]}) of {found.url}"
            assert named in check.fact
            set_default(True, None)  # too late for this kernel, and for this server
            assert "python3" not in find_unsandboxed()
            assert named in servers.check_servers().fact
        finally:
            server.terminate()
            server.stderr.read()
            server.wait(scale_seconds(30))


def wait_for_server(pid: int) -> servers.Server:
    """Wait until a server has written the file that names it."""
    end = time.monotonic() + scale_seconds(20)
    while True:
        for found in servers.find_servers():
            if found.pid == pid:
                return found
        assert time.monotonic() < end
        time.sleep(0.02)


def wait_until_open(url: str) -> None:
    """Wait until a server accepts connections: it names its address before."""
    parts = urlsplit(url)
    end = time.monotonic() + scale_seconds(20)
    while True:
        try:
            socket.create_connection((parts.hostname or "", parts.port or 0)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.02)


async def _start_kernel(server: servers.Server, name: str) -> None:
    from urllib.request import ProxyHandler, Request, build_opener

    request = Request(  # noqa: S310 - a server of this test
        f"{server.url}api/kernels",
        json.dumps({"name": name}).encode(),
        {"Authorization": f"token {server.token}"},
        method="POST",
    )
    opener = build_opener(ProxyHandler({}))
    await asyncio.to_thread(lambda: opener.open(request, timeout=scale_seconds(30)).close())


def test_a_server_that_does_not_answer_is_passed_over(tmp_path: Path) -> None:
    assert servers.list_kernels(servers.Server(os.getpid(), "http://127.0.0.1:9/", "x")) == []
