"""The recipes of docs/howto/hub.md, in a real JupyterHub."""

from __future__ import annotations

import json
import re

import pytest

from ..foreign import PYTHON
from ..sweeps import needs_all
from ..world import PROJECT
from .hub import KERNEL, run_cell, running_hub

pytestmark = needs_all


def find_recipes() -> list[str]:
    """Return the blocks of Python of the guide, with the route that it names further down."""
    page = (PROJECT / "docs" / "howto" / "hub.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    routes = ('egress = ["packages"]', "egress=['packages']")
    empty = ("egress = []", "egress=[]")
    assert len(blocks) == 3
    for route, nothing, block in zip(routes, empty, blocks[:2], strict=True):
        assert f"GVisorProvisioner.{route}" in page
        assert nothing in block
    changes = zip(empty, routes, strict=True)
    return [
        *(block.replace(*both) for block, both in zip(blocks[:2], changes, strict=True)),
        blocks[2],
    ]


@pytest.mark.timeout(600)
def test_guides_recipes_keep_users_from_changing_their_limits() -> None:
    """The texts are the guide's own. The user has written configuration, and kernelspecs without a
    sandbox into every folder of the home where Jupyter looks."""
    jupyter_config, hub_config, closing = find_recipes()
    with running_hub("fay", recipe=hub_config, jupyter_config=jupyter_config + closing) as hub:
        hub.stop_server("fay")
        home = hub.home("fay")
        config = home / ".jupyter" / "jupyter_server_config.py"
        config.parent.mkdir()
        config.write_text(
            "c.GVisorProvisioner.memory_limit = '8G'\nc.GVisorProvisioner.cpu_shares = 4096\n"
            f"open({str(home / 'ran')!r}, 'w')\n"
        )
        argv = [PYTHON, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        places = (home / ".local" / "share" / "jupyter", home / ".ipython")
        for place, names in zip(places, (("own", KERNEL), ("other", KERNEL)), strict=True):
            for name in names:
                folder = place / "kernels" / name
                folder.mkdir(parents=True)
                spec = {
                    "argv": argv,
                    "display_name": name,
                    "language": "python",
                    "metadata": {"kernel_provisioner": {"provisioner_name": "local-provisioner"}},
                }
                (folder / "kernel.json").write_text(json.dumps(spec))
        hub.give_home("fay")
        hub.start_server("fay")
        token = hub.make_token("fay")
        found = hub.ask_server("fay", token, "GET", "api/kernelspecs").json()["kernelspecs"]
        assert KERNEL in found
        for name in ("own", "other"):
            answer = hub.ask_server("fay", token, "POST", "api/kernels", name=name)
            assert answer.status_code >= 400, name
            assert name not in found
        assert hub.ask_server("fay", token, "POST", "api/terminals").status_code == 404
        for path in ("api/nbconvert", "api/contents/.hidden", "lsp/status", "terminals/1"):
            assert hub.ask_server("fay", token, "GET", path).status_code == 404, path
        for path in ("api/contents", "api/status", "gvisor-kernel/api/sandboxes"):
            assert hub.ask_server("fay", token, "GET", path).status_code == 200, path
        for name in found:
            answer = hub.ask_server("fay", token, "POST", "api/kernels", name=name)
            assert answer.status_code == 201, answer.text
            with hub.page("fay", token, answer.json()["id"]) as page:
                code = "import json; i = json.load(open('/container_info.json'))"
                info = json.loads(run_cell(page, f"{code}; print(json.dumps(i['limits']))"))
            assert (info["memory_bytes"], info["cpu_shares"]) == (2 << 30, 512), name
        shown = hub.ask_server("fay", token, "GET", "gvisor-kernel/api/sandboxes").json()
        assert len(shown["sandboxes"]) == len(found)
        for sandbox in shown["sandboxes"]:
            assert [route["name"] for route in sandbox["egress"]] == ["packages"]
        assert not (home / "ran").exists()
