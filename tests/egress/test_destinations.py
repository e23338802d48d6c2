"""Which route a page's URL belongs to: exactly the upstream's, and none that only looks like it."""

from __future__ import annotations

import pytest

from gvisor_kernel.egress.destinations import (
    Destination,
    find_route,
    outside_address,
    read_destination,
)
from gvisor_kernel.egress.kinds import UrlRoute
from gvisor_kernel.egress.routes import parse_routes
from gvisor_kernel.errors import EgressRefused

ROUTES = tuple(
    parse_routes(
        {
            "claude": {"url": "https://api.example.org", "artifacts": True},
            "models": {"url": "https://api.example.org/v2", "artifacts": True},
            "kernels": {"url": "https://kernels.example.org"},
            "books": {"url": "https://xn--bcher-kva.example:8443/a", "artifacts": True},
            "six": {"url": "https://[2001:4860::1]", "artifacts": True},
        }
    ).values()
)


def find(url: str) -> tuple[str, str]:
    route, target = find_route(read_destination(url), ROUTES)
    return route.name, target


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://api.example.org/v1/messages", ("claude", "/v1/messages")),
        ("https://api.example.org:443/v1?q=/a&b", ("claude", "/v1?q=/a&b")),
        ("https://api.example.org", ("claude", "/")),
        ("https://api.example.org?x", ("claude", "/?x")),
        ("https://api.example.org/v1#part", ("claude", "/v1")),
        ("https://API.Example.ORG/V1", ("claude", "/V1")),
        ("HTTPS://api.example.org/x", ("claude", "/x")),
        ("https://api.example.org/v2", ("models", "/")),
        ("https://api.example.org/v2?x", ("models", "/?x")),
        ("https://api.example.org/v2/a", ("models", "/a")),
        ("https://api.example.org/v2a", ("claude", "/v2a")),
        ("https://xn--bcher-kva.example:8443/a/b", ("books", "/b")),
        ("https://[2001:4860::1]/x", ("six", "/x")),
    ],
)
def test_the_address_of_an_upstream_is_its_route(url: str, found: tuple[str, str]) -> None:
    assert find(url) == found


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.org/v1",
        "https://api.example.org:80/v1",
        "https://api.example.org:0443/v1",
        "https://api.example.org:/v1",
        "https://api.example.org:x/v1",
        "https://api.example.org./v1",
        "https://api.example.org:443:443/v1",
        "https://api.example.org@evil.example/v1",
        "https://key:word@api.example.org/v1",
        "https://api.example.org\\@evil.example/v1",
        "https://api.example.org\\v1",
        "https://evil.example/https://api.example.org/",
        "https://evil.example#@api.example.org/",
        "https://xapi.example.org/",
        "https://api.example.org.evil.example/",
        "https://api%2eexample.org/",
        "https://api.example.org%00.evil.example/",
        "https://\uff41pi.example.org/",
        "https://b\u00fccher.example:8443/a/b",
        "https://kernels.example.org/v1",
        "https://api.example.org /v1",
        "https://api.example.org/\r\nX: y",
        "https:///v1",
        "https:api.example.org",
        "//api.example.org/v1",
        "ftp://api.example.org/",
        "file:///etc/passwd",
        "https://[2001:4860:0::1]/x",
        "https://[2001:4860::1/x",
        "https://api.example.org/" + "x" * 20_000,
        "",
    ],
)
def test_another_address_is_none(url: str) -> None:
    with pytest.raises(EgressRefused) as caught:
        find(url)
    assert "word" not in str(caught.value)


def test_a_page_is_told_which_host_and_what_to_do() -> None:
    with pytest.raises(EgressRefused) as caught:
        find("https://api.other.example/v1")
    assert str(caught.value) == (
        "Pages have no route to https://api.other.example.\n"
        'What to do: an administrator can add one with "url": "https://api.other.example" and'
        ' "artifacts": True to c.GVisorEgress.routes (docs/egress.md).'
    )
    with pytest.raises(EgressRefused, match="books leads to /a"):
        find("https://xn--bcher-kva.example:8443/b")


def test_a_path_is_not_made_plain_to_reach_a_route() -> None:
    """The worker refuses the dots afterwards, as in a kernel's request."""
    assert find("https://api.example.org/v2/../x") == ("models", "/../x")
    assert find("https://api.example.org/%76%32/x") == ("claude", "/%76%32/x")


def test_an_address_in_an_answer_is_the_servers_own() -> None:
    (route,) = (it for it in ROUTES if isinstance(it, UrlRoute) and it.name == "models")
    inside = "http://127.0.0.1:3128/models"
    assert outside_address(f"{inside}/a?b", route, inside) == "https://api.example.org/v2/a?b"
    assert outside_address("https://x.example/", route, inside) == "https://x.example/"
    assert outside_address(f"{inside}x/a", route, inside) == f"{inside}x/a"


def test_a_destination_is_shown_with_its_port() -> None:
    assert Destination("https", "a.example", 443, "/").shown == "a.example"
    assert Destination("https", "2001:db8::1", 1, "/").shown == "[2001:db8::1]:1"
