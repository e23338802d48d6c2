"""Kernels of one snapshot share nothing that matters; each has its own session."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jupyter_core.utils import ensure_event_loop

from gvisor_kernel.host.cgroups import can_bound_memory

from ..jupyter.helpers import execute, kernel_log, running_kernel, sandbox_of
from ..sweeps import ALL
from ..world import PROJECT
from .conftest import build

COPIES = 20 if ALL else 4
AT_ONCE = 4
SETTINGS = {"preload": ["gk_early"], "environment": ["GK_OWN"]}

LOOK = r"""
CHILD = "import random, ssl; print(random.random(), ssl.RAND_bytes(8))"
def look():
    import gk_early, json, multiprocessing.process, numpy, os, random, secrets, socket, ssl
    import subprocess, sys, tempfile, time, uuid
    shell = get_ipython()
    session = shell.kernel.session
    def read(path):
        with open(path) as file:
            return file.read()
    files = []
    for place, folders, names in os.walk("/home/user"):
        # An environment may lie there, too: what is mounted is not the home's.
        folders[:] = [each for each in folders if not os.path.ismount(os.path.join(place, each))]
        files += names
    return {
        "drawn": {
            "random": random.random(),
            "a Random": random.Random().random(),
            "numpy.random": numpy.random.random(),
            "default_rng": numpy.random.default_rng().random(),
            "secrets": secrets.token_hex(8),
            "os.urandom": os.urandom(8).hex(),
            "uuid1": str(uuid.uuid1())[14:],
            "uuid4": str(uuid.uuid4()),
            "node": uuid.getnode(),
            "ssl": ssl.RAND_bytes(8).hex(),
            "tempfile": os.path.basename(tempfile.mktemp()),
            "authkey": bytes(multiprocessing.process.current_process().authkey).hex(),
            "session": session.session,
            "key": session.key.decode(),
            "msg_id": session.msg_id,
            "ident": shell.kernel.ident,
            "machine": read("/etc/machine-id"),
            "identity": json.load(open("/container_info.json"))["identity"],
            "child": subprocess.check_output([sys.executable, "-c", CHILD]).decode(),
        },
        "key in its file": json.load(open(sys.argv[sys.argv.index("-f") + 1]))["key"],
        "hash": hash("x"),
        "own": gk_early.own,
        "history": [str(shell.history_manager.hist_file), shell.history_manager.session_number],
        "cells": list(shell.history_manager.input_hist_raw),
        "names": sorted(name for name in shell.user_ns if not name.startswith("_")),
        "clocks": [time.time(), time.monotonic(), time.perf_counter()],
        "cwd": os.getcwd(),
        "pid": os.getpid(),
        "locks": [type(stream._buffer_lock).__name__ for stream in (sys.stdout, sys.stderr)],
        "environment": dict(os.environ),
        "info": json.load(open("/container_info.json")),
        "host": socket.gethostname(),
        "uploads": sorted(os.listdir("/mnt/user-data/uploads")),
        "workspace": sorted(os.listdir("/workspace")),
        "transcript": os.listdir("/mnt/transcripts"),
        "skills": sorted(os.listdir("/mnt/skills/public")),
        "temporary": os.listdir("/tmp"),
        "home": sorted(files),
    }
