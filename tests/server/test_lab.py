"""``gvisor-kernel lab``, attacked with all that script in its page has: its token and its routes.

``GK_TEST_OPEN_LAB`` runs the attacks against an ordinary server instead: they must succeed there.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from websocket import WebSocketBadStatusException, create_connection

from gvisor_kernel.runtimes.state.records import find_sandboxes

from ..jupyter.helpers import SECONDS, wait_until
from ..jupyter.server import Lab
from ..world import DEFAULT_KERNEL

LOCAL = {
    "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "local",
    "language": "python",
}
OURS = {**LOCAL, "metadata": {"kernel_provisioner": {"provisioner_name": "gvisor-provisioner"}}}
PLANTED = "what only the host has"
NOTEBOOK: dict[str, Any] = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "cells": [],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
}


def plant(above: Path) -> Path:
    """Make a folder with what a stranger, or a kernel, may have put into it."""
    folder = above / "folder"
    for name in (".git/hooks", "outputs/.ipynb_checkpoints", "package", ".hidden", "moved"):
        (folder / name).mkdir(parents=True)
    (above / "outside").mkdir()
    (above / "outside/secret.txt").write_text(PLANTED)
    for name in (".git/config", ".bashrc", "note.txt", "outputs/note.txt", "package/__init__.py"):
        (folder / name).write_text("# a note")
    (folder / ".bashrc").write_text(PLANTED)
    (above / "outside/other.txt").write_text("another name")
    (folder / "moved/other.txt").hardlink_to(above / "outside/other.txt")
    (folder / "moved/link").symlink_to(above / "outside/secret.txt")
    (folder / "link.txt").symlink_to(above / "outside/secret.txt")
    (folder / "outputs/folder").symlink_to(above / "outside")
    (folder / "outputs/git").symlink_to("../.git")
    (folder / "outputs/.ipynb_checkpoints").rmdir()
    (folder / "outputs/.ipynb_checkpoints").symlink_to(above / "outside")
    (folder / "outputs/.~note.txt").symlink_to(above / "outside/secret.txt")
    (folder / "outputs/a.desktop").write_text("[Desktop Entry]")
    (folder / "page.html").write_text("<script>parent.document</script>")
    (folder / "stranger.ipynb").write_text(json.dumps(NOTEBOOK))
    (folder / "jupyter_server_config.py").write_text(f"open({str(above / 'ran')!r}, 'w')")
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = plant(tmp_path_factory.mktemp("lab"))
    config = Path(os.environ["JUPYTER_CONFIG_DIR"], "jupyter_server_config.py")
    config.write_text(
        "c.ServerApp.terminals_enabled = True\nc.ServerApp.allow_origin = '*'\n"
        "c.ContentsManager.allow_hidden = True\nc.IdentityProvider.token = ''\n"
        "c.GVisorProvisioner.memory_limit = '300M'\n"
    )
    specs = Path(os.environ["JUPYTER_DATA_DIR"], "kernels")
    (specs / "local").mkdir()
    (specs / "local/kernel.json").write_text(json.dumps(LOCAL))
    server = Lab(folder, extensions=("jupyterlab", "jupyter_server_terminals", "jupyter_lsp"))
    try:
        server.start()
        for name, spec in (("later", LOCAL), ("later-ours", OURS)):
            (specs / name).mkdir()
            (specs / name / "kernel.json").write_text(json.dumps(spec))
        yield server
    finally:
        server.stop()
        config.unlink()
        for name in ("local", "later", "later-ours"):
            shutil.rmtree(specs / name, ignore_errors=True)
    assert not (folder.parent / "ran").exists()
    assert not list(Path(os.environ["JUPYTER_RUNTIME_DIR"]).glob("gvisor-*")), "left behind"


def text(content: str = "x") -> dict[str, Any]:
    return {"type": "file", "format": "text", "content": content}


def session(**kernel: str) -> dict[str, Any]:
    return {"path": "stranger.ipynb", "type": "notebook", "name": "", "kernel": kernel}


CONTENTS = "api/contents/"
REFUSED: dict[str, tuple[str, str, Any]] = {
    "terminal": ("POST", "api/terminals", {}),
    "terminals": ("GET", "api/terminals", None),
    "kernel python3": ("POST", "api/kernels", {"name": "python3"}),
    "kernel of another provisioner": ("POST", "api/kernels", {"name": "local"}),
    "kernel in capitals": ("POST", "api/kernels", {"name": "LOCAL"}),
    "kernel by path": ("POST", "api/kernels", {"name": "../kernels/local"}),
    "kernel written later": ("POST", "api/kernels", {"name": "later"}),
    "sandbox written later": ("POST", "api/kernels", {"name": "later-ours"}),
    "kernel with a path as its id": ("POST", "api/kernels", {"kernel_id": "x/../../y"}),
    "sandbox out of the folder": ("POST", "api/kernels", {"path": "../outside"}),
    "sandbox in a hidden folder": ("POST", "api/kernels", {"path": ".git/hooks"}),
    "sandbox behind a link": ("POST", "api/kernels", {"path": "outputs/folder"}),
    "session python3": ("POST", "api/sessions", session(name="python3")),
    "session local": ("POST", "api/sessions", session(name="local")),
    "session out of the folder": (
        *("POST", "api/sessions"),
        {**session(name=DEFAULT_KERNEL), "path": "../outside/x.ipynb"},
    ),
    "read hidden": ("GET", f"{CONTENTS}.bashrc", None),
    "read git": ("GET", f"{CONTENTS}.git/config", None),
    "read above": ("GET", f"{CONTENTS}..%2Foutside%2Fsecret.txt", None),
    "read link": ("GET", f"{CONTENTS}link.txt", None),
    "read link as a notebook": ("GET", f"{CONTENTS}link.txt?type=notebook", None),
    "list behind link": ("GET", f"{CONTENTS}outputs/folder", None),
    "read behind link": ("GET", f"{CONTENTS}outputs/folder/secret.txt", None),
    "read hidden behind link": ("GET", f"{CONTENTS}outputs/git/config", None),
    "write hidden": ("PUT", f"{CONTENTS}.bashrc", text()),
    "write hidden in chunks": ("PUT", f"{CONTENTS}.bashrc", {**text(), "chunk": 1}),
    "write hook": ("PUT", f"{CONTENTS}.git/hooks/pre-commit", text()),
    "write above": ("PUT", f"{CONTENTS}..%2Foutside%2Fsecret.txt", text()),
    "write link": ("PUT", f"{CONTENTS}link.txt", text()),
    "write link in chunks": ("PUT", f"{CONTENTS}link.txt", {**text(), "chunk": -1}),
    "write behind link": ("PUT", f"{CONTENTS}outputs/folder/new.txt", text()),
    "write what pytest runs": ("PUT", f"{CONTENTS}conftest.py", text()),
    "write what Python runs": ("PUT", f"{CONTENTS}env/lib/x.pth", text()),
    "write what a desktop runs": ("PUT", f"{CONTENTS}x.desktop", text()),
    "make a folder of a module": ("PUT", f"{CONTENTS}numpy", {"type": "directory"}),
    "new file of a type": ("POST", CONTENTS, {"type": "file", "ext": ".desktop"}),
    "new file above": ("POST", CONTENTS, {"type": "file", "ext": "/../../outside/x"}),
    "rename to hidden": ("PATCH", f"{CONTENTS}note.txt", {"path": ".profile"}),
    "rename to what runs": ("PATCH", f"{CONTENTS}note.txt", {"path": "conftest.py"}),
    "rename to a module": ("PATCH", f"{CONTENTS}package", {"path": "numpy"}),
    "rename above": ("PATCH", f"{CONTENTS}note.txt", {"path": "../outside/note.txt"}),
    "rename hidden": ("PATCH", f"{CONTENTS}.git", {"path": "git"}),
    "rename from behind link": (
        *("PATCH", f"{CONTENTS}outputs/folder/secret.txt"),
        {"path": "secret.txt"},
    ),
    "copy hidden": ("POST", CONTENTS, {"copy_from": ".git/config"}),
    "copy from behind link": ("POST", CONTENTS, {"copy_from": "outputs/folder/secret.txt"}),
    "copy a folder with a link": ("POST", CONTENTS, {"copy_from": "moved"}),
    "copy into hidden": ("POST", f"{CONTENTS}.hidden", {"copy_from": "note.txt"}),
    "delete hidden": ("DELETE", f"{CONTENTS}.hidden", None),
    "delete the folder": ("DELETE", f"{CONTENTS}%2e", None),
    "delete the folder by another name": ("DELETE", f"{CONTENTS}outputs%2f..", None),
    "delete behind link": ("DELETE", f"{CONTENTS}outputs/folder/secret.txt", None),
    "checkpoint of hidden": ("POST", f"{CONTENTS}.bashrc/checkpoints", {}),
    "file hidden": ("GET", "files/.bashrc", None),
    "file link": ("GET", "files/link.txt", None),
    "file behind link": ("GET", "files/outputs/folder/secret.txt", None),
    "file above": ("GET", "files/..%2Foutside%2Fsecret.txt", None),
    "view hidden": ("GET", "view/.bashrc", None),
    "convert": ("GET", "nbconvert/html/stranger.ipynb", None),
    "convert by LaTeX": ("GET", "nbconvert/latex/stranger.ipynb", None),
    "convert what is sent": (
        *("POST", "nbconvert/python"),
        {"content": NOTEBOOK, "type": "notebook", "name": "x"},
    ),
    "exporters": ("GET", "api/nbconvert", None),
    "write configuration": ("PUT", "api/config/notebook", {"x": 1}),
    "change configuration": ("PATCH", "api/config/notebook", {"x": 1}),
    "disable an extension": (
        *("POST", "lab/api/extensions"),
        {"cmd": "disable", "extension_name": "gvisor-kernel"},
    ),
    "install an extension": (
        *("POST", "lab/api/extensions"),
        {"cmd": "install", "extension_name": "nothing"},
    ),
    "disable a plugin": (
        *("POST", "lab/api/plugins"),
        {"cmd": "disable", "plugin_name": "gvisor-kernel:status"},
    ),
    "build": ("POST", "lab/api/build", {}),
    "language server": ("GET", "lsp/status", None),
    "proxy": ("GET", "proxy/80/", None),
    "licenses, which never answered a wrong request": ("GET", "lab/api/licenses/?format=x", None),
    "route of nobody": ("GET", "lab/api/unknown", None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_script_in_the_page_is_refused(lab: Lab, name: str) -> None:
    method, path, body = REFUSED[name]
    answer = lab.send(method, path, body)
    assert answer.status_code >= 400, answer.text[:300]
    assert PLANTED not in answer.text


def test_nothing_was_changed(lab: Lab) -> None:
    """After the attacks above, and writes that a link beside the file would lead elsewhere."""
    for name in ("a.desktop", "note.txt"):
        lab.send("POST", f"{CONTENTS}outputs/{name}/checkpoints", {})
    assert lab.send("PUT", f"{CONTENTS}outputs/note.txt", text("new")).ok
    outside = lab.folder.parent / "outside"
    assert {file.name for file in outside.iterdir()} == {"other.txt", "secret.txt"}
    assert (outside / "secret.txt").read_text() == PLANTED
    assert (lab.folder / "outputs/note.txt").read_text() == "new"
    assert (lab.folder / ".bashrc").read_text() == PLANTED
    assert not (lab.folder / ".git/hooks/pre-commit").exists()
    assert not list(Path(os.environ["JUPYTER_CONFIG_DIR"]).glob("**/notebook.json"))
    shown = {entry["name"] for entry in lab.send("GET", f"{CONTENTS}").json()["content"]}
    assert shown >= {"note.txt", "outputs", "package", "stranger.ipynb"}
    assert not shown & {"link.txt", ".git", ".bashrc", "conftest.py"}


def test_kernels_are_sandboxes_alone_also_after_a_change(lab: Lab) -> None:
    found = lab.send("GET", "api/kernelspecs").json()
    assert found["default"] == DEFAULT_KERNEL
    for name, entry in found["kernelspecs"].items():
        provisioner = entry["spec"]["metadata"]["kernel_provisioner"]["provisioner_name"]
        assert provisioner == "gvisor-provisioner", name
    made = lab.send("POST", "api/sessions", {**session(), "path": "a.ipynb"}).json()
    for name in ("python3", "local", "later"):
        change = {"kernel": {"name": name, "id": None}}
        assert lab.send("PATCH", f"api/sessions/{made['id']}", change).status_code == 501
    with lab.page(made["kernel"]["id"]) as page:
        page.execute("import json; i = json.load(open('/container_info.json'))['limits']; print(i)")
        page.wait_for_text(f"'memory_bytes': {300 << 20}")  # this user's own setting holds
    assert lab.send("DELETE", f"api/sessions/{made['id']}").status_code == 204


def test_changes_of_a_kernel_are_applied_but_for_files_that_run_by_themselves(lab: Lab) -> None:
    kernel = lab.send("POST", "api/kernels", {}).json()["id"]
    paths = (".git/hooks/pre-commit", "conftest.py", "numpy/__init__.py", "plain.txt")
    code = f"""
