"""Another user of the same machine can neither reach nor read a kernel, nor end it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.runtimes.state import state_root

from ..jupyter.helpers import execute, running_kernel
from ..world import World
from .test_owner_death import record_of

OTHER = 65534
"""nobody: a user without anything of its own."""

ATTACK = r"""
import json, os, signal, socket, sys
plan = json.load(sys.stdin)
done = []
def attempt(what, action):
    try:
        action()
    except (OSError, PermissionError):
        return
    done.append(what)
for path in plan["paths"]:
    attempt("list " + path, lambda: os.listdir(path))
    attempt("read " + path, lambda: open(path, "rb").read(1))
    attempt("plant a file in " + path, lambda: open(path + "/planted", "w"))
for path in plan["sockets"]:
    attempt("connect to " + path, lambda: socket.socket(socket.AF_UNIX).connect(path))
for pid in plan["pids"]:
    for name in ("environ", "mem", "maps"):
        attempt(f"read {name} of a process", lambda: open(f"/proc/{pid}/{name}", "rb").read(1))
    for name in ("cwd", "root", "exe"):
        attempt(f"follow {name} of a process", lambda: os.readlink(f"/proc/{pid}/{name}"))
    attempt("list fds of a process", lambda: os.listdir(f"/proc/{pid}/fd"))
    attempt("signal a process", lambda: os.kill(pid, 0))
json.dump(done, sys.stdout)
"""


@pytest.fixture
def open_world(world: World) -> Iterator[None]:
    """The folders of the test run itself let others through: only ours are in the way."""
    folders = (world.base, world.state, world.runtime, world.run, world.temporary)
    for folder in folders:
        folder.chmod(0o711)
    yield
    for folder in folders:
        folder.chmod(0o700)


def attack(plan: dict[str, Any], user: int) -> list[str]:
    """What of ``plan`` succeeds when ``user`` tries it."""
    result = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", ATTACK],
        input=json.dumps(plan),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        user=user,
        group=user,
        extra_groups=[],
        cwd="/",
        env={},
    )
    done: list[str] = json.loads(result.stdout)
    return done


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")
def test_another_user(open_world: None) -> None:
    with running_kernel() as (manager, client):
        assert execute(client, "secret = 1").status == "ok"
        kernel: Any = manager.provisioner._kernel
        record = record_of(kernel.sandbox.identity)
        root = state_root()
        address = kernel.address
        names = [f"{address.ip}-{port}" for port in address.ports.values()]
        plan = {
            "paths": [
                str(path)
                for path in (
                    root,
                    root / "sandboxes",
                    kernel.sandbox.directory,
                    kernel.sandbox.log_path,
                    kernel.sandbox.transcripts,
                    kernel.sandbox.transcripts / "transcript.jsonl",
                    Path(address.ip).parent,
                    manager.connection_file,
                )
            ],
            "sockets": names + [str(Path(name).resolve()) for name in names],
            "pids": [process.pid for process in record.processes.values()] + [os.getpid()],
        }
        assert all(Path(path).exists() for path in plan["paths"])
        assert attack(plan, OTHER) == []
        # The same attack by the owner reaches the sockets: it is no blank shot.
        reached = attack({**plan, "paths": [], "pids": []}, os.geteuid())
        assert reached == [f"connect to {path}" for path in plan["sockets"]]
        assert execute(client, "secret").result == "1"


def test_state_is_private() -> None:
    """What a kernel has on the host's disk is closed at the top, and below for good measure."""
    with running_kernel() as (manager, _):
        kernel: Any = manager.provisioner._kernel
        assert kernel.sandbox is not None
        for folder in (state_root(), kernel.sandbox.directory, Path(kernel.address.ip).parent):
            status = folder.stat()
            assert status.st_mode & 0o077 == 0
            assert status.st_uid == os.geteuid()
