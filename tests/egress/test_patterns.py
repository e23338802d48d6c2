"""Patterns for paths and hosts, and the tricks by which a path means something else to a server."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvisor_kernel.egress.patterns import (
    _part_matches,
    _parts_match,
    find_path_fault,
    find_pattern_fault,
    find_target_fault,
    is_allowed,
    is_host_allowed,
    is_host_name,
    is_host_pattern,
    split_authority,
    split_target,
)

ACME = ("/repos/acme/**",)


@pytest.mark.parametrize(
    ("path", "patterns"),
    [
        (b"/", ("/**",)),
        (b"/", ("/",)),
        (b"/repos/acme", ACME),
        (b"/repos/acme/", ACME),
        (b"/repos/acme/x/y.git", ACME),
        (b"/repos/acme/x%20y", ACME),
        (b"/repos/acme/caf%C3%A9", ACME),
        (b"/repos/acme/...a", ACME),
        (b"/repos/acme/.git", ACME),
        (b"/repos/acme/a:b@c,d=e&f", ACME),
        (b"/users/ann", ("/users/*",)),
        (b"/v1/models/gpt-4.1", ("/v1/models/gpt-*",)),
        (b"/v1/models/gpt-", ("/v1/models/gpt-*",)),
        (b"/a/x/y/c", ("/a/**/c",)),
        (b"/a/c", ("/a/**/c",)),
        (b"/a/c/c/b/c", ("/a/**/b/c",)),
        (b"/a/b", ("/x", "/a/b")),
        (b"/simple/numpy/", ("/simple/*/",)),
    ],
)
def test_path_is_allowed(path: bytes, patterns: tuple[str, ...]) -> None:
    assert is_allowed(path, patterns)


@pytest.mark.parametrize(
    ("path", "patterns"),
    [
        (b"/repos/other/x", ACME),
        (b"/repos/acmex", ACME),
        (b"/Repos/acme/x", ACME),
        (b"/repos/%61cme/x", ACME),
        (b"/x/repos/acme/y", ACME),
        (b"/users/ann/keys", ("/users/*",)),
        (b"/users/", ("/users/*",)),
        (b"/users", ("/users/*",)),
        (b"/a/b/", ("/a/b",)),
        (b"/a/b", ("/a/b/",)),
        (b"/a/x/c/d", ("/a/**/c",)),
        (b"/a/b", ()),
        (b"", ("/**",)),
        (b"*", ("/**",)),
        (b"http://example.org/a", ("/**",)),
        (b"example.org:443", ("/**",)),
        (b"//example.org/a", ("/**",)),
        (b"/a?b", ("/**",)),
    ],
)
def test_path_is_not_allowed(path: bytes, patterns: tuple[str, ...]) -> None:
    assert not is_allowed(path, patterns)


TRICKS = [
    *(b"/../x", b"/./x", b"/..", b"/.", b"/x/..", b"/.../x", b"/x/. /y", b"/x/..%20/y"),
    *(b"/%2e%2e/x", b"/%2E%2e/x", b"/.%2e/x", b"/%2e./x", b"/%2e/x", b"/x/%2e%2e"),
    *(b"/..%2fx", b"/..%2Fx", b"/x%2f..%2fy", b"/..%5cx", b"/..\\x", b"/x\\y", b"/\\x"),
    *(b"/%252e%252e/x", b"/..%252fx", b"/%25", b"/x%25y", b"/%25%32%65"),
    *(b"//x", b"/x//y", b"/x//", b"///", b"/x;y", b"/x;jsessionid=1", b"/..;/x", b"/x%3by"),
    *(
        b"/x%00y",
        b"/x%0ay",
        b"/x%0D%0Ay",
        b"/x%1fy",
        b"/x%7fy",
        b"/x%09y",
        b"/x%c2%80",
        b"/x%C2%9f",
    ),
    *(b"/x\0y", b"/x\ny", b"/x\r\nHost: y", b"/x y", b"/x\ty", b"/x\x7f", b"/x\xc3\xa9", b"/x\xff"),
    *(b"/x%c0%afy", b"/%c0%ae%c0%ae/x", b"/%e0%80%ae", b"/x%ff", b"/x%ed%a0%80", b"/x%c3"),
    *(b"/%ef%bc%8e%ef%bc%8e/x", b"/x%ef%bc%8fy", b"/x%ef%bc%bcy", b"/x%ef%bc%9by", b"/x%e2%84%80"),
    *(b"/x%", b"/x%2", b"/x%zz", b"/x%u002e", b"/%%32%65", b"/x%3fy", b"/x%23y", b"/x#y"),
]


@pytest.mark.parametrize("path", TRICKS)
def test_path_with_two_meanings_is_refused(path: bytes) -> None:
    assert find_path_fault(path)
    assert not is_allowed(path, ("/**",))
    assert not is_allowed(b"/repos/acme" + path, ACME)


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"*",
        b"http://example.org/",
        b"example.org:443",
        b"/x#y",
        b"/x?a b",
        b"/x?a\r\nHost: y",
        b"/x?\xff",
        b"/x?y#z",
        b"/" + b"x" * 20_000,
        b"/x?" + b"y" * 20_000,
        *TRICKS,
    ],
)
def test_target_is_refused(target: bytes) -> None:
    assert find_target_fault(target)


def test_query_may_contain_what_a_path_may_not() -> None:
    target = b"/x?url=http://a//b/../c;d%2f%25&e=?\\"
    assert find_target_fault(target) is None
    assert split_target(target) == (b"/x", b"?url=http://a//b/../c;d%2f%25&e=?\\")
    assert split_target(b"/x") == (b"/x", b"")


def test_matching_takes_bounded_time() -> None:
    """With backtracking each of these takes years, and the test's time limit ends it."""
    assert not is_allowed(b"/" + b"a" * 8000, ("/" + "*a" * 100 + "*b",))
    assert not is_allowed(b"/a" * 4000, ("/**/a" * 60 + "/b",))


