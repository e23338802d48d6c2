"""The OpenAPI document holds: it is valid, and each answer of a live server is as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from gvisor_kernel.server.handlers import OPENAPI

from ..egress.upstream import Fake, serving
from ..jupyter.helpers import wait_until
from ..jupyter.server import JupyterServer
from .clients import Client, running_server

DOCUMENT: dict[str, Any] = json.loads(OPENAPI.read_text())


@pytest.fixture(scope="module")
def upstream() -> Iterator[Fake]:
    with serving() as fake:
        yield fake


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, upstream: Fake) -> Iterator[JupyterServer]:
    folder = tmp_path_factory.mktemp("contract")
    url = f"http://127.0.0.1:{upstream.port}"
    routes = {"a": {"url": url, "allow_private": True, "artifacts": True}}
    (folder / "n").mkdir()
    (folder / "n/n.ipynb").write_text("{}")
    (folder / "n/old.txt").write_text("old")
    with running_server(folder, f"--GVisorEgress.routes={routes!r}") as server:
        yield server


def make_strict(schema: Any) -> Any:
    """Return a schema that allows no key which it does not name."""
    if isinstance(schema, list):
        return [make_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: make_strict(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict):
        strict.setdefault("additionalProperties", False)
    return strict


class Checked:
    """Asks, and checks each answer against the document. ``asked``: the routes."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.asked: set[tuple[str, str]] = set()

    def ask(self, method: str, route: str, status: int = 200, query: str = "", **more: Any) -> Any:
        kernel, name = more.pop("kernel", ""), more.pop("name", "{name}")
        self.asked.add((method.lower(), route))
        path = route.replace("{kernel_id}", kernel).replace("{name}", name).lstrip("/") + query
        answer = self.client.ask(method, path, **more)
        assert answer.status_code == status, answer.text
        said = DOCUMENT["paths"][route][method.lower()]["responses"][str(status)]
        content = said.get("content", {})
        if not content:
            if status == 204:
                assert not answer.content
            return None
        ((kind, body),) = content.items()
        assert answer.headers["Content-Type"].startswith(kind)
        if kind != "application/json":
            return answer.content
        schema = make_strict({**body.get("schema", {}), "components": DOCUMENT["components"]})
        document = answer.json()
        Draft202012Validator(schema).validate(document)
        return document


@pytest.mark.once
def test_the_document_is_valid() -> None:
    validate(DOCUMENT)


def make_parts(head: dict[str, Any]) -> bytes:
    content = json.dumps(head).encode()
    return len(content).to_bytes(4, "big") + content


