"""Servers of other projects through which agents run code: where their kernels run.

Each is installed in an environment of its own, beside this package and a plain kernelspec python3.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from gvisor_kernel.jupyter.default_provisioner import VARIABLE
from gvisor_kernel.jupyter.kernelspecs import PROVISIONER

from ..patience import scale_seconds
from ..sweeps import needs_all
from ..world import PROJECT

TOKEN = "t" * 32
CODE = "print(open('/proc/version').read())"
SWITCHES: dict[str, tuple[dict[str, str], list[str]]] = {
    "none": ({}, []),
    "variable": ({VARIABLE: PROVISIONER}, []),
    "default": ({}, ["--default"]),
    "replaced": ({}, ["--replace-python3"]),
}
TOOL = '''
async def run_code(code: str) -> str:
    """Run code in a kernel of the server, as its users' tools do."""
    from jupyter_server.serverapp import ServerApp

    kernels = ServerApp.instance().kernel_manager
    client = kernels.get_kernel(await kernels.start_kernel()).client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        said = []
        hook = lambda message: said.append(message["content"].get("text", ""))
        await client.execute_interactive(code, timeout=60, output_hook=hook)
        return "".join(said)
    finally:
        client.stop_channels()
'''
Ask = Callable[[ClientSession], Awaitable[str]]


class Place:
    """An environment with the package of an agent's server, and a home."""

    def __init__(self, folder: Path, package: str) -> None:
        self.folder, self.package = folder, package
        self.bin = folder / "venv/bin"
        tools = folder / "tools"
        tools.mkdir()
        (tools / "tool_of_test.py").write_text(TOOL)
        subprocess.run(
            [sys.executable, "-m", "venv", str(folder / "venv")], check=True, timeout=120
        )
        words = ("-q", "--disable-pip-version-check", package, "jupyter_server", "ipykernel")
        words = (*words, str(PROJECT))
        done = subprocess.run(
            [str(self.bin / "python"), "-m", "pip", "install", *words],
            capture_output=True,
            text=True,
            timeout=scale_seconds(400),
        )
        if done.returncode:
            pytest.skip(f"{package} cannot be installed")
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("JUPYTER_")
        }
        self.environment |= {"HOME": str(folder), "PYTHONPATH": str(tools)}

    def run(self, *words: str, **variables: str) -> str:
        """Run gvisor-kernel of this environment; return what it prints."""
        done = subprocess.run(
            [str(self.bin / "gvisor-kernel"), *words],
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=scale_seconds(120),
        )
        return done.stdout

    @contextmanager
    def serving(self, port: int, **variables: str) -> Iterator[str]:
        """Run a Jupyter server, with MCP at ``port`` if it has a port of its own."""
        log = self.folder / "log"
        root = self.folder / "root"
        root.mkdir(exist_ok=True)
        argv = [str(self.bin / "jupyter"), "server", "--no-browser", "--port=0", "--ip=127.0.0.1"]
        argv += [
            "--allow-root",
            f"--ServerApp.root_dir={root}",
            f"--IdentityProvider.token={TOKEN}",
        ]
        argv += ["--ServerApp.jpserver_extensions={'jupyter_server_mcp': True}"] * bool(port)
        argv += [f"--MCPExtensionApp.mcp_port={port}"] * bool(port)
        argv += ["--MCPExtensionApp.mcp_tools=tool_of_test:run_code"] * bool(port)
        with (
            log.open("w") as output,
            subprocess.Popen(
                argv, env={**self.environment, **variables}, stdout=output, stderr=output, cwd=root
            ) as server,
        ):
            try:
                end = time.monotonic() + scale_seconds(60)
                wanted = "Wrote MCP runtime info" if port else "Use Control-C to stop"
                while wanted not in (text := log.read_text()):
                    assert server.poll() is None, text[-3000:]
                    assert time.monotonic() < end, text[-3000:]
                    time.sleep(0.1)
                found = re.search(r"http://127\.0\.0\.1:\d+/", text)
                assert found is not None, text[-3000:]
                yield found[0]
            finally:
                server.terminate()
                server.wait(scale_seconds(60))


@pytest.fixture(scope="module", params=["jupyter-mcp-server", "jupyter-server-mcp", "jupyter-ai"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("agent"), request.param)


async def ask_http(url: str, ask: Ask) -> str:
    headers = {"Authorization": f"token {TOKEN}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=scale_seconds(60)) as http,
        streamable_http_client(url, http_client=http) as streams,
        ClientSession(*streams[:2]) as session,
    ):
        await session.initialize()
        return await ask(session)


async def ask_stdio(place: Place, url: str, ask: Ask) -> str:
    words = ["start", "--transport", "stdio", "--jupyter-url", url.rstrip("/")]
    server = StdioServerParameters(
        command=str(place.bin / "jupyter-mcp-server"),
        args=[*words, "--jupyter-token", TOKEN],
        env=place.environment,
    )
    with (place.folder / "stdio.log").open("w") as log:
        async with stdio_client(server, errlog=log) as streams, ClientSession(*streams) as session:
            await session.initialize()
            return await ask(session)


async def run_code(session: ClientSession) -> str:
    """Run code by the tool of whatever server it is."""
    names = {tool.name for tool in (await session.list_tools()).tools}
    tool = "execute_code" if "execute_code" in names else "run_code"
    result = await session.call_tool(tool, {"code": CODE})
    assert not result.is_error, result
    return "".join(item.text for item in result.content if item.type == "text")


async def make_notebook(session: ClientSession) -> str:
    await session.call_tool("create_notebook", {"file_path": "made.ipynb"})
    return ""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@needs_all
@pytest.mark.timeout(900)
@pytest.mark.parametrize("switch", list(SWITCHES))
def test_where_the_kernels_of_agents_run(place: Place, switch: str) -> None:
    variables, options = SWITCHES[switch]
    if options:
        place.run("install", "--sys-prefix", "--no-snapshot", *options)
    try:
        check_kernels(place, variables, is_plain=switch == "none")
    finally:
        place.run("uninstall", "--sys-prefix", "--default")
    text = (place.folder / "venv/share/jupyter/kernels/python3/kernel.json").read_text()
    assert PROVISIONER not in text


def check_kernels(place: Place, variables: dict[str, str], *, is_plain: bool) -> None:
    host = Path("/proc/version").read_text().strip()
    is_extension = place.package == "jupyter-mcp-server"
    port = 0 if is_extension else free_port()
    with place.serving(port, **variables) as url:
        target = f"{url}mcp" if is_extension else f"http://127.0.0.1:{port}/mcp"
        said = [asyncio.run(ask_http(target, run_code))]
        if is_extension:
            said.append(asyncio.run(ask_stdio(place, url, run_code)))
        for text in said:
            assert "Linux version" in text
            assert (host in text) == is_plain, text
        if place.package == "jupyter-ai":
            asyncio.run(ask_http(target, make_notebook))
            made = json.loads((place.folder / "root/made.ipynb").read_text())
            (place.folder / "root/made.ipynb").unlink()
            assert made["metadata"]["kernelspec"]["name"] == "python3"
        checks = json.loads(place.run("doctor", "--json"))["checks"]
        check = next(check for check in checks if check["name"] == "running kernels")
        assert (check["state"] == "warning") == is_plain, check
        assert check["fact"].count("python3 (") == (len(said) if is_plain else 0), check
