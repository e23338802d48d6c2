"""The suites and the inspector of the protocol's authors, from npm, with real servers.

The suite has scenarios for tools, resources and prompts of its own example server. Each scenario
that does not pass must fail for a reason that docs/mcp.md gives.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ..sweeps import needs_all
from .npm import Npm
from .servers import COMMAND, MEMORY, http_server

SUITE = "@modelcontextprotocol/conformance"
INSPECTOR = "@modelcontextprotocol/inspector"
INSPECTOR_VERSION = "2.12.0"

PRELOADED = """
const http = require("node:http");
const value = `Bearer ${process.env.TEST_TOKEN}`;
require("node:diagnostics_channel").subscribe("undici:request:create", ({ request }) => {
  request.addHeader("authorization", value);
});
const { request } = http;
http.request = function (...given) {
  const made = request.apply(this, given);
  made.setHeader("authorization", value);
  return made;
};
require("node:module").syncBuiltinESMExports();
"""
"""The suite cannot send a header of its caller: this adds it to each request of the process."""

PASS_2025 = {
    *("server-initialize", "server-session-lifecycle", "ping", "completion-complete"),
    *("tools-list", "resources-list", "prompts-list", "dns-rebinding-protection"),
    "server-sse-multiple-streams",
}
PASS_2026 = {
    *("completion-complete", "tools-list", "resources-list", "prompts-list", "caching"),
    *("dns-rebinding-protection", "server-sse-multiple-streams", "http-header-validation"),
    *("sep-2164-resource-not-found", "input-required-result-unsupported-methods"),
    "input-required-result-validate-input",
}
OWN_NAMES = r"There is no (tool|skill|resource) '|'json_schema_2020_12_tool' not found|Not testable"
OWN_NAMES += r"|Prerequisite failed: could not get initial|Expected InputRequiredResult with"
OWN_NAMES += r"|Server returned JSON-RPC error instead of re-requesting"
"""What the checks say that need the suite's own example server."""
NOT_ANNOUNCED = r"Method not found|Server did not send (priming event|retry field)"


@pytest.fixture(scope="module")
def add_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token.cjs"
    path.write_text(PRELOADED)
    return path


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Npm:
    return Npm(tmp_path_factory.mktemp("npm"))


def run_suite(
    npm: Npm, version: str, folder: Path, add_token: Path, *options: str
) -> dict[str, list[dict[str, Any]]]:
    """Run the suite of that version; return the checks of each scenario."""
    suite = npm.install(f"{SUITE}@{version}") / SUITE / "dist" / "index.js"
    with http_server() as server:
        environment = npm.environment(
            TEST_TOKEN=server.token, NODE_OPTIONS=f"--require={add_token}"
        )
        argv = [npm.node, str(suite), "server", "--url", server.url, "-o", str(folder)]
        subprocess.run(
            [*argv, *options], env=environment, capture_output=True, timeout=300, check=False
        )
    found = {}
    for path in folder.glob("*/checks.json"):
        name = re.sub(r"-20\d\d-\d\d-\d\dT.*", "", path.parent.name).removeprefix("server-")
        name = {"json-schema": "json-schema-2020-12"}.get(name, name)
        found[name] = json.loads(path.read_text())
    assert found
    return found


def judge(found: dict[str, list[dict[str, Any]]]) -> tuple[set[str], dict[str, str]]:
    """Return the scenarios that pass, without a warning, and what the others say."""
    passed, rest = set(), {}
    for name, checks in found.items():
        said = [
            f"{check['id']}: {check.get('errorMessage')}"
            for check in checks
            if check["status"] in ("FAILURE", "WARNING")
        ]
        if said:
            rest[name] = "\n".join(said)
        elif any(check["status"] == "SUCCESS" for check in checks):
            passed.add(name)
    return passed, rest


@needs_all
@pytest.mark.timeout(400)
@pytest.mark.parametrize("version", ["0.1.16", "0.2.0-alpha.12"])
def test_the_suite_for_protocols_with_a_handshake(
    version: str, npm: Npm, tmp_path: Path, add_token: Path
) -> None:
    is_new = version.startswith("0.2")
    options = ("--requirements", "2025-11-25") if is_new else ("--suite", "all")
    passed, rest = judge(run_suite(npm, version, tmp_path, add_token, *options))
    assert passed == {name for name in PASS_2025 if is_new or name != "server-session-lifecycle"}
    assert len(rest) == 24
    for name, said in rest.items():
        for line in said.splitlines():
            assert re.search(f"{OWN_NAMES}|{NOT_ANNOUNCED}", line), (name, line)


@needs_all
@pytest.mark.timeout(400)
def test_the_suite_for_the_protocol_without_a_handshake(
    npm: Npm, tmp_path: Path, add_token: Path
) -> None:
    options = ("--requirements", "2026-07-28")
    passed, rest = judge(run_suite(npm, "0.2.0-alpha.12", tmp_path, add_token, *options))
    assert passed == PASS_2026
    for name, said in rest.items():
        if name.startswith("tasks-"):
            continue  # an extension, which the server does not announce
        for line in said.splitlines():
            assert re.search(OWN_NAMES, line), (name, line)


@needs_all
@pytest.mark.timeout(400)
@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_the_inspector(npm: Npm, tmp_path: Path, transport: str, era: str) -> None:
    program = npm.install(f"{INSPECTOR}@{INSPECTOR_VERSION}") / INSPECTOR
    inspector = [npm.node, str(program / "clients/launcher/build/index.js"), "--cli"]

    def ask(target: list[str], method: str, *options: str) -> Any:
        done = subprocess.run(
            [*inspector, *target, "--protocol-era", era, "--method", method, *options],
            env=npm.environment(HOME=str(tmp_path)),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "warnings" not in done.stderr, done.stderr
        return json.loads(done.stdout)

    def check(target: list[str]) -> None:
        tools = ask(target, "tools/list", "--strict")["tools"]
        assert "sandbox_run_code" in {tool["name"] for tool in tools}
        arguments = ("--tool-name", "sandbox_run_code", "--tool-arg", "code=6*7")
        assert ask(target, "tools/call", *arguments)["structuredContent"]["result"] == "42"
        names = {item["uri"] for item in ask(target, "resources/list")["resources"]}
        assert "skill://pdf/SKILL.md" in names
        read = ask(target, "resources/read", "--uri", "skill://pdf/SKILL.md")
        assert "name: pdf" in read["contents"][0]["text"]
        assert "pdf" in {item["name"] for item in ask(target, "prompts/list")["prompts"]}

    if transport == "stdio":
        check([*COMMAND, *MEMORY])
    else:
        with http_server() as server:
            check([server.url, "--header", f"Authorization: Bearer {server.token}"])