def test_no_comparison_goes_back() -> None:
    """Going back to the last wildcard, each of these takes minutes or more."""
    assert not _part_matches("a" * 1_000_000, "*" + "a" * 500_000 + "b*")
    assert not _parts_match(["a"] * 50_000, ["**", *["a"] * 25_000, "b"])


WORDS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "aab"]), min_size=1, max_size=6)
WILD = st.lists(st.sampled_from(["a", "b", "*", "**", "a*", "*b", "a*b", "*a*"]), max_size=6)


@given(WORDS, WILD)
@settings(max_examples=100, deadline=None)
def test_wildcards_mean_what_their_definition_says(parts: list[str], pattern: list[str]) -> None:
    def piece_fits(part: str, wanted: str) -> bool:
        if not wanted:
            return not part
        if wanted[0] == "*":
            return any(piece_fits(part[i:], wanted[1:]) for i in range(len(part) + 1))
        return part[:1] == wanted[0] and piece_fits(part[1:], wanted[1:])

    def fits(parts: list[str], pattern: list[str]) -> bool:
        if not pattern:
            return not parts
        if pattern[0] == "**":
            return any(fits(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
        return bool(parts) and piece_fits(parts[0], pattern[0]) and fits(parts[1:], pattern[1:])

    path, text = "/" + "/".join(parts), "/" + "/".join(pattern)
    if pattern:
        assert is_allowed(path.encode(), (text,)) == fits(parts, pattern)


@given(st.text(alphabet="/ab.%2ef;\\*", max_size=40))
@settings(max_examples=300, deadline=None)
def test_allowed_path_stays_below_its_pattern_when_a_server_normalises_it(text: str) -> None:
    import posixpath
    from urllib.parse import unquote

    path = ("/repos/acme/" + text).encode()
    if is_allowed(path, ACME):
        once = unquote(path.decode())
        for read in (path.decode(), once, unquote(once)):
            assert posixpath.normpath(read.replace("\\", "/")).startswith("/repos/acme")


@pytest.mark.parametrize("pattern", ["/**", "/", "/a/*", "/a/*.json", "/a/**/b", "/a%20b", "/*"])
def test_pattern_is_accepted(pattern: str) -> None:
    assert find_pattern_fault(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "a", "**", "/a**", "/**a", "/***", "/a//b", "/..", "/a;b", "/é", "/a\n", "/a%2f"),
        "/a" * 33,
    ],
)
def test_pattern_is_refused(pattern: str) -> None:
    assert find_pattern_fault(pattern)


