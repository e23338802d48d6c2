"""The module gvisor_sandbox of a kernel: it shows files of the outputs, and keeps data as pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.artifacts.item import Artifact
from gvisor_kernel.artifacts.storage import open_personal, open_shared
from gvisor_kernel.kernel.kept_data import OWNER

from ..sweeps import ALL
from ..world import WAYS
from .helpers import SANDBOXED, every_runtime, execute, running_kernel

pytestmark = [
    pytest.mark.skipif(not SANDBOXED, reason="the local kernel has no such module"),
    every_runtime,
]
PICTURE = b"\x89PNG\r\n\x1a\n1"
PREPARE = f"""
import os
from pathlib import Path
from gvisor_sandbox import OutputsError, StorageError, show, storage
out = Path("/mnt/user-data/outputs")
(out / "a [b].html").write_text("<p>")
(out / "plot.png").write_bytes({PICTURE!r})
(out / "link.html").symlink_to("a [b].html")
page = storage.page("sub/page.html")
def fails(function, *arguments):
    try:
        function(*arguments)
    except (OutputsError, StorageError, KeyError) as error:
        return str(error)
"""


class Running(NamedTuple):
    manager: KernelManager
    client: BlockingKernelClient
    outputs: Path

    def ask(self, expression: str) -> Any:
        """Return the value of an expression in the kernel."""
        answer = execute(self.client, f"import json; print(json.dumps({expression}))")
        assert answer.status == "ok", answer.reply["content"]
        return json.loads(answer.text)


@pytest.fixture(scope="module")
def kernel(way: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if way == "docker" and not ALL:
        pytest.skip("takes long: run scripts/test --all")
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "outputs").mkdir()
    with running_kernel(settings=WAYS[way], start={"cwd": str(folder)}) as (manager, client):
        assert execute(client, PREPARE).status == "ok"
        yield Running(manager, client, folder / "outputs")


def test_a_file_is_shown_with_what_other_programs_show(kernel: Running, way: str) -> None:
    for path in ("'a [b].html'", "Path('outputs/a [b].html')", "str(out / 'a [b].html')"):
        answer = execute(kernel.client, f"show({path})")
        (shown,) = [m["content"] for m in answer.outputs if m["msg_type"] == "display_data"]
        data = shown["data"]
        assert data["application/vnd.gvisor-kernel.output+json"] == {"path": "a [b].html"}
        assert data["text/plain"].endswith("outputs/a [b].html (3 bytes)")
        if way != "docker":  # there a volume is shown, and the folder gets it at the end
            link = r"[a \[b\]\.html](outputs/a%20%5Bb%5D.html) (3 bytes)"
            assert data["text/markdown"] == link
    answer = execute(kernel.client, "show('plot.png')")
    (shown,) = [m["content"] for m in answer.outputs if m["msg_type"] == "display_data"]
    assert "image/png" in shown["data"]
    assert "text/markdown" not in shown["data"]  # nbconvert would prefer it to the picture


def test_what_is_no_file_of_the_outputs_is_an_error(kernel: Running) -> None:
    for path in ("/etc/passwd", "../secret", ".", "", "/workspace/x"):
        assert "is no file in the outputs" in kernel.ask(f"fails(show, {path!r})")
    assert "No such file" in kernel.ask("fails(show, 'missing.html')")
    assert "is a link" in kernel.ask("fails(show, 'link.html')")
    assert "is no file in the outputs" in kernel.ask("fails(storage.page, '/etc/passwd')")


def test_a_page_and_its_kernel_keep_the_same_data(kernel: Running) -> None:
    artifact = Artifact.of_page(kernel.outputs, "sub/page.html")
    open_personal().set(OWNER, artifact, "of-page", {"a": ["ä", 1]})
    assert kernel.ask("page.get('of-page')") == {"a": ["ä", 1]}
    assert kernel.ask("page.set('of-kernel', 'text')") is None
    found = open_personal().get(OWNER, artifact, "of-kernel")
    assert found is not None
    assert found.value == "text"
    assert kernel.ask("page.list('of-')") == ["of-kernel", "of-page"]
    assert kernel.ask("[page.delete('of-page'), page.delete('of-page')]") == [True, False]
    assert kernel.ask("fails(page.get, 'of-page')") == "'of-page'"
    assert kernel.ask("page.get('of-page', default=7)") == 7
    assert kernel.ask("page.set('news', 1, shared=True)") is None
    assert open_shared(None).list_keys("", artifact) == ["news"]


def test_notebooks_keep_data_apart_from_pages_and_over_a_restart(kernel: Running) -> None:
    assert kernel.ask("storage.set('mine', 3)") is None
    assert "mine" not in kernel.ask("page.list()")
    notebooks = Artifact.of_notebooks(kernel.outputs)
    assert open_personal().list_keys(OWNER, notebooks) == ["mine"]
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=60)
    assert execute(kernel.client, PREPARE.replace("symlink_to", "exists() or str")).status == "ok"
    assert kernel.ask("storage.get('mine')") == 3


def test_limits_are_told(kernel: Running) -> None:
    assert kernel.ask("page.set('big', 'x' * (5 * 2**20 - 1))") is None
    assert kernel.ask("len(page.get('big'))") == 5 * 2**20 - 1
    assert "below 5 MiB" in kernel.ask("fails(page.set, 'big', 'x' * 5 * 2**20)")
    assert "199 or fewer" in kernel.ask("fails(page.set, 'x' * 200, 1)")
    assert "no whitespace" in kernel.ask("fails(page.set, 'a b', 1)")
    assert "text or JSON" in kernel.ask("fails(page.set, 'a', {1, 2})")


ATTACK = r"""
import json, socket, struct, threading
import gvisor_sandbox
def raw(data, read=True):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(30)
        s.connect(gvisor_sandbox.ADDRESS)
        try:
            s.sendall(data)
            return s.recv(1 << 16) if read else b""
        except OSError:
            return b""
def packed(data):
    return struct.pack(">I", len(data)) + data
def asked(head, value=b""):
    head = json.dumps(head).encode()
    return raw(packed(struct.pack(">I", len(head)) + head + value))[8:].decode()
base = {"do": "set", "key": "k", "shared": False, "page": "x.html"}
heads = [
    {**base, "page": "../x"}, {**base, "page": "/etc/passwd"}, {**base, "page": "a/../../x"},
    {**base, "page": 7}, {**base, "page": "x\0"}, {**base, "shared": "no"}, {**base, "do": "drop"},
    {**base, "key": ["k"]}, {**base, "page": "y" * 2000}, {},
]
errors = [asked(head, b"1") for head in heads] + [asked(base, b"{"), asked(base, b"[" * 9000)]
for data in (b"", b"\0"):  # the guest gives them up after some seconds; nobody waits for them
    threading.Thread(target=raw, args=(data,), daemon=True).start()
for data in (b"\xff" * 4, packed(b""), packed(b"\xff" * 9), packed(b"x" * 5_500_000)):
    raw(data)
for _ in range(100):
    raw(struct.pack(">I", 1000) + b"x", read=False)
"""


def test_raw_questions_are_judged_on_the_host(kernel: Running) -> None:
    before = open_personal().usages()
    answer = execute(kernel.client, ATTACK)
    assert answer.status == "ok", answer.reply["content"]
    assert all('"error"' in error for error in kernel.ask("errors"))
    assert open_personal().usages() == before
    assert kernel.ask("page.set('after', 1)") is None
