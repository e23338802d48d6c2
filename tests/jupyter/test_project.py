"""``uploads = "project"``: a notebook in a project finds its data, and nothing that is hidden."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.kernelspec import KernelSpec
from traitlets.config import Config

from gvisor_kernel.changes.backups import Backups
from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import StateError
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.jupyter.project_choices import remember
from gvisor_kernel.jupyter.provisioner import GVisorProvisioner

from ..docker.dockerd import needs_dockerd
from ..nodes.sshd import needs_sshd
from ..sweeps import needs_all
from ..world import WAYS
from .helpers import SANDBOXED, Answer, execute, running_kernel, sandbox_of

pytestmark = [
    pytest.mark.skipif(not SANDBOXED, reason="the local kernel has no sandbox"),
    pytest.mark.usefixtures("shared_snapshot"),
]

SECRET = "not for strangers"  # noqa: S105 - a text to look for
HIDDEN = (
    ".git/config",
    ".env",
    "data/.cache/key",
    "notebooks/.ipynb_checkpoints/a.ipynb",
    ".venv/x",
)


def make_project(folder: Path) -> Path:
    """Make a project; return the notebooks' folder in it."""
    for name in HIDDEN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SECRET)
    for name, text in {
        "data/sales.csv": "day,sum\n1,2\n",
        "src/tool.py": "def answer():\n    return 42\n",
        "notebooks/own.txt": "own",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder / "notebooks"


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("work") / "my project")


