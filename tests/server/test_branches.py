"""Branches of a Jupyter server's kernels: by REST and by the command line."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from gvisor_kernel.cli.main import main

from .clients import Client
from .test_hibernation import find_listed, is_asleep, run, serving, start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "n").mkdir()
    return tmp_path


def test_a_branch_is_a_kernel_of_the_server(folder: Path, tmp_path: Path) -> None:
    sessions = tmp_path / "sessions"
    with serving(folder, f"--SessionManager.database_filepath={sessions}") as server:
        client, kernel = Client(server), start(server)["kernel"]["id"]
        with server.page(kernel) as page:
            assert run(page, "x = 5; print(x)") == "5\n"
            body = {"name": "try", "path": "n/a-try.ipynb"}
            answer = client.ask("POST", f"kernels/{kernel}/branch", json=body)
            assert answer.status_code == 201
            made = answer.json()
            assert (made["name"], made["branch"]) == ("gvisor-python", "try")
            branch = made["id"]
            assert client.ask("GET", f"kernels/{branch}/unkept").status_code == 204
            assert is_asleep(client, branch)
            assert not is_asleep(client, kernel)
            models = {one["id"]: one for one in server.ask("GET", "kernels")}
            assert models[branch]["execution_state"] == "idle"
            session = server.ask("GET", f"sessions/{made['session']}")
            assert (session["path"], session["kernel"]["id"]) == (body["path"], branch)
            with server.page(branch) as other:
                assert run(other, "x += 1; print(x)") == "6\n"
            assert run(page, "print(x)") == "5\n"
            assert not is_asleep(client, branch)
            assert client.sandbox(branch)["folder"] == client.sandbox(kernel)["folder"]
            assert (folder / "n/outputs/branches/try").is_dir()
            for wrong, status in (
                ({"name": "../x"}, 400),
                ({"path": 3}, 400),
                ({"path": body["path"]}, 409),
                ({"name": "try"}, 409),
            ):
                refused = client.ask("POST", f"kernels/{kernel}/branch", json=wrong)
                assert refused.status_code == status, refused.text
            assert client.ask("POST", "kernels/none/branch", json={}).status_code == 404
            with sqlite3.connect(sessions) as database:
                database.execute(
                    "CREATE TRIGGER full BEFORE INSERT ON session"
                    " BEGIN SELECT RAISE(ABORT, 'full'); END"
                )
            body = {"path": "n/b.ipynb"}
            assert client.ask("POST", f"kernels/{kernel}/branch", json=body).status_code == 500
            assert len(list((folder / "n/outputs/branches").iterdir())) == 1
            assert len(server.ask("GET", "kernels")) == 2
        server.ask("DELETE", f"sessions/{made['session']}")
        assert not find_listed(branch)
        server.ask("DELETE", f"kernels/{kernel}")


def test_the_command_starts_branches_in_the_server(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(folder) as server:
        client, kernel = Client(server), start(server)["kernel"]["id"]
        with server.page(kernel) as page:
            run(page, "x = 5; print()")
        sandbox = client.sandbox(kernel)["id"]
        assert main(["checkpoint", sandbox, "five"]) == 0
        with server.page(kernel) as page:
            run(page, "x = 6; print()")
        capsys.readouterr()
        assert main(["branch", sandbox, "-n", "2", "--name", "b", "--from", "five"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1:3] for line in lines] == [["branch", "b-1"], ["branch", "b-2"]]
        made = [line.split()[0] for line in lines]
        assert {one["id"] for one in server.ask("GET", "kernels")} == {kernel, *made}
        with server.page(made[0]) as page:
            assert run(page, "print(x)") == "5\n"
        # A branch that sleeps can be branched, and ends without having gone on.
        asleep = client.ask("POST", f"kernels/{made[1]}/branch", json={}).json()["id"]
        assert is_asleep(client, made[1])
        for one in (made[1], asleep):
            server.ask("DELETE", f"kernels/{one}")
            assert not find_listed(one)
        assert main(["branch", sandbox, "--name", "a/b"]) == 1
        assert "name of a branch" in capsys.readouterr().err
        for one in (kernel, made[0]):
            server.ask("DELETE", f"kernels/{one}")
    assert not (folder / "n/outputs").exists()


def test_a_branch_that_never_went_on_comes_back(folder: Path) -> None:
    with serving(folder) as server:
        client, kernel = Client(server), start(server)["kernel"]["id"]
        with server.page(kernel) as page:
            run(page, "x = 5; print()")
        branch = client.ask("POST", f"kernels/{kernel}/branch", json={}).json()["id"]
        assert is_asleep(client, branch)
    with serving(folder) as server:
        assert {one["id"] for one in server.ask("GET", "kernels")} == {kernel, branch}
        with server.page(branch) as page:
            assert run(page, "print(x)") == "5\n"
        for one in (kernel, branch):
            server.ask("DELETE", f"kernels/{one}")
