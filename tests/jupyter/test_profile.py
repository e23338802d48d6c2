"""The setting ``profile``: a person's own IPython profile and matplotlibrc, as copies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gvisor_kernel.config.jupyter_config import SandboxSettings
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import SettingError
from gvisor_kernel.jupyter.plan_factory import make_plan
from gvisor_kernel.kernel.client import private_connection_info
from gvisor_kernel.kernel.restore import find_kernel_facts, find_obstacle
from gvisor_kernel.runtimes.mounts import profile
from gvisor_kernel.runtimes.mounts.profile import read_profile

from ..world import DEFAULT_KERNEL, PROJECT
from .helpers import SANDBOXED, execute, running_kernel

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="the local kernel has no sandbox")

OWN = {
    "ipython_config.py": "c.InteractiveShell.ast_node_interactivity = 'all'",
    "ipython_kernel_config.py": "c.InteractiveShellApp.exec_lines = ['configured = 1']",
}
NEVER = ("history.sqlite", "security/ipcontroller.json", "db/rootmodule", "startup/notes.txt")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """IPython's and matplotlib's folders of the person who runs the server."""
    folder = tmp_path / "ipython" / "profile_default"
    for name, text in {**OWN, **dict.fromkeys(NEVER, "SECRET")}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "mpl").mkdir()
    (tmp_path / "mpl" / "matplotlibrc").write_text("figure.dpi: 77")
    monkeypatch.setenv("IPYTHONDIR", str(folder.parent))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "mpl"))
    return folder


LOOK = """
import os
texts = []
for top in ("/etc/ipython", os.path.expanduser("~")):
    for folder, names, files in os.walk(top):
        names[:] = [name for name in names if os.path.join(folder, name) != CHECKOUT]
        texts += [open(os.path.join(folder, name), errors="replace").read() for name in files]
def fails(action):
    try:
        action()
    except OSError:
        return True
place = "/etc/ipython/startup/00-own.py"
print([
    started, configured, "SECRET" in str(texts), open(os.environ["MATPLOTLIBRC"]).read(),
    fails(lambda: open(place, "w")), fails(lambda: os.unlink(place)),
    fails(lambda: open("/etc/ipython/startup/evil.py", "w")),
])
"""


def test_profile_is_read_and_cannot_be_changed(home: Path, tmp_path: Path) -> None:
    (home / "startup" / "00-own.py").write_text("started = 'at home'")
    settings = {"profile": "default"}
    with running_kernel(settings=settings, start={"cwd": str(tmp_path)}) as (_, client):
        # The checkout may lie in what is a kernel's home, and has the word.
        answer = execute(client, f"CHECKOUT = {str(PROJECT)!r}\n{LOOK}")
        seen = ["at home", 1, False, "figure.dpi: 77", True, True, True]
        assert answer.text == f"{seen}\n", answer.reply
        shown = [
            m["content"]["data"]["text/plain"]
            for m in execute(client, "1\n2").outputs
            if m["msg_type"] == "execute_result"
        ]
        assert shown == ["1", "2"]


def test_profile_shapes_the_key_and_its_code_runs_at_each_start(home: Path) -> None:
    def look() -> tuple[str, str | None]:
        made = make_plan(DEFAULT_KERNEL, private_connection_info(), "")
        plan = replace(made, spec=SandboxSpec(uploads=None, profile="default"))
        return json.dumps(find_kernel_facts(plan).settings), find_obstacle(plan)

    before, obstacle = look()
    assert obstacle is None
    (home / "ipython_config.py").write_text("c.other = 1")
    after, obstacle = look()
    assert before != after
    assert obstacle is None
    (home / "startup" / "a.py").touch()
    assert "startup files" in str(look()[1])


def test_profile_that_cannot_be_shown_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SandboxSpec(profile="default")
    assert set(read_profile(spec)) == {*(f"ipython/{name}" for name in OWN), profile.MATPLOTLIBRC}
    assert not read_profile(replace(spec, profile=None))
    with pytest.raises(SettingError, match="No such file"):
        read_profile(replace(spec, profile="other"))
    monkeypatch.setattr(profile, "MAX_BYTES", 10)
    with pytest.raises(SettingError, match="more than 64 files"):
        read_profile(spec)
    with pytest.raises(SettingError, match="cannot show a profile"):
        SandboxSettings(runtime="docker", image="python", profile="default").sandbox_spec()