import pathlib
for path in map(pathlib.Path, {paths}):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("applied")
print("written")
"""
    with lab.page(kernel) as page:
        page.execute(code)
        page.wait_for_text("written")
    api = f"gvisor-kernel/api/kernels/{kernel}/changes"
    states = {change["path"]: change["state"] for change in lab.send("GET", api).json()["changes"]}
    for path in (*paths, "numpy"):
        wanted = [{"path": path, "state": states[path]}]
        body = {"changes": wanted, "named": [path], "force": True}
        answer = lab.send("POST", f"{api}/apply", body)
        assert answer.status_code == (200 if path == "plain.txt" else 403), answer.text
        assert (lab.folder / path).exists() == (path == "plain.txt")
    assert lab.send("DELETE", f"api/kernels/{kernel}").status_code == 204


def test_files_are_read_written_and_moved(lab: Lab) -> None:
    """What is left works: with other people's rights to a file, in parts, as a notebook."""
    data = bytes(range(256)) * 40
    parts = [base64.b64encode(data[:5000]).decode(), base64.b64encode(data[5000:]).decode()]
    for chunk, part in zip((1, -1), parts, strict=True):
        body = {"type": "file", "format": "base64", "content": part, "chunk": chunk}
        assert lab.send("PUT", f"{CONTENTS}large.bin", body).ok
    assert (lab.folder / "large.bin").read_bytes() == data
    assert lab.send("GET", "files/large.bin").content == data
    (lab.folder / "script.py").write_text("a = 1")
    (lab.folder / "script.py").chmod(0o740)
    assert lab.send("PUT", f"{CONTENTS}script.py", text("a = 2")).ok
    assert lab.send("PATCH", f"{CONTENTS}script.py", {"path": "outputs/b.py"}).ok
    assert (lab.folder / "outputs/b.py").read_text() == "a = 2"
    assert (lab.folder / "outputs/b.py").stat().st_mode & 0o777 == 0o740
    assert lab.send("PUT", f"{CONTENTS}new", {"type": "directory"}).ok
    assert lab.send("PATCH", f"{CONTENTS}new", {"path": "newer"}).ok
    assert lab.send("PATCH", f"{CONTENTS}newer", {"path": "outputs"}).status_code == 409
    assert lab.send("POST", f"{CONTENTS}newer", {"copy_from": "note.txt"}).ok
    body = {"type": "notebook", "format": "json", "content": NOTEBOOK}
    for _ in range(2):
        assert lab.send("PUT", f"{CONTENTS}own.ipynb", body).ok
    checkpoints = f"{CONTENTS}own.ipynb/checkpoints"
    assert lab.send("POST", f"{checkpoints}/checkpoint", {}).status_code == 204
    assert lab.send("GET", f"{CONTENTS}own.ipynb").json()["type"] == "notebook"
    assert not list(lab.folder.glob(".~*"))


