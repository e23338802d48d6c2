"""The launcher as front ends without provisioners use it: argv, connection file, signals."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient

from .. import leaks
from ..sweeps import needs_all
from ..world import DEFAULT_KERNEL, World
from .helpers import (
    SANDBOXED,
    SECONDS,
    SOONEST,
    execute,
    finish,
    wait_for_text,
    wait_until,
)

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="the local kernel has no launcher")


@pytest.fixture(autouse=True)
def nothing_left_by_the_test(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    (tmp_path / "notebooks").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "notebooks")
    before = leaks.find_things(world)
    yield
    left = leaks.find_leftovers(before, lambda: leaks.find_things(world))
    assert not left, "left behind:\n" + "\n".join(sorted(left))


@pytest.fixture
def connection_file(tmp_path: Path) -> Path:
    """A connection file as a front end writes it, with ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
        ports = [s.getsockname()[1] for s in sockets]
    names = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
    info = {
        "transport": "tcp",
        "ip": "127.0.0.1",
        "key": secrets.token_hex(16),
        "signature_scheme": "hmac-sha256",
        "kernel_name": DEFAULT_KERNEL,
        **dict(zip(names, ports, strict=True)),
    }
    path = tmp_path / "kernel-v3.json"
    path.write_text(json.dumps(info))
    return path


def argv(connection_file: Path, kernel: str = DEFAULT_KERNEL) -> list[str]:
    return [
        *(sys.executable, "-m", "gvisor_kernel", "launch"),
        *("-f", str(connection_file), "--kernel", kernel),
    ]


@contextmanager
def launched(
    connection_file: Path, kernel: str = SOONEST, **options: Any
) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """Start a launcher and a client, and wait for the kernel. The launcher is killed at the end."""
    process = subprocess.Popen(argv(connection_file, kernel), start_new_session=True, **options)
    try:
        with connected(connection_file) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


@contextmanager
def connected(connection_file: Path) -> Iterator[Any]:
    """Connect a client without a heartbeat, which would give up a start after a second."""
    client = BlockingKernelClient(connection_file=str(connection_file))
    client.load_connection_file()
    wait_until(lambda: _listens(client.hb_port), "the launcher to listen")
    client.start_channels(hb=False)
    try:
        client.wait_for_ready(timeout=SECONDS)
        yield client
    finally:
        client.stop_channels()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_launcher_runs_cells_interrupts_and_ends(connection_file: Path) -> None:
    with launched(connection_file) as (process, client):
        assert execute(client, "import os; print(os.getuid())").text == "1000\n"
        busy = client.execute("print('busy', flush=True)\nwhile True: pass")
        wait_for_text(client, "busy")
        process.send_signal(signal.SIGINT)
        assert finish(client, busy).error == "KeyboardInterrupt"
        assert execute(client, "6 * 7").result == "42"
        process.terminate()
        assert process.wait(SECONDS) == 128 + signal.SIGTERM


def test_launcher_ends_with_its_kernel(connection_file: Path) -> None:
    with launched(connection_file) as (process, client):
        client.execute("import os; os._exit(7)")
        assert process.wait(SECONDS) == 7


@pytest.mark.parametrize("way", ["shutdown request", pytest.param("SIGTERM", marks=needs_all)])
def test_launcher_names_files_that_are_not_kept(way: str, connection_file: Path) -> None:
    with launched(connection_file, stderr=subprocess.PIPE) as (process, client):
        assert execute(client, "open('lost.csv', 'w').close()").status == "ok"
        client.shutdown() if way == "shutdown request" else process.terminate()
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == (0 if way == "shutdown request" else 128 + signal.SIGTERM)
    assert b"are lost with the sandbox: lost.csv." in said
    assert b"Traceback" not in said


@needs_all
def test_launcher_writes_new_files_at_sigterm(
    connection_file: Path, world: World, tmp_path: Path
) -> None:
    """As the setting ``apply`` says; no manager ends the kernel before."""
    spec = json.loads((world.kernelspecs / SOONEST / "kernel.json").read_text())
    settings = {"apply": "new files", "snapshot": "off"}
    spec["metadata"]["kernel_provisioner"]["config"] |= settings
    world.add_kernelspec("launched-new-files", spec)
    with launched(connection_file, "launched-new-files") as (process, client):
        assert execute(client, "open('new.csv', 'w').write('1')").status == "ok"
        process.terminate()
        assert process.wait(SECONDS) == 128 + signal.SIGTERM
    assert (tmp_path / "notebooks" / "new.csv").read_text() == "1"


def test_killed_launcher_leaves_nothing(connection_file: Path) -> None:
    with launched(connection_file) as (process, _):
        process.kill()
        process.wait()


@pytest.mark.parametrize("delay", [0.5, pytest.param(1.0, marks=needs_all)])
def test_sigterm_during_start_ends_launcher(connection_file: Path, delay: float) -> None:
    process = subprocess.Popen(argv(connection_file), start_new_session=True)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(delay)
        process.terminate()
        assert process.wait(SECONDS) in (128 + signal.SIGTERM, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def test_launcher_ends_with_its_front_end(connection_file: Path) -> None:
    """ipykernel does the same if Jupyter has set JPY_PARENT_PID."""
    front_end = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import os, subprocess, sys\n"
            "os.environ['JPY_PARENT_PID'] = str(os.getpid())\n"
            "print(subprocess.Popen(sys.argv[1:], start_new_session=True).pid, flush=True)\n"
            "input()",
            *argv(connection_file, SOONEST),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert front_end.stdout is not None
    launcher = int(front_end.stdout.readline())
    try:
        with connected(connection_file):
            front_end.kill()
            front_end.communicate()
            wait_until(lambda: not _runs(launcher), "the launcher's end", 10)
    finally:
        front_end.kill()
        front_end.communicate()


def _runs(pid: int) -> bool:
    try:
        return b"gvisor_kernel" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def fails(connection_file: Path, kernel: str = DEFAULT_KERNEL) -> str:
    done = subprocess.run(
        argv(connection_file, kernel),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=dict(os.environ),
        check=False,
    )
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_unknown_kernelspec_is_reported(connection_file: Path) -> None:
    assert "'no-such-kernel'" in fails(connection_file, "no-such-kernel")


def test_wrong_setting_is_reported(connection_file: Path, world: World) -> None:
    spec = json.loads((world.kernelspecs / DEFAULT_KERNEL / "kernel.json").read_text())
    spec["metadata"]["kernel_provisioner"]["config"] = {"memory_limit": "lots"}
    folder = world.add_kernelspec("wrong-setting", spec)
    try:
        said = fails(connection_file, "wrong-setting")
    finally:
        (folder / "kernel.json").unlink()
        folder.rmdir()
    assert "memory_limit" in said
    assert "lots" in said


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"transport": "udp", "key": ""}'])
def test_invalid_connection_file_is_reported(text: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel-v3.json"
    path.write_text(text)
    assert str(path) in fails(path)