# -- hosts -----------------------------------------------------------------------------------------

HOSTS = ("*.wikipedia.org:443", "data.gov:443", "10.0.0.5:8080", "[fd00::5]:80")


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("en.wikipedia.org", 443),
        ("a.b.wikipedia.org", 443),
        ("data.gov", 443),
        ("10.0.0.5", 8080),
        ("fd00::5", 80),
    ],
)
def test_host_is_allowed(host: str, port: int) -> None:
    assert is_host_allowed(host, port, HOSTS)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("wikipedia.org", 443),
        ("evilwikipedia.org", 443),
        ("en.wikipedia.org", 80),
        ("en.wikipedia.org.", 443),
        ("en.wikipedia.org.evil.example", 443),
        ("evil.example\0.wikipedia.org", 443),
        ("evil.example/.wikipedia.org", 443),
        (".wikipedia.org", 443),
        ("data.gov", 4430),
        ("x.data.gov", 443),
        ("010.0.0.5", 8080),
        ("10.0.0.5", 80),
        ("", 443),
    ],
)
def test_host_is_not_allowed(host: str, port: int) -> None:
    assert not is_host_allowed(host, port, HOSTS)


def test_authority_is_split() -> None:
    assert split_authority("Data.GOV:443") == ("data.gov", 443)
    assert split_authority("[fd00::5]:80") == ("fd00::5", 80)
    assert split_authority("10.0.0.5:65535") == ("10.0.0.5", 65535)


@pytest.mark.parametrize(
    "authority",
    [
        *("", ":", "data.gov", "data.gov:", ":443", "data.gov:0", "data.gov:65536", "data.gov:+1"),
        *("data.gov:0443", "data.gov: 443", "data.gov:443 ", "data.gov:4_4", "data.gov:443\n"),
        *("u@data.gov:443", "u:p@data.gov:443", "http://data.gov:443", "data.gov:443/", "a b:1"),
        *("data.gov.:443", "data..gov:443", "-a.gov:443", "a-.gov:443", "xn--é.gov:1", "é.gov:1"),
        *(
            "0177.0.0.1:80",
            "0x7f.0.0.1:80",
            "127.1:80",
            "2130706433:80",
            "0x7f000001:80",
            "127.0.0.1",
        ),
        *("::1:80", "[::1]", "[::1]80", "[::1%lo]:80", "[0::1]:80", "[127.0.0.1]:80", "[a.b]:80"),
        *("[::1:80", "::1]:80", "data.gov\0:80", "data.gov\\:80", "data.gov#:80", "data.gov?:80"),
        *("data.gov:\u0664\u0664\u0663", "a" * 64 + ".gov:443", "a." * 127 + "gov:443"),
    ],
)
def test_authority_is_refused(authority: str) -> None:
    assert split_authority(authority) is None


@pytest.mark.parametrize("name", ["a", "a.b", "xn--bcher-kva.example", "_x.example", "a1.2b"])
def test_name_of_a_host(name: str) -> None:
    assert is_host_name(name)


@pytest.mark.parametrize(
    "pattern", ["*.*.org:1", "*:443", "*.org:443", "a.*:443", "*.10.0.0.1:443"]
)
def test_host_pattern_is_refused(pattern: str) -> None:
    assert not is_host_pattern(pattern)