@pytest.mark.parametrize("odd", [5, ["a"], {"a": 1}, True])
def test_a_field_that_is_no_text_is_refused(lab: Lab, odd: Any) -> None:
    """Each was an error of the server, with a traceback in its log."""
    written = {"type": "file", "format": "text", "content": "a"}
    for field in ("path", "name", "type", "format"):
        assert lab.send("PUT", f"{CONTENTS}odd.txt", written | {field: odd}).status_code == 400
    for field in ("ext", "type", "copy_from"):
        assert lab.send("POST", CONTENTS, {field: odd}).status_code == 400
    for body in ({"path": odd}, {"path": None}, [odd]):
        assert lab.send("PATCH", f"{CONTENTS}note.txt", body).status_code == 400
    assert lab.send("PUT", f"{CONTENTS}odd.txt", written).ok
    assert lab.send("DELETE", f"{CONTENTS}odd.txt").ok


@pytest.mark.parametrize("content", [{}, [], None, "a", {"nbformat": 4}, {**NOTEBOOK, "cells": 5}])
def test_what_is_no_notebook_is_refused(lab: Lab, content: Any) -> None:
    body = {"type": "notebook", "format": "json", "content": content}
    assert lab.send("PUT", f"{CONTENTS}no.ipynb", body).status_code == 400
    assert not (lab.folder / "no.ipynb").exists()


