"""Routes to the network in the sessions of a server: those of Jupyter's configuration, by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..egress.upstream import Fake, serving
from .servers import call, stdio_session

CODE = """
import urllib.request, urllib.error
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
def get(path):
    try:
        with direct.open("http://127.0.0.1:3128" + path, timeout=60) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        text = f"{error.code} {error.read().decode()}"
    return text.replace("\\n", " ")
print(get("/repos/acme/x"))
print(get("/repos/other/x"))
print(get("/nothing"))
"""


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """A server to which a route of Jupyter's configuration leads."""
    with serving() as fake:
        route = {
            "url": f"http://127.0.0.1:{fake.port}",
            "allow_private": True,
            "paths": ["/acme/**"],
        }
        configuration = {"GVisorEgress": {"routes": {"repos": route}}}
        (tmp_path / "jupyter_config.json").write_text(json.dumps(configuration))
        monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
        yield fake


async def run(*options: str) -> list[str]:
    async with stdio_session(*options) as session:
        run = await call(session, "run_code", code=CODE)
        return str(run["stdout"]).splitlines()


def test_a_session_has_the_routes_that_its_server_names_and_no_other(upstream: Fake) -> None:
    allowed, refused, unknown = asyncio.run(run("--set", 'egress=["repos"]'))
    assert json.loads(allowed)["path"] == "/acme/x"
    assert refused.startswith("403 gvisor-kernel: the route repos does not allow this path.")
    assert "gvisor-kernel mcp --set egress=" in unknown
    assert "GVisorProvisioner" not in unknown
    assert [seen.path for seen in upstream.seen] == ["/acme/x"]

    for text in asyncio.run(run()):
        assert text.startswith("403 This kernel has no network; ask the user to start this MCP")
    assert len(upstream.seen) == 1