def test_answers_are_as_the_document_says(server: JupyterServer, upstream: Fake) -> None:
    checked = Checked(Client(server))
    kernel = server.ask("POST", "kernels", name="gvisor-python", path="n/n.ipynb")["id"]
    of_kernel = "/kernels/{kernel_id}"
    with server.page(kernel) as page:
        code = "open('new.txt', 'w').write('new'); open('old.txt', 'w').write('changed'); 1"
        page.wait_for_reply(page.execute(code))
        page.wait_for_reply(page.execute("open('outputs/a.html', 'w').write('page')"))
        # Jupyter's words, also while the sandbox of an idle kernel is paused.
        running = page.execute("import time; time.sleep(600)")
        wait_until(lambda: checked.client.sandbox(kernel)["state"] == "busy", "the cell")
        server.ask("POST", f"kernels/{kernel}/interrupt")
        page.wait_for_reply(running)
        wait_until(lambda: checked.client.sandbox(kernel)["state"] == "idle", "its end")
    checked.ask("GET", "/sandboxes")
    assert checked.ask("GET", of_kernel, kernel=kernel)["unkept"] is None
    for name in ("log", "transcript"):
        assert checked.ask("GET", f"{of_kernel}/{name}", kernel=kernel)["lines"]
        checked.ask("GET", f"{of_kernel}/{name}", 400, "?lines=x", kernel=kernel)
    assert checked.ask("GET", f"{of_kernel}/unkept", kernel=kernel)["total"] == 2
    changes = f"{of_kernel}/changes"
    listed = checked.ask("GET", changes, kernel=kernel)["changes"]
    state = {change["path"]: change["state"] for change in listed}["new.txt"].replace(" ", "+")
    query = f"?path=new.txt&side=new&state={state}"
    assert checked.ask("GET", f"{changes}/content", query=query, kernel=kernel) == b"new"
    checked.ask(
        "GET", f"{changes}/content", 404, "?path=none&side=new&state=absent+removed", kernel=kernel
    )
    checked.ask("GET", f"{changes}/content", 400, kernel=kernel)
    wanted = [{key: change[key] for key in ("path", "state")} for change in listed]
    body = {"changes": [*wanted, {"path": "none", "state": ""}], "force": True}
    applied = checked.ask("POST", f"{changes}/apply", kernel=kernel, json=body)
    assert (len(applied["applied"]), len(applied["refused"])) == (2, 1)
    undo = {"undo": applied["undo"]}
    checked.ask("POST", f"{changes}/undo", kernel=kernel, json=undo)
    checked.ask("POST", f"{changes}/undo", 409, kernel=kernel, json=undo)
    assert checked.ask("GET", "/outputs", query=f"?kernel_id={kernel}")["files"]
    query = f"?kernel_id={kernel}&path="
    assert checked.ask("GET", "/outputs/content", query=f"{query}a.html") == b"page"
    checked.ask("GET", "/outputs/content", 404, f"{query}none")
    checked.ask("GET", "/outputs/content", 403, "?ticket=x&path=a.html")
    answer = checked.client.ask("GET", f"outputs/content{query}a.html")
    call = {"ticket": answer.headers["Gvisor-Kernel-Ticket"], "key": "k", "value": [1]}
    for do in ("set", "get", "list", "delete"):
        checked.ask("POST", "/storage", json={**call, "do": do})
    checked.ask("POST", "/storage", 409, json={**call, "do": "get"})
    checked.ask("POST", "/storage", 400, json={**call, "do": "none"})
    url = f"http://127.0.0.1:{upstream.port}/x"
    head: dict[str, Any] = {"ticket": call["ticket"], "url": url}
    parts = checked.ask("POST", "/fetch", data=make_parts(head))
    assert b'"route": "a"' in parts
    checked.ask("POST", "/fetch", 404, data=make_parts({**head, "url": "https://b.example/"}))
    checked.ask("POST", "/fetch", 403, data=make_parts({**head, "ticket": "x"}))
    checked.ask("POST", "/fetch", 400, data=b"")
    checked.ask("GET", "/libraries/{name}", 404)
    for status, query in ((400, ""), (404, "?url=https://b.example/")):
        checked.ask("GET", f"{of_kernel}/tiles", status, query, kernel=kernel)
    assert checked.ask("GET", "/trust", query="?path=n")["notebooks"]
    checked.ask("POST", "/doctor")
    body = {"kernel_name": "gvisor-python", "path": "n"}
    checked.ask("POST", "/warm", 202, json=body)
    for status, body in ((204, {"path": "n", "shown": False}), (404, {"path": "n", "shown": True})):
        checked.ask("PUT", "/projects", status, json=body)
    checked.ask("PUT", "/projects", 400, json={"path": "../n", "shown": False})
    assert checked.ask("GET", "/kernelspecs")["kernelspecs"]
    checked.ask("GET", "/openapi.json")
    checked.ask("POST", f"{of_kernel}/hibernate", 204, kernel=kernel)
    assert checked.ask("GET", of_kernel, kernel=kernel)["hibernated"]["size"] > 0
    checked.ask("GET", "/sandboxes")
    branch = checked.ask("POST", f"{of_kernel}/branch", 201, kernel=kernel, json={})["id"]
    checked.ask("POST", f"{of_kernel}/branch", 400, kernel=kernel, json={"name": "a/b"})
    checked.ask("POST", f"{of_kernel}/branch", 404, kernel=kernel, json={"from": "none"})
    checked.ask("POST", f"{of_kernel}/kill", 204, kernel=branch)
    checked.ask("POST", f"{of_kernel}/resume", 204, kernel=kernel)
    for status, to in ((400, 1), (409, "elsewhere"), (409, "local")):
        checked.ask("POST", f"{of_kernel}/move", status, kernel=kernel, json={"to": to})
    states, one = f"{of_kernel}/checkpoints", {"name": "one"}
    assert checked.ask("POST", states, kernel=kernel, json=one) == one
    checked.ask("POST", states, 409, kernel=kernel, json=one)
    checked.ask("POST", states, 400, kernel=kernel, json={"name": "../one"})
    with server.page(kernel) as page:
        page.wait_for_reply(page.execute("open('outputs/b.html', 'w').write('page')"))
    listed = checked.ask("GET", changes, kernel=kernel)["changes"]
    body = {"changes": [{key: change[key] for key in ("path", "state")} for change in listed]}
    undo = checked.ask("POST", f"{changes}/apply", kernel=kernel, json=body | {"force": True})
    listed = checked.ask("GET", states, kernel=kernel)
    (applied,), (state,) = listed["applied"], listed["checkpoints"]
    assert (applied["undo"], applied["count"]) == (undo["undo"], 2)
    later = one | {"time": state["time"] + 1}
    checked.ask("POST", f"{of_kernel}/rewind", 409, kernel=kernel, json=later)
    body = one | {"time": state["time"], "undo": [applied["undo"], "../of another"]}
    told = checked.ask("POST", f"{of_kernel}/rewind", kernel=kernel, json=body)
    assert told["outputs"] == {"added": ["b.html"], "changed": [], "removed": [], "more": False}
    assert (sorted(told["undone"]), told["refused"]) == (["new.txt", "old.txt"], [])
    wrong = ({}, one | {"undo": "x"}, one | {"time": "x"})
    for status, body in ((404, {"name": "two"}), *((400, body) for body in wrong)):
        checked.ask("POST", f"{of_kernel}/rewind", status, kernel=kernel, json=body)
    listed = checked.ask("GET", states, kernel=kernel)
    assert [each["name"] for each in listed["checkpoints"]] == ["one", "before-rewind"]
    assert listed["applied"] == []
    assert listed["disk"] > 0
    for status in (204, 404):
        checked.ask("DELETE", f"{states}/{{name}}", status, kernel=kernel, name="one")
    checked.ask("POST", f"{of_kernel}/stop", 204, kernel=kernel)
    assert checked.ask("GET", of_kernel, kernel=kernel)["unkept"]["total"] == 2
    for name in ("log", "transcript"):
        assert checked.ask("GET", f"{of_kernel}/{name}", kernel=kernel)["lines"]
    checked.ask("POST", f"{of_kernel}/kill", 404, kernel=kernel)
    assert checked.asked == {
        (method, route) for route, methods in DOCUMENT["paths"].items() for method in methods
    }