@pytest.mark.parametrize("chunk", ["a", {}, 2, -1])
def test_a_part_without_a_first_one_is_refused(lab: Lab, chunk: Any) -> None:
    answer = lab.send("PUT", f"{CONTENTS}parts.bin", {**text(), "chunk": chunk})
    assert answer.status_code == 400
    assert not (lab.folder / "parts.bin").exists()


def test_no_signature_and_no_setting_outlives_the_server(lab: Lab) -> None:
    """Another server of this user would believe them."""
    assert lab.send("POST", f"{CONTENTS}stranger.ipynb/trust", {}).status_code == 201
    assert not list(Path(os.environ["JUPYTER_DATA_DIR"]).glob("nb*"))
    plugin = "lab/api/settings/@jupyterlab/htmlviewer-extension:plugin"
    assert lab.send("PUT", plugin, {"raw": '{"trustByDefault": true}'}).status_code == 204
    assert lab.send("PUT", "lab/api/workspaces/x", {"data": {}, "metadata": {"id": "x"}}).ok
    assert not (Path(os.environ["JUPYTER_CONFIG_DIR"]) / "lab").exists()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("", "nope", "api/terminals", "%ff", "/x", "files/nope")),
        ("GET", "api/kernels/00000000-0000-0000-0000-000000000000/channels"),
        *(("POST", path) for path in ("", "lab", "api", "favicon.ico", "nope", "files/note.txt")),
        *(("HEAD", ""), ("OPTIONS", ""), ("FOO", "lab"), ("GET", "lab"), ("GET", "api/contents")),
    ],
)
def test_no_answer_is_a_document_without_a_policy(lab: Lab, method: str, path: str) -> None:
    """Script in the page could connect by a frame of it, which has the page's origin."""
    for headers in ({}, {"Authorization": ""}):  # without a token, tornado's own errors
        answer = lab.send(method, path, headers=headers, allow_redirects=False)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy or "default-src 'none'" in policy, policy
        assert "Connection-Allowlist" in answer.headers or "sandbox" in policy


