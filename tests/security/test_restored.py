"""Snapshots: neither a snapshot nor a restored kernel contains data of the snapshot's maker."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gvisor_kernel.snapshots.snapshot import Snapshot
from gvisor_kernel.snapshots.snapshot_store import Store

from ..jupyter.helpers import kernel_log
from .inside import Kernel, attacker

MAKER = """
import json, sys
from dataclasses import replace
from gvisor_kernel.kernel import client, snapshot_builder
from gvisor_kernel.jupyter.plan_factory import make_plan
from jupyter_client import KernelManager
new_key, keys = client.new_key, []
def noted():
    keys.append(new_key())
    return keys[-1]
client.new_key = noted
plan = make_plan("gvisor-python-restored", client.private_connection_info(), "")
environment = dict.fromkeys(json.loads(sys.argv[2]), sys.argv[1])
plan = replace(plan, spec=replace(plan.spec, environment=tuple(environment)),
               request=replace(plan.request, environment=environment),
               environment={"GK_HEADER": "Bearer " + sys.argv[1]}, substituted=("GK_HEADER",))
snapshot_builder.make_snapshot(plan, lambda words, done: None)
print(json.dumps([plan.identity.key.decode(), *map(bytes.decode, keys)]))
"""

PASSED = ("GK_PASSED", "JUPYTERHUB_API_TOKEN", "NVIDIA_API_KEY", "TF_TOKEN_app_example_com")
"""Names that, except the first, begin like variables that an interpreter or a library reads."""


@dataclass(frozen=True)
class Made:
    """A snapshot, and secrets of its maker that must not be found in it."""

    snapshot: Snapshot
    secrets: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A snapshot made by a process with a secret in its environment, another in variables that the
    setting passes on (and in one of the kernelspec's), and a third in a file of its folder."""
    words = {name: f"gk-{secrets.token_hex(16)}" for name in ("variable", "passed", "file")}
    folder = tmp_path_factory.mktemp(f"gk-{secrets.token_hex(8)}")
    (folder / "notebook.ipynb").write_text(words["file"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        done = subprocess.run(
            [sys.executable, "-P", "-c", MAKER, words["passed"], json.dumps(PASSED)],
            cwd=folder,
            env={**os.environ, "GK_SECRET_TOKEN": words["variable"]},
            stdout=subprocess.PIPE,
            check=True,
        )
        keys = json.loads(done.stdout)
        assert len(keys) == 2
        words |= {"the clients' key": keys[0], "a key": keys[1], "the folder": folder.name}
        (snapshot,) = Store.open().snapshots()
        yield Made(snapshot, words, folder)


def test_snapshot_files_contain_no_secrets(made: Made) -> None:
    """The memory is in plain text: the search finds known words, so it would find a secret."""
    content = b"".join(path.read_bytes() for path in made.snapshot.files.iterdir())
    assert made.snapshot.meta.sandbox_key.encode() in content
    assert b"/run/gvisor-kernel/kernel/1/connection.json" in content
    for name, word in made.secrets.items():
        assert word.encode() not in content, name
    for path in made.snapshot.directory.rglob("*"):
        assert path.is_dir() or made.secrets["passed"].encode() not in path.read_bytes(), path


SEARCH = """
import hashlib, re
shape = re.compile(rb"gk-[0-9a-f]{32}|gk-[0-9a-f]{16}|[0-9a-f]{64,400}")
seen = set()
zeros = bytes(65536)

def look(content):
    blocks = (content[at : at + len(zeros)] for at in range(0, len(content), len(zeros)))
    seen.update(shape.findall(b"".join(block for block in blocks if block != zeros)))

for process in ("self", "1"):
    try:
        memory, maps = open(f"/proc/{process}/mem", "rb", buffering=0), open("/proc/self/maps")
    except OSError:
        continue  # a kernel cannot read PID 1
    with memory, maps:
        for line in maps:
            place, access, *_ = line.split()
            start, end = (int(part, 16) for part in place.split("-"))
            try:
                if access.startswith("rw"):
                    memory.seek(start)
                    look(memory.read(end - start))
            except (OSError, OverflowError):
                continue
shown = {sys.prefix, sys.base_prefix, *map(os.path.realpath, sys.path)}
for path in [*glob.glob("/proc/[0-9]*/environ"), *glob.glob("/proc/[0-9]*/cmdline")]:
    try:
        look(Path(path).read_bytes())
    except OSError:
        continue
for top in ("/run", "/tmp", "/home", "/workspace", "/mnt", "/etc", "/var", "/container_info.json"):
    paths = [top] if os.path.isfile(top) else []
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in shown]
        paths += [os.path.join(folder, name) for name in names]
    for path in paths:
        look(os.fsencode(path))
        try:
            if os.path.islink(path):
                look(os.fsencode(os.readlink(path)))
            elif os.path.isfile(path):
                look(Path(path).read_bytes())
        except OSError:
            continue
found = set()
for match in seen:
    size = min(len(match), 64)
    for start in range(len(match) - size + 1):
        found.add(hashlib.sha256(match[start : start + size]).hexdigest())
found = sorted(found)
"""
"""Finds anything that looks like a secret, in the kernel's memory, in files and in their names.
Skips the Python environment, which is read-only and would take most of a minute, blocks of zeros,
and files of the host's system that a link leads to. Returns digests, so that the search does not
find itself."""


@pytest.fixture(scope="module")
def restored(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("restored")
    environment = {**os.environ, **dict.fromkeys(PASSED, "my own"), "TMPDIR": "/workspace"}
    settings = {"environment": [*PASSED, "TMPDIR"]}
    with attacker(folder, settings, env=environment) as kernel:
        assert "the kernel was restored from a snapshot" in kernel_log(kernel.manager)
        yield kernel


def digest(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


def test_restored_kernel_contains_no_secrets(made: Made, restored: Kernel) -> None:
    own = f"gk-{secrets.token_hex(16)}"
    restored.run(f"own = {own!r}; found = 0")
    inner = restored.run("found = get_ipython().kernel.session.key.decode()")
    found = set(restored.run(SEARCH))
    assert digest(own) in found, "the search does not find a known word"
    assert digest(inner) in found
    for name, word in made.secrets.items():
        assert digest(word) not in found, name
    assert digest(restored.manager.session.key.decode()) not in found


def test_restored_kernel_has_its_own_passed_variables(made: Made, restored: Kernel) -> None:
    """Each restored kernel has its own values, folder, transcript and log."""
    for name in PASSED:
        assert restored.run(f"found = os.environ[{name!r}]") == "my own"
    assert restored.run("import tempfile; found = tempfile.gettempdir()") == "/workspace"
    assert restored.run("found = os.listdir('/workspace')") == ["outputs"]
    log = kernel_log(restored.manager)
    text = restored.run("found = Path('/mnt/transcripts/transcript.jsonl').read_text()")
    for name, word in made.secrets.items():
        assert word not in log, name
        assert word not in text, name


def test_restored_kernel_changes_its_key(made: Made, restored: Kernel) -> None:
    """The key of the snapshot is useless, because each restored kernel has a new one."""
    inner = restored.run("found = get_ipython().kernel.session.key.decode()")
    assert inner != made.snapshot.meta.sandbox_key
    restarted = restored.run("found = Path(sys.argv[sys.argv.index('-f') + 1]).read_text()")
    assert made.snapshot.meta.sandbox_key not in restarted
