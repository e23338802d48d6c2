"""The keys of routes are searched for in all that a sandbox has, writes and leaves.

A word that the kernel plants is searched for as well, and has to be found in these places.
"""

from __future__ import annotations

import json
import os
import secrets
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from keyrings.alt.file import PlaintextKeyring
from traitlets.config import Config

from gvisor_kernel.cli.main import main
from gvisor_kernel.egress.process import EgressWorker
from gvisor_kernel.snapshots.snapshot_store import Store
from gvisor_kernel.spec.layout import LAYOUT

from ..jupyter.helpers import assert_way, execute, kernel_log, running_kernel, wait_until
from ..security.inside import PRELUDE, Kernel
from ..security.test_secrets import SEARCH
from ..world import World, kernelspec_of
from .test_kernels import HELPERS
from .upstream import Handler, serving

KERNELSPEC = "gk-with-keys"
HEADERS = {
    "env": "Authorization: Bearer {secret}",
    "file": "X-Api-Key: {secret}",
    "keyring": "Authorization: token {secret}",
}
"""The routes, named by where their keys are, and the headers that carry them."""
SHARE = 4 * 1024 * 1024
"""Bytes of a memory that are searched at a time."""
IS_ROOT = os.geteuid() == 0
"""Whether this user can read the memory of the processes, which protect themselves."""
PLANTED = "the planted word"


class Guard(Handler):
    """Answers with 200 only a request with the right key, and quotes what it got."""

    right: ClassVar[dict[str, str]] = {}

    def at_key(self, query: dict[str, str]) -> None:
        seen = self.fake.seen[-1]
        header, _, value = self.right[seen.path.split("/")[1]].partition(": ")
        given = seen.values(header)
        status = 200 if given == [value] else 401
        self._answer(f"got {given}".encode(), status, X_Got=str(given))


@dataclass
class Words:
    """What is searched for, by name, and where each was found."""

    forms: list[tuple[str, bytes]]
    places: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, words: dict[str, str]) -> Words:
        return cls(
            [
                (name, form)
                for name, word in words.items()
                for form in (word.encode(), b64encode(word.encode()))
            ],
            {name: set() for name in words},
        )

    def note(self, place: str, content: bytes) -> None:
        for name, form in self.forms:
            if form in content:
                self.places[name].add(place)

    @property
    def longest(self) -> int:
        return max(len(form) for _, form in self.forms)


@dataclass(frozen=True)
class Keys:
    """The keys of the routes, the routes, and a word that is none."""

    values: dict[str, str]
    routes: dict[str, Any]
    planted: str