@pytest.fixture(scope="module", params=["restored", "cold"])
def kernel(
    request: pytest.FixtureRequest, notebooks: Path
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    settings: dict[str, Any] = {"uploads": "project"}
    if request.param == "cold":
        settings["snapshot"] = "off"
    with running_kernel(settings=settings, start={"cwd": str(notebooks)}) as running:
        yield running


def told(answer: Answer) -> str:
    return "".join(
        m["content"]["text"] for m in answer.of_type("stream") if m["content"]["name"] == "stderr"
    )


LOOK = """
import os, json
seen = {}
for top in ("/workspace", "/mnt/user-data/uploads"):
    for folder, folders, files in os.walk(top):
        for name in files:
            path = os.path.join(folder, name)
            seen[path] = open(path, "rb").read().decode("latin-1")
print(json.dumps(seen))
"""


def test_data_and_sources_of_the_project_are_found(
    kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    _, client = kernel
    code = "import sys, os; sys.path.append('../src'); import tool\n"
    code += "print(os.getcwd(), open('../data/sales.csv').read()[:3], tool.answer())"
    answer = execute(client, code)
    assert answer.text == "/workspace/notebooks day 42\n", answer.reply


def test_hidden_files_are_not_seen(kernel: tuple[KernelManager, BlockingKernelClient]) -> None:
    _, client = kernel
    seen = json.loads(execute(client, LOOK).text)
    assert SECRET not in "".join(seen.values())
    assert "/workspace/data/sales.csv" in seen
    assert "/mnt/user-data/uploads/data/sales.csv" in seen


def test_outputs_are_beside_the_notebook(
    kernel: tuple[KernelManager, BlockingKernelClient], notebooks: Path
) -> None:
    manager, client = kernel
    code = "open('outputs/plot.txt', 'w').write('plot'); sorted(os.listdir('/workspace'))"
    answer = execute(client, f"import os; {code}")
    assert (notebooks / "outputs" / "plot.txt").read_text() == "plot"
    assert "outputs" not in answer.result, answer.result
    assert not (notebooks.parent / "outputs").exists()
    path = manager.provisioner.resolve_path("own.txt")
    assert path == str(notebooks / "own.txt")


def test_a_hidden_name_can_be_written_and_stays_in_the_sandbox(
    kernel: tuple[KernelManager, BlockingKernelClient], notebooks: Path
) -> None:
    _, client = kernel
    code = "open('/workspace/.git/config', 'w').write('own')\nprint(open('/workspace/.env').read())"
    answer = execute(client, code)
    assert answer.text == "\n", answer.reply
    assert (notebooks.parent / ".git/config").read_text() == SECRET


def test_a_path_that_is_missed_is_explained_once(notebooks: Path) -> None:
    """Without the setting; and the path of the notebook's folder on this computer leads to it."""
    with running_kernel(start={"cwd": str(notebooks)}) as (_, client):
        first = told(execute(client, "open('../data/sales.csv')"))
        assert "../data/sales.csv is above the folder" in first
        assert 'uploads = "project"' in first
        assert not told(execute(client, "open('../src/tool.py')"))
        # As VS Code does before the first cell.
        code = f'%cd "{notebooks}"\nprint(open("own.txt").read())'
        answer = execute(client, code)
        assert answer.text.splitlines() == ["/workspace", "own"], answer.text
        assert execute(client, f"import os; os.chdir({str(notebooks.parent)!r})").error
        seen = execute(client, "import os; print(dict(os.environ))").text
        assert "my project" not in seen


def test_a_path_of_this_computer_is_explained(
    kernel: tuple[KernelManager, BlockingKernelClient], notebooks: Path
) -> None:
    _, client = kernel
    own = notebooks.parent / "data" / "sales.csv"
    text = told(execute(client, f"open({str(own)!r})"))
    assert "/workspace/data/sales.csv in the sandbox" in text
    answer = execute(client, f"%cd {notebooks.parent}/src")
    assert answer.text == "/workspace/src\n"
    assert execute(client, f"%cd {notebooks}").text == "/workspace/notebooks\n"


def test_changes_are_applied_below_the_project(
    kernel: tuple[KernelManager, BlockingKernelClient],
    notebooks: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manager, client = kernel
    clean = notebooks.parent / "data" / "clean.csv"
    clean.unlink(missing_ok=True)
    assert execute(client, "open('../data/clean.csv', 'w').write('2')").status == "ok"
    name = sandbox_of(manager).directory.name
    assert main(["changes", name, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    paths = [change["path"] for change in listed["changes"]]
    assert "data/clean.csv" in paths
    refused = {change["path"]: change["is_refused"] for change in listed["changes"]}
    assert refused[".git/config"], "an earlier test has written it, and was not shown it"
    assert not [path for path in paths if "outputs" in path], "outputs are kept anyway"
    assert main(["apply", name, "data/clean.csv", "--unseen"]) == 0
    assert clean.read_text() == "2"
    for backup in list(Backups.open().newest_first()):
        backup.remove()


@pytest.mark.parametrize(
    ("configured", "asked", "may"),
    [
        ({}, {}, True),
        ({}, {"uploads": "project"}, True),
        ({"uploads": "."}, {}, False),
        ({}, {"uploads": "data"}, False),
        ({}, {"uploads": None}, False),
    ],
)
def test_a_choice_does_not_stand_against_settings(
    configured: dict[str, Any], asked: dict[str, Any], may: bool
) -> None:
    config = Config({"GVisorProvisioner": configured})
    provisioner = GVisorProvisioner(kernel_id="", config=config, **asked)
    assert provisioner.may_choose_project(provisioner.sandbox_spec()) == may


def test_a_choice_that_cannot_be_kept_leaves_nothing(
    notebooks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (state_root() / "projects.json" / "in the way").mkdir(parents=True)
    before = sorted(path.name for path in state_root().iterdir())
    with pytest.raises(StateError, match=r"The choice cannot be kept in .*projects\.json"):
        remember(notebooks, None)
    assert sorted(path.name for path in state_root().iterdir() if "lock" not in path.name) == [
        name for name in before if "lock" not in name
    ]


def test_a_restart_follows_no_new_choice(
    notebooks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would take the sandbox, and all in it that was not applied, without a question."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    provisioner = GVisorProvisioner(kernel_id="", kernel_spec=KernelSpec())
    shown = []
    for chosen in (None, str(notebooks.parent)):
        remember(notebooks, chosen)
        asyncio.run(provisioner.pre_launch(cwd=str(notebooks)))
        assert provisioner._plan is not None
        shown.append(provisioner._plan.spec.uploads)
    assert shown == [".", "."]


def test_a_server_for_strangers_notebooks_shows_no_folder_above(
    notebooks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither by a kernelspec's setting nor by a choice that was made in another server."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    remember(notebooks, str(notebooks.parent))
    shown = {}
    for closed in (False, True):
        config = Config({"GVisorServer": {"closed": closed}})
        for asked in ({}, {"uploads": "project"}):
            provisioner = GVisorProvisioner(
                kernel_id="", kernel_spec=KernelSpec(), config=config, **asked
            )
            shown[closed, bool(asked)] = provisioner.plan_ahead("k", notebooks).spec.uploads
    assert shown == {(c, a): "." if c else "project" for c in (False, True) for a in (False, True)}


@pytest.mark.parametrize(
    ("server", "more"),
    [
        pytest.param("dockerd", {}, marks=[*needs_dockerd, needs_all]),
        pytest.param("sshd", {}, marks=[*needs_sshd, needs_all]),
        pytest.param("sshd", {"files": "copy"}, marks=[*needs_sshd, needs_all]),
    ],
)
def test_project_is_shown_by_other_runtimes(
    server: str, more: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    request.getfixturevalue(server)
    settings = dict(WAYS[{"dockerd": "docker", "sshd": "ssh"}[server]])
    if more:
        settings["ssh"] = {**settings["ssh"], **more}
    notebooks = make_project(tmp_path / "proj")
    settings |= {"uploads": "project", "snapshot": "off"}
    with running_kernel(settings=settings, start={"cwd": str(notebooks)}) as (_, client):
        seen = json.loads(execute(client, LOOK).text)
        assert SECRET not in "".join(seen.values())
        assert "/workspace/data/sales.csv" in seen
        code = "open('outputs/a', 'w').write('kept'); print(os.getcwd(), open('own.txt').read())"
        assert execute(client, code).text == "/workspace/notebooks own\n"
    assert (notebooks / "outputs" / "a").read_text() == "kept"
