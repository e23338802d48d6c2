"""Several people of one server: what each keeps, and whose files and tickets they may use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from .clients import Client, running_server
from .people import HEADER, WITHOUT_CONTENTS

PEOPLE = "tests.server.people"


@dataclass(frozen=True)
class Person:
    """Asks a server in a person's name."""

    client: Client
    name: str

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        headers = {"Authorization": f"token {self.client.server.token}", HEADER: self.name}
        return self.client.ask(method, path, headers=headers, **more)

    def read(self, **query: str) -> requests.Response:
        return self.ask("GET", "outputs/content", params=query)

    def open(self, path: str) -> str:
        """Open a page; return its ticket."""
        answer = self.read(path=path)
        answer.raise_for_status()
        return answer.headers["Gvisor-Kernel-Ticket"]

    def keep(self, ticket: str, do: str, **more: Any) -> requests.Response:
        return self.ask("POST", "storage", json={"ticket": ticket, "do": do, **more})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("people")
    (folder / "sub").mkdir()
    for name in ("page.html", "beside.txt", "sub/other.html"):
        (folder / name).write_text(name)
    with running_server(
        folder,
        f"--ServerApp.identity_provider_class={PEOPLE}.People",
        f"--ServerApp.authorizer_class={PEOPLE}.Rights",
    ) as server:
        yield Client(server)


@pytest.fixture
def ann(client: Client) -> Person:
    return Person(client, "ann")


@pytest.fixture
def bob(client: Client) -> Person:
    return Person(client, "bob")


def test_people_keep_their_own_and_share_what_is_shared(ann: Person, bob: Person) -> None:
    anns, bobs = ann.open("page.html"), bob.open("page.html")
    assert ann.keep(anns, "set", key="own", value="ann's").ok
    assert ann.keep(anns, "set", key="news", value="for all", shared=True).ok
    assert bob.keep(bobs, "list").json()["keys"] == []
    assert bob.keep(bobs, "get", key="own").status_code == 409
    assert bob.keep(bobs, "delete", key="own").json()["deleted"] is False
    assert bob.keep(bobs, "set", key="own", value="bob's").ok
    assert ann.keep(anns, "get", key="own").json()["value"] == "ann's"
    assert bob.keep(bobs, "get", key="own").json()["value"] == "bob's"
    assert bob.keep(bobs, "get", key="news", shared=True).json()["value"] == "for all"
    assert bob.keep(bobs, "get", key="news").status_code == 409
    assert bob.keep(bobs, "delete", key="news", shared=True).json()["deleted"] is True
    assert ann.keep(anns, "list", shared=True).json()["keys"] == []


def test_a_ticket_is_good_for_one_person(ann: Person, bob: Person) -> None:
    ticket = ann.open("page.html")
    assert ann.read(ticket=ticket, path="beside.txt").content == b"beside.txt"
    assert bob.read(ticket=ticket, path="beside.txt").status_code == 403
    assert bob.keep(ticket, "list").status_code == 403


def test_files_of_the_server_need_the_right_to_read_contents(client: Client, ann: Person) -> None:
    eve = Person(client, WITHOUT_CONTENTS)
    assert eve.ask("GET", "sandboxes").ok
    assert eve.read(path="page.html").status_code == 403
    assert eve.read(path="page.html", download="1").status_code == 403
    assert eve.ask("GET", "outputs", params={"path": "page.html"}).status_code == 403
    listed = ann.ask("GET", "outputs", params={"path": "sub/other.html"}).json()
    assert [file["path"] for file in listed["files"]] == ["other.html"]


def test_a_name_does_not_say_its_type(client: Client, ann: Person) -> None:
    folder = client.server.folder / "data:text"
    folder.mkdir()
    name = "html\r\nX-Evil: y,z"
    (folder / name).write_text("x")
    answer = ann.read(ticket=ann.open("page.html"), path=f"data:text/{name}")
    assert answer.content == b"x"
    assert answer.headers["Gvisor-Kernel-Type"] == "application/octet-stream"
    assert "X-Evil" not in answer.headers