@pytest.fixture
def keys(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keys]:
    """Keys in a variable, a file and a keyring; routes with them in Jupyter's configuration; a
    kernelspec that uses them; a server that demands them."""
    values = {name: f"gk-{secrets.token_hex(16)}" for name in HEADERS}
    for name in ("config", "cache", "data"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # has no snapshot
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyrings.alt.file.PlaintextKeyring")
    monkeypatch.setenv("GK_TEST_KEY", values["env"])
    file = tmp_path / "key"
    file.write_text(values["file"])
    file.chmod(0o600)
    PlaintextKeyring().set_password("gk/test", "bot", values["keyring"])
    sources = {"env": "env:GK_TEST_KEY", "file": f"file:{file}", "keyring": "keyring:gk/test/bot"}
    right = {name: header.format(secret=values[name]) for name, header in HEADERS.items()}
    monkeypatch.setattr(Guard, "right", right)
    spec = json.loads((world.kernelspecs / kernelspec_of("restored") / "kernel.json").read_text())
    spec["metadata"]["kernel_provisioner"]["config"] |= {
        "egress": [*HEADERS],
        "transcripts": True,
    }
    folder = world.add_kernelspec(KERNELSPEC, spec)
    EgressWorker.instance().stop()
    with serving(None, Guard) as fake:
        routes = {
            name: {
                "url": f"http://127.0.0.1:{fake.port}/{name}",
                "allow_private": True,
                "secret": sources[name],
                "header": header,
            }
            for name, header in HEADERS.items()
        }
        text = json.dumps({"GVisorEgress": {"routes": routes}})
        (tmp_path / "config" / "jupyter_server_config.json").write_text(text)
        yield Keys(values, routes, f"gk-{secrets.token_hex(16)}")
    EgressWorker.instance().stop()
    (folder / "kernel.json").unlink()
    folder.rmdir()


@pytest.mark.once
def test_keys_are_nowhere_where_a_planted_word_is_found(
    keys: Keys, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = Words.of({**keys.values, PLANTED: keys.planted})
    config = Config({"GVisorEgress": {"routes": keys.routes}})
    (tmp_path / "notebooks").mkdir()
    start = {"cwd": str(tmp_path / "notebooks")}
    with running_kernel(KERNELSPEC, config=config, start=start) as (manager, client):
        assert_way(manager, client, "direct")
        kernel = Kernel(manager, client, tmp_path / "notebooks")
        assert execute(client, PRELUDE + HELPERS).status == "ok"
        use_and_plant(kernel, keys)
        folder = kernel.sandbox.log_path.parent
        record = folder / "egress.jsonl"
        wait_until(lambda: keys.planted in record.read_text(), "the record")
        if IS_ROOT:
            look_at_processes(words, kernel)
        look_at_files(words, folder)
        capsys.readouterr()
        for argv in (["list", "--json"], ["log", folder.name], ["log", "--json", folder.name]):
            assert main(["egress", *argv]) == 0
            words.note(f"egress {' '.join(argv[:-1])}", capsys.readouterr().out.encode())
        words.note("the kernel's log", kernel_log(manager).encode())
        look_inside(words, kernel)
    found = words.places.pop(PLANTED)
    assert found >= {
        *("transcript.jsonl", "egress.jsonl", "egress log", "egress log --json"),
        *("inside: variables", "inside: /tmp", "inside: /mnt"),
        *(("the memory file",) if IS_ROOT else ()),
    }
    look_at_snapshot(words)
    assert words.places == {name: set() for name in keys.values}


def use_and_plant(kernel: Kernel, keys: Keys) -> None:
    """Make a request through each route, and put the planted word where a key must not be."""
    asked = kernel.run(
        """
found = {}
for name in ("env", "file", "keyring"):
    with direct.open(f"http://127.0.0.1:3128/{name}/key", timeout=60) as answer:
        found[name] = [answer.status, answer.read().decode(), answer.headers["X-Got"]]
for path in ("secret", "unframed", "redirect?to=x"):
    get(f"http://127.0.0.1:3128/env/{path}")
"""
    )
    for name, header in HEADERS.items():
        stars = "*" * len(keys.values[name])
        value = header.partition(": ")[2].format(secret=stars)
        assert asked[name] == [200, f"got ['{value}']", None]
    kernel.run(
        f"""
planted = {keys.planted!r}
found = Path("/tmp/planted").write_text(planted)
argv = [sys.executable, "-c", "input()"]
child = subprocess.Popen(argv, stdin=subprocess.PIPE, env={{"PLANTED": planted}})
get(f"http://127.0.0.1:3128/env/{{planted}}")
print(planted)
"""
    )


def look_at_processes(words: Words, kernel: Kernel) -> None:
    """Search how the processes of the sandbox and the worker were started, and the memory of the
    former."""
    worker = EgressWorker.instance().pid
    assert worker is not None
    owners = memory_owners(kernel)
    for pid in (*owners, worker):
        for name in ("cmdline", "environ"):
            words.note(name, Path(f"/proc/{pid}/{name}").read_bytes())
    for pid in owners:
        look_at_memory_file(words, pid)
        with suppress(OSError):  # a part that it has released meanwhile
            look_at_own_memory(words, pid)


def memory_owners(kernel: Kernel) -> list[int]:
    """Return the processes of the sandbox on the host."""
    mark = os.fsencode(kernel.sandbox.log_path.parent.name)
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            argv = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if mark in argv and b"runsc" in argv:
            pids.append(int(entry.name))
    assert pids
    return pids


def look_at_memory_file(words: Words, pid: int) -> None:
    """Search the file that is the memory of all programs in the sandbox."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if "memfd:runsc-memory" not in str(link.readlink()):
                continue
            file = link.open("rb", buffering=0)
        except OSError:
            continue
        with file:
            end = 0
            while True:
                try:
                    start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                except OSError:
                    break
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                look_at_part(words, "the memory file", file.fileno(), start, end)
        return


def look_at_own_memory(words: Words, pid: int) -> None:
    """Search what a process of gVisor has in memory of its own, such as buffers of the link."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        start = end = 0
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            first, *more = line.split()
            if first == "Rss:" and more[0] != "0" and start:
                look_at_part(words, "gVisor's memory", memory.fileno(), start, end)
            elif not first.endswith(":"):
                place, access = first, more[0]
                start, end = (int(part, 16) for part in place.split("-"))
                if not access.startswith("rw-p"):
                    start = 0


def look_at_part(words: Words, place: str, fd: int, start: int, end: int) -> None:
    rest = b""
    while start < end:
        data = os.pread(fd, min(SHARE, end - start), start)
        if not data:
            break
        words.note(place, rest + data)
        rest, start = data[-words.longest :], start + len(data)


def look_at_files(words: Words, folder: Path) -> None:
    """Search the sandbox's state directory."""
    for path in folder.rglob("*"):
        words.note("a name", os.fsencode(path.name))
        if path.is_file() and not path.is_symlink():
            words.note(path.name, path.read_bytes())


def look_inside(words: Words, kernel: Kernel) -> None:
    """Have the kernel search all that it can read. Afterwards it has the words itself."""
    image = [view.target for view in kernel.sandbox.view.mounts if view.target not in LAYOUT]
    # Reversed, because the cell itself is in the transcript.
    turned = [(name, form.decode()[::-1]) for name, form in words.forms]
    found = kernel.run(
        SEARCH
        + f"""
image, turned = {image!r}, {turned!r}
words = [(name, form[::-1].encode()) for name, form in turned]
found = []
for path in everywhere():
    content = read(path, 1 << 26) + os.fsencode(path)
    found += [[name, path] for name, word in words if word in content]
"""
    )
    for name, path in found:
        top = "variables" if path.endswith("/environ") else f"/{path.split('/')[1]}"
        words.places[name].add(f"inside: {top}")


def look_at_snapshot(words: Words) -> None:
    """Make a snapshot of a kernel of the same kernelspec, and search it."""
    assert main(["snapshot", "build", "--kernel", KERNELSPEC]) == 0
    (snapshot,) = Store.open().snapshots()
    inner = snapshot.meta.sandbox_key.encode()
    found = set()
    for path in snapshot.directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            words.note("the snapshot", content)
            found.add(inner in content)
    assert True in found, "the search does not find a known word"
