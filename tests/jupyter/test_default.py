"""Sandboxes as Jupyter's default: the configuration, the kernelspec python3, and the way back."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gvisor_kernel.cli.checks import servers
from gvisor_kernel.cli.checks.jupyter import check_others
from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import KernelspecError
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


def test_commands_make_sandboxes_the_default_and_undo_it(
    prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install", "--prefix", prefix, "--default", "--replace-python3"]) == 0
    said = capsys.readouterr().out
    assert f"{prefix}/etc/jupyter/jupyter_config.json" in said
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


def test_kernels_of_running_servers_without_a_sandbox_are_named(tmp_path: Path) -> None:
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
            assert f"python3 ({servers.list_kernels(found)[0][0][:8]}) of {found.url}" in check.fact
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
