"""A restart in a restored sandbox forks its first process, which has imported ipykernel."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from ..jupyter.helpers import (
    SECONDS,
    execute,
    kernel_log,
    running_kernel,
    sandbox_of,
    wait_for_text,
    wait_until,
)

LOOK = r"""
def look():
    import gc, json, os, random, sys
    with open("/proc/self/cmdline", "rb") as own, open("/proc/1/cmdline", "rb") as first:
        argv = [own.read(), first.read()]
    main = sys.modules["gvisor_kernel.guest.main"]
    session = get_ipython().kernel.session
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "as its parent was called": argv[0] == argv[1],
        "imported by its parent": main.__spec__ is not None and gc.get_freeze_count() > 10_000,
        "guest": "main" in vars(main),
        "drawn": [random.random(), session.session, session.key.decode()],
        "kept": os.path.exists("/tmp/kept"),
        "environment": os.environ.get("GK_OWN"),
        "cwd": os.getcwd(),
        "names": sorted(name for name in globals() if name.startswith("mine")),
    }
mine = 1
print(__import__("json").dumps(look()))
open("/tmp/kept", "w").close()
"""


@pytest.fixture
def kernel(
    shared_snapshot: str, tmp_path: Path
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    settings = {"environment": ["GK_OWN"]}
    start = {"cwd": str(tmp_path), "env": {**os.environ, "GK_OWN": "own"}}
    with running_kernel(settings=settings, start=start) as (manager, client):
        assert "the kernel was restored from a snapshot" in kernel_log(manager)
        yield manager, client


def look(client: BlockingKernelClient) -> dict[str, Any]:
    answer = execute(client, LOOK)
    assert answer.status == "ok", answer.reply["content"]
    found: dict[str, Any] = json.loads(answer.text)
    return found


def test_restart_forks_waiting_parent(
    kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    """A polite restart, one at once, and one after a kill all stay in the same sandbox."""
    manager, client = kernel
    found = [look(client)]
    sandbox = sandbox_of(manager)
    for how in ("polite", "now", "killed", "busy"):
        if how == "killed":
            client.execute("import os; os.kill(os.getpid(), 9)")
            wait_until(lambda: not manager.is_alive(), "the death of the kernel")
        elif how == "busy":
            client.execute("print('busy')\nwhile True: pass")
            wait_for_text(client, "busy")
        manager.restart_kernel(now=how != "polite")
        client.wait_for_ready(timeout=SECONDS)
        found.append(look(client))
        assert sandbox_of(manager) is sandbox
    for again in found:
        assert again["parent"] == 1
        assert again["as its parent was called"], "another program was started"
        assert again["imported by its parent"]
        assert again["guest"]
        assert again["environment"] == "own"
        assert again["cwd"] == "/workspace"
        assert again["names"] == ["mine"]
    assert [again["kept"] for again in found] == [False, True, True, True, True]
    assert len({again["pid"] for again in found}) == len(found)
    for number in range(3):
        assert len({again["drawn"][number] for again in found}) == len(found)
    log = kernel_log(manager)
    assert log.count("the kernel was restored from a snapshot") == 1
    assert "without a snapshot" not in log
