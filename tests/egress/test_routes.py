"""Routes: what the configuration accepts, what a kernelspec may choose, what errors show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from traitlets.config import Config

from gvisor_kernel.config.jupyter_config import GVisorEgress
from gvisor_kernel.egress.kinds import (
    METHODS,
    HostsRoute,
    Limits,
    PackagesRoute,
    Route,
    UrlRoute,
    kind_of,
    read_route,
    write_route,
)
from gvisor_kernel.egress.routes import choose_routes, parse_routes
from gvisor_kernel.errors import SettingError, UnknownSetting

URL = "https://api.example.org/v1"
TOKEN = "sk-live-0123456789abcdef"  # noqa: S105


def parse(**item: Any) -> Route:
    """Return the route "x" that ``item`` describes."""
    return parse_routes({"x": item})["x"]


def test_packages_exists_without_configuration_and_is_first() -> None:
    assert parse_routes({}) == {"packages": PackagesRoute()}
    routes = parse_routes({"web": {"hosts": ["data.gov:443"]}, "packages": {"limits": {}}})
    assert list(routes) == ["packages", "web"]


def test_examples_of_the_documentation_are_parsed() -> None:
    routes = parse_routes(
        {
            "openai": {
                "url": "https://api.openai.com/v1/",
                "secret": "env:OPENAI_API_KEY",
                "header": "Authorization: Bearer {secret}",
            },
            "github": {
                "url": "https://api.github.com",
                "methods": ["GET"],
                "paths": ["/repos/acme/**"],
                "secret": "keyring:github/bot",
            },
            "web": {"hosts": ["*.wikipedia.org:443", "data.gov:443"]},
        }
    )
    assert routes["openai"] == UrlRoute(
        "openai",
        "https://api.openai.com/v1",
        "env:OPENAI_API_KEY",
        "Authorization: Bearer {secret}",
    )
    github = routes["github"]
    assert isinstance(github, UrlRoute)
    assert github.methods == ("GET",)
    assert github.paths == ("/repos/acme/**",)
    assert github.header_name == "authorization"
    assert github.format_header("s") == ("Authorization", "Bearer s")
    assert routes["web"] == HostsRoute("web", ("*.wikipedia.org:443", "data.gov:443"))
    assert [kind_of(route) for route in routes.values()] == ["packages", "url", "url", "hosts"]


def test_defaults_are_those_of_the_documentation() -> None:
    route = parse(url=URL)
    assert route == UrlRoute("x", URL, None, None, METHODS, ("/**",), None, False, Limits())
    assert isinstance(route, UrlRoute)
    assert route.format_header("s") is None


def test_limits_are_parsed() -> None:
    limits = parse(url=URL, limits={"seconds": 30, "daily_requests": 5, "daily_bytes": None}).limits
    assert limits == Limits(seconds=30.0, daily_requests=5)
    assert parse_routes({"packages": {"limits": {"at_once": 2}}})["packages"].limits.at_once == 2


@pytest.mark.parametrize(
    "item",
    [
        {"url": URL, "secret": "env:A", "variable": "MY_URL", "allow_private": True},
        {"url": URL, "limits": {"daily_bytes": 7}},
        {"hosts": ["data.gov:443"]},
    ],
)
def test_route_passes_through_json_unchanged(item: dict[str, Any]) -> None:
    route = parse(**item)
    assert read_route(json.loads(json.dumps(write_route(route)))) == route
    packages = PackagesRoute(limits=Limits(at_once=1))
    assert read_route(json.loads(json.dumps(write_route(packages)))) == packages


WRONG_URLS = (
    *(
        "Example.org",
        "a b",
        "a:0",
        "a:99999",
        "a/?q=1",
        "a/#f",
        "u@a",
        "u:p@a",
        "a\n",
        "a.",
        "a:+1",
    ),
    *("0x7f.1", "127.1", "2130706433", "017.0.0.1", "[fe80::1%25eth0]", "[::1", "", "/x"),
    *("a/../b", "a//b", "a/%2e%2e/b", "a/;b", "é"),
)
WRONG_FILES = ("x", "/a/../b", "//a", "/a\n", "/")
HOPS = ("Host", "host", "Content-Length", "Transfer-Encoding", "Connection", "TE", "A B")
FLAGS = (1, "yes", None)
OF_A_URL: dict[str, tuple[object, ...]] = {
    "url": (
        *(None, 3, "", "api.example.org", "ftp://example.org", "http://example.org"),
        *(f"https://{rest}" for rest in WRONG_URLS),
    ),
    "secret": (
        *(TOKEN, "", 3, "env:", "env:A B", "keyring:a", "keyring:/b", "keyring:a/"),
        *(f"file:{path}" for path in WRONG_FILES),
    ),
    "methods": ("GET", [], ["get"], ["CONNECT"], ["TRACE"]),
    "paths": (
        *("/**", [], ["a"], ["/a**"], ["/a//b"], ["/é"], ["/../a"], ["/a%2fb"], ["/a;b"]),
        *(["/a?b"], ["/a\\b"], [3]),
    ),
    "variable": (
        *("a", "A-B", "PATH", "LD_PRELOAD", 3, "A\n", "PYTHONPATH", "GVISOR_EGRESS_Y", "1A"),
    ),
    "allow_private": FLAGS,
    "artifacts": FLAGS,
    "limits": (
        *(3, [], None, {"seconds": 0}, {"unknown": 1}),
        *({"at_once": value} for value in (0, 257, 1.0, "1", True, None)),
        *({"daily_bytes": value} for value in (-1, 1.5, "1G", True, 2**60)),
        *({"request_bytes": value} for value in (None, -1, "16M")),
        *({"seconds": value} for value in (float("nan"), "1", 10**6, True)),
    ),
}
HEADERS = (
    *(3, "", "X", "X: y", "X: {secret}\r\nY: 1", "X: {secret} {secret}"),
    *(f"{name}: {{secret}}" for name in HOPS),
)
HOSTS = (
    *("data.gov:443", [], [3], ["data.gov"], ["*:443"], ["*.org:1"], ["Data.gov:443"]),
    *(["data.gov.:443"], ["a*.gov:1"], ["data.gov:x"], ["127.1:80"], ["0x7f.0.0.1:80"]),
    *(["*.0.0.1:80"], ["http://a:1"], ["::1:80"], ["[::1]"], ["[::ffff:7f00:1]:80"]),
    *(["10.0.0.1:80"], ["a:0443"], ["a:65536"]),
)
WRONG: list[tuple[str, dict[Any, Any]]] = [
    *((key, {"url": URL, key: value}) for key, values in OF_A_URL.items() for value in values),
    *(("header", {"url": URL, "secret": "env:A", "header": value}) for value in HEADERS),
    ("header", {"url": URL, "header": "X: {secret}"}),
    *(("hosts", {"hosts": value}) for value in HOSTS),
    ("artifacts", {"hosts": ["a.b:1"], "artifacts": True}),
    *(("key", {"url": URL, **more}) for more in ({"path": []}, {"hosts": ["a.b:1"]}, {3: 4})),
    ("key", {"hosts": ["a.b:1"], "secret": "env:A"}),
    ("mapping", {}),
    ("mapping", {"secret": "env:A"}),
]


@pytest.mark.parametrize(("named", "item"), WRONG)
def test_wrong_value_error_names_its_place(named: str, item: dict[Any, Any]) -> None:
    with pytest.raises(SettingError, match=r'c\.GVisorEgress\.routes\["x"\]') as caught:
        parse_routes({"x": item})
    assert named in str(caught.value)
    assert "What to do: set it to" in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "packages", 3, [("x", {"url": URL})]])
def test_routes_are_a_mapping(value: object) -> None:
    with pytest.raises(SettingError, match=r"c\.GVisorEgress\.routes is a value of type"):
        parse_routes(value)


@pytest.mark.parametrize("name", ["", "A", "1a", "a_b", "a/b", "a" * 33, "a\n", 3, None, "é"])
def test_wrong_name_is_refused(name: object) -> None:
    with pytest.raises(SettingError, match="the name of a route"):
        parse_routes({name: {"url": URL}})


@pytest.mark.parametrize("key", ["url", "hosts", "secret", "allow_private"])
def test_only_the_limits_of_packages_can_be_set(key: str) -> None:
    with pytest.raises(SettingError, match="the key"):
        parse_routes({"packages": {key: True}})


def test_too_many_routes_are_refused() -> None:
    with pytest.raises(SettingError, match="at most 64"):
        parse_routes({f"r{i}": {"url": URL} for i in range(65)})


@pytest.mark.parametrize(
    "routes",
    [
        TOKEN,
        {"x": TOKEN},
        {"x": {"url": URL, "secret": TOKEN}},
        {"x": {"url": URL, "secret": "env:A", "header": f"Authorization: {TOKEN}"}},
        {"x": {"url": URL, "header": f"X-Key: {TOKEN}"}},
        {"x": {"url": f"https://user:{TOKEN}@example.org"}},
        {"x": {"url": f"https://example.org/?key={TOKEN}"}},
        {"x": {"url": URL, "token": TOKEN}},
        {"x": {"url": URL, TOKEN: 1}},
        {"x": {"url": URL, "limits": TOKEN}},
        {"x": [TOKEN]},
    ],
)
def test_error_does_not_show_what_may_be_a_secret(routes: object) -> None:
    with pytest.raises(SettingError) as caught:
        parse_routes(routes)
    assert TOKEN not in str(caught.value)
    assert TOKEN not in repr(caught.value)


def test_http_needs_allow_private() -> None:
    route = parse(url="http://127.0.0.1:8000/v1", allow_private=True)
    assert isinstance(route, UrlRoute)
    assert route.url == "http://127.0.0.1:8000/v1"


def test_pages_use_no_route_that_does_not_say_so() -> None:
    plain, open_ = parse(url=URL), parse(url=URL, artifacts=True)
    assert isinstance(plain, UrlRoute)
    assert isinstance(open_, UrlRoute)
    assert (plain.artifacts, open_.artifacts) == (False, True)


@pytest.mark.parametrize("url", [URL, f"{URL}/", "https://api.example.org:443/v1"])
def test_an_address_of_pages_belongs_to_one_route(url: str) -> None:
    first = {"url": URL, "artifacts": True}
    assert len(parse_routes({"a": first, "b": {"url": url}})) == 3
    with pytest.raises(SettingError, match=r"(?s)artifacts.*one of the routes a and b"):
        parse_routes({"a": first, "b": {"url": url, "artifacts": True}})


def test_chosen_routes_keep_their_order() -> None:
    routes = parse_routes({"web": {"hosts": ["data.gov:443"]}})
    assert [route.name for route in choose_routes(("web", "packages"), routes)] == [
        "web",
        "packages",
    ]
    assert choose_routes((), routes) == ()


def test_unknown_name_error_names_those_that_exist() -> None:
    with pytest.raises(
        SettingError, match=r"(?s)'pakages'.*packages, web.*c\.GVisorEgress"
    ) as error:
        choose_routes(("web", "pakages"), parse_routes({"web": {"hosts": ["data.gov:443"]}}))
    assert error.value.setting == "egress[1]"


def test_two_chosen_routes_cannot_set_one_variable() -> None:
    routes = parse_routes({n: {"url": URL, "variable": "MY_URL"} for n in ("a", "b")})
    assert len(choose_routes(("a",), routes)) == 1
    with pytest.raises(SettingError, match="MY_URL"):
        choose_routes(("a", "b"), routes)


def test_routes_are_read_from_the_configuration() -> None:
    config = Config()
    config.GVisorEgress.routes.update({"x": {"url": URL}})
    assert GVisorEgress(config).configured_routes() == {"x": {"url": URL}}
    assert GVisorEgress(None).configured_routes() == {}


def test_other_name_in_the_configuration_is_an_error_without_its_value() -> None:
    config = Config()
    config.GVisorEgress.rotues = {"x": {"secret": TOKEN}}
    with pytest.raises(UnknownSetting, match=r"c\.GVisorEgress\.rotues") as caught:
        GVisorEgress(config).configured_routes()
    assert TOKEN not in str(caught.value)