def test_other_sites_and_other_names_of_this_machine_are_refused(lab: Lab) -> None:
    evil = {"Host": "evil.example"}
    assert lab.send("GET", "api/contents", headers=evil).status_code == 403  # DNS rebinding
    assert requests.get(f"{lab.url}/api/contents", timeout=SECONDS).status_code == 403
    browser = requests.Session()
    page = browser.get(f"{lab.url}/lab?token={lab.token}", timeout=SECONDS)
    assert "frame-ancestors 'self'" in page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert browser.get(f"{lab.url}/api/contents", timeout=SECONDS).ok
    assert browser.post(f"{lab.url}/api/kernels", timeout=SECONDS).status_code == 403  # no XSRF
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    url = f"{lab.url.replace('http', 'ws')}/api/events/subscribe"
    for origin in ("http://evil.example", "null"):
        with pytest.raises(WebSocketBadStatusException, match="403"):
            create_connection(url, origin=origin, cookie=cookies, timeout=SECONDS)
    html = lab.send("GET", "files/page.html")
    assert "sandbox allow-scripts" in html.headers["Content-Security-Policy"]


def test_a_hard_link_to_a_file_elsewhere_is_named_at_the_start(lab: Lab) -> None:
    """It is a file of the folder like any other, so the server shows what is elsewhere."""
    shown = lab.send("GET", f"{CONTENTS}moved/other.txt")
    assert shown.json()["content"] == "another name"
    said = "".join(lab.log)
    assert f"gvisor-kernel: {lab.folder}/moved/other.txt is shown, and has another name" in said
    assert "put a copy in its place" in said


def test_token_is_its_own_and_nobody_elses_to_read(lab: Lab) -> None:
    assert lab.process is not None
    assert re.fullmatch(r"[0-9a-f]{32,}", lab.token)
    argv = Path(f"/proc/{lab.process.pid}/cmdline").read_bytes()
    assert lab.token.encode() not in argv
    (private,) = Path(os.environ["JUPYTER_RUNTIME_DIR"]).glob("gvisor-lab-*")
    assert private.stat().st_mode & 0o777 == 0o700
    answer = lab.send("POST", f"login?token={lab.token}&new_password=x")
    assert answer.status_code >= 400 or lab.send("GET", "api/contents").ok
    assert not list(Path(os.environ["JUPYTER_CONFIG_DIR"]).glob("jupyter_server_config.json"))


@pytest.mark.parametrize("way", ["SIGTERM", "SIGHUP", "shutdown"])
def test_end_leaves_nothing(tmp_path: Path, way: str) -> None:
    runtime = Path(os.environ["JUPYTER_RUNTIME_DIR"])
    before = set(runtime.iterdir())
    server = Lab(tmp_path, extensions=())
    try:
        server.start()
        kernel = server.send("POST", "api/kernels", {}).json()
        assert server.send("GET", "gvisor-kernel/api/sandboxes").json()["sandboxes"]
        process = server.process
        assert process is not None
        if way == "shutdown":
            assert server.send("POST", "api/shutdown", {}).ok
        else:
            process.send_signal(getattr(signal, way))
        wait_until(lambda: process.poll() is not None, "the server to end")
        assert process.returncode == 0, "".join(server.log[-20:])
    finally:
        server.stop()
    assert set(runtime.iterdir()) == before
    assert kernel["id"] not in {record.kernel_id for _, record in find_sandboxes()}
