"""The variables that announce routes, or that there are none."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from gvisor_kernel.egress.environment import (
    JUPYTER,
    MCP,
    PROGRAM,
    Door,
    egress_environment,
    name_door,
    no_egress_environment,
)
from gvisor_kernel.egress.kinds import HostsRoute, PackagesRoute, UrlRoute
from gvisor_kernel.guest.refusals import find_status, make_answer

BASE = "http://127.0.0.1:3128"


def test_every_kernel_has_a_proxy_and_local_addresses_do_not_use_it() -> None:
    for environment in (no_egress_environment(), egress_environment([PackagesRoute()])):
        for name in ("HTTP_PROXY", "https_proxy"):
            assert environment[name] == BASE
        own = "localhost,gvisor,127.0.0.1,0.0.0.0,::1"
        assert environment["NO_PROXY"] == environment["no_proxy"] == own


def test_without_routes_tools_do_not_wait() -> None:
    environment = egress_environment([])
    assert environment == no_egress_environment()
    assert environment["PIP_RETRIES"] == "1"
    assert environment["UV_HTTP_RETRIES"] == "0"
    assert "install-update-egress-packages" in environment["UV_DEFAULT_INDEX"]
    assert "GVISOR_KERNEL_PACKAGES" not in environment


@pytest.mark.parametrize("door", [JUPYTER, PROGRAM, MCP])
def test_a_kernel_without_routes_names_what_its_own_door_can_do(door: Door) -> None:
    environment = egress_environment([], door)
    answer = make_answer(find_status(environment)).decode("ascii")
    status, _, rest = answer.partition("\r\n")
    assert status == f"HTTP/1.1 403 This kernel has no network; {door.remedy}"
    assert len(status) <= 200
    assert door.remedy in rest
    for text in (answer, environment["UV_DEFAULT_INDEX"]):
        assert bool(re.search("install.+update.+packages", text)) == (door is JUPYTER)
    assert urlsplit(environment["UV_DEFAULT_INDEX"]).geturl() == environment["UV_DEFAULT_INDEX"]


def test_routes_replace_each_variable_of_a_kernel_without_any() -> None:
    """A restored kernel had none before, and a variable cannot be removed from it."""
    for route in (
        PackagesRoute(),
        HostsRoute("web", ("x.org:443",)),
        UrlRoute("api", "https://x.org"),
    ):
        environment = egress_environment([route])
        assert set(no_egress_environment()) <= set(environment)
        assert "no-network" not in str(environment)


def test_packages_come_from_the_route() -> None:
    environment = egress_environment([PackagesRoute()])
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "npm_config_registry"):
        assert environment[name].startswith(f"{BASE}/packages/")


def test_known_apis_are_announced_as_their_clients_read_it() -> None:
    environment = egress_environment(
        [
            UrlRoute("openai", "https://api.openai.com/v1", "env:X", "Authorization: {secret}"),
            UrlRoute("claude-api", "https://api.anthropic.com"),
            UrlRoute("mine", "https://x.org/a", variable="MY_URL"),
            UrlRoute("part", "https://api.github.com/repos/x"),
        ]
    )
    assert environment["OPENAI_BASE_URL"] == f"{BASE}/openai"
    assert environment["ANTHROPIC_BASE_URL"] == f"{BASE}/claude-api"
    assert environment["GVISOR_EGRESS_CLAUDE_API"] == f"{BASE}/claude-api"
    assert environment["MY_URL"] == environment["GVISOR_EGRESS_MINE"] == f"{BASE}/mine"
    assert environment["OPENAI_API_KEY"] == "gvisor-egress"
    assert "GITHUB_API_URL" not in environment
    short = egress_environment([UrlRoute("openai", "https://api.openai.com")])
    assert short["OPENAI_BASE_URL"] == f"{BASE}/openai/v1"


def test_a_client_that_is_named_by_its_variable_has_a_key_that_is_none() -> None:
    environment = egress_environment(
        [UrlRoute("mine", "https://llm.corp.example/x", variable="ANTHROPIC_BASE_URL")]
    )
    assert environment["ANTHROPIC_BASE_URL"] == f"{BASE}/mine"
    assert environment["ANTHROPIC_API_KEY"] == "gvisor-egress"
    assert "OPENAI_API_KEY" not in environment


def test_the_command_names_the_kernels_own_kernelspec() -> None:
    """Without a name, the command would give another kernelspec a network."""
    assert "install --update --name my-k --egress packages;" in name_door(JUPYTER, "my-k").remedy
    assert len(name_door(JUPYTER, "k" * 24).remedy) <= 150
    assert name_door(JUPYTER, "k" * 25) == JUPYTER
    assert name_door(JUPYTER, "a; b") == JUPYTER
    assert name_door(MCP, "my-k") is MCP