open("/mnt/user-data/outputs/mine", "x").write("mine")
open("/workspace/made", "x").close()
open("/tmp/made", "x").close()
print(__import__("json").dumps(look()))
"""


def look(number: int, kernelspec: str, folder: Path) -> dict[str, Any]:
    """Return what kernel ``number`` finds inside, and what the host knows about it."""
    folder.mkdir()
    (folder / f"data-{number}").touch()
    settings = {"memory_limit": (5000 + number) << 20} if can_bound_memory() else {}
    start = {"cwd": str(folder), "env": {**os.environ, "GK_OWN": f"own-{number}"}}
    with running_kernel(kernelspec, settings=settings, start=start) as (manager, client):
        assert "the kernel was restored from a snapshot" in kernel_log(manager)
        before = time.time(), time.monotonic()
        answer = execute(client, LOOK.replace("look():", f"look(): # {number}", 1))
        assert answer.status == "ok", answer.reply["content"]
        found: dict[str, Any] = json.loads(answer.text)
        found["count"] = answer.reply["content"]["execution_count"]
        found["number"] = number
        found["host's clocks"] = before, (time.time(), time.monotonic())
        found["headers"] = sorted({m["header"]["session"] for m in answer.outputs})
        found["messages"] = [m["header"]["msg_id"] for m in answer.outputs]
        again = json.loads(execute(client, "print(__import__('json').dumps(look()))").text)
        found["drawn again"], found["later"] = again["drawn"], again["clocks"]
        found["sandbox"] = sandbox_of(manager).identity
        found["transcript's text"] = execute(
            client, "print(open('/mnt/transcripts/transcript.jsonl').read())"
        ).text
    return found


@pytest.fixture(scope="module")
def copies(kernelspec: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    build("--kernel", kernelspec)
    folder = tmp_path_factory.mktemp("copies")

    def look_at_some(first: int) -> list[dict[str, Any]]:
        try:
            numbers = range(first, COPIES, AT_ONCE)
            return [look(n, kernelspec, folder / str(n)) for n in numbers]
        finally:
            ensure_event_loop().close()  # jupyter_core creates one per thread

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = [one for some in pool.map(look_at_some, range(AT_ONCE)) for one in some]
    return sorted(found, key=lambda one: int(one["number"]))


def test_random_values_are_unique(copies: list[dict[str, Any]]) -> None:
    """Random numbers, keys, names and identities differ between kernels and within one."""
    for name in copies[0]["drawn"]:
        values = [str(copy["drawn"][name]) for copy in copies]
        assert len(set(values)) == COPIES, f"{name}: {sorted(values)}"
    for name in ("random", "numpy.random", "ssl", "tempfile", "secrets", "msg_id"):
        twice = [str(copy[when][name]) for copy in copies for when in ("drawn", "drawn again")]
        assert len(set(twice)) == 2 * COPIES, name
    for copy in copies:
        assert copy["key in its file"] == copy["drawn"]["key"]
        assert copy["headers"] == [copy["drawn"]["session"]]
    messages = [message for copy in copies for message in copy["messages"]]
    assert len(set(messages)) == len(messages)


def test_each_kernel_has_its_own_session(copies: list[dict[str, Any]]) -> None:
    for number, copy in enumerate(copies):
        assert copy["uploads"] == [f"data-{number}", "outputs"]
        assert copy["workspace"] == [f"data-{number}", "made", "outputs"]
        assert copy["environment"]["GK_OWN"] == f"own-{number}"
        assert copy["cwd"] == "/workspace"
        assert copy["skills"]
        assert copy["transcript"] == ["transcript.jsonl"]
        assert f"def look(): # {number}" in copy["transcript's text"]
        assert [n for n in range(COPIES) if f"# {n}\\n" in copy["transcript's text"]] == [number]
        assert copy["info"]["identity"] == copy["sandbox"]
        assert copy["info"]["kernel"] == "gvisor-test_restored"
        if can_bound_memory():
            assert copy["info"]["limits"]["memory_bytes"] == (5000 + number) << 20
        created = datetime.fromisoformat(copy["info"]["created"]).timestamp()
        assert abs(created - copy["host's clocks"][0][0]) < 120


def test_restored_kernel_is_pristine(copies: list[dict[str, Any]]) -> None:
    """It is like a new kernel: first cell, empty history, no names, no files."""
    for copy in copies:
        assert copy["count"] == 1
        assert len(copy["cells"]) == 2
        assert copy["history"] == [":memory:", 1]
        assert copy["names"] == [
            "CHILD",
            "In",
            "Out",
            "exit",
            "get_ipython",
            "look",
            "open",
            "quit",
        ]
        assert "made" in copy["temporary"]
        assert [name for name in copy["temporary"] if name.startswith("tmp")] == []
        files = [n for n in copy["home"] if not n.endswith((".cache-9", ".TAG"))]
        # Of IPython's profile, and of matplotlib, which nobody has imported.
        assert [n.partition("-v")[0] for n in files] == ["README", "fontlist"], copy["home"]


def test_restored_kernel_has_the_hosts_time(copies: list[dict[str, Any]]) -> None:
    for copy in copies:
        (before, _), (after, _) = copy["host's clocks"]
        assert before - 0.1 <= copy["clocks"][0] <= after + 0.1
        elapsed = [then - now for now, then in zip(copy["clocks"], copy["later"], strict=True)]
        assert all(abs(each - elapsed[0]) < 0.1 for each in elapsed), elapsed
        assert elapsed[0] > 0


def test_printing_takes_locks_without_the_clock(copies: list[dict[str, Any]]) -> None:
    """In the first second after a restore each reading of the clock is a system call."""
    for copy in copies:
        assert copy["locks"] == ["SemLock", "SemLock"]


def test_shared_state_is_documented(copies: list[dict[str, Any]]) -> None:
    text = (PROJECT / "docs" / "snapshots.md").read_text()
    assert len({copy["hash"] for copy in copies}) == 1
    assert "string hashes" in text
    assert len({copy["own"] for copy in copies}) == 1
    assert "made for itself when it was imported" in text


def test_numpy_imported_later_is_seeded_differently(shared_snapshot: str, tmp_path: Path) -> None:
    found = []
    for number in range(2):
        with running_kernel(start={"cwd": str(tmp_path)}) as (manager, client):
            assert "the kernel was restored from a snapshot" in kernel_log(manager)
            code = f"import numpy, random; print(numpy.random.random(), random.random(), {number})"
            found += execute(client, code).text.split()[:2]
    assert len(set(found)) == 4
