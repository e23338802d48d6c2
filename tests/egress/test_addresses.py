"""Addresses that a route may not reach, in all forms, and names that lead to them."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket

import pytest

from gvisor_kernel.egress import addresses
from gvisor_kernel.egress.addresses import METADATA, NameResolver, judge, make_name_threads, resolve
from gvisor_kernel.errors import EgressError, EgressRefused

PUBLIC = "93.184.216.34"
PUBLIC_6 = "2606:2800:220:1:248:1893:25c8:1946"

PRIVATE = [
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1"),
    *("100.64.0.1", "100.127.255.255", "fc00::1", "fd12:3456::1"),
]
NEVER = [
    *("0.0.0.0", "0.1.2.3", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.51.100.1"),  # noqa: S104
    *("203.0.113.1", "198.18.0.1", "192.0.0.1", "224.0.0.1", "239.255.255.250"),
    *("169.254.0.1", "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16"),
    *("fd00:ec2::254", "fd20:ce::254", "::", "fe80::1", "febf::1", "fec0::1", "ff02::1", "ff0e::1"),
    *("2001:db8::1", "100::1", "2001:10::1", "2001:2::1", "4000::1", "5f00::1", "3fff::1"),
    *("::7f00:1", "::5db8:d822", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:5db8:d822"),
    *("::ffff:0:7f00:1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe"),
    *("64:ff9b::6464:64c8", "64:ff9b:1::7f00:1", "64:ff9b:1::5db8:d822", "2002:7f00:1::1"),
    *("2002:5db8:d822::1", "2001:0:5db8:d822::1", "2001::1"),
    *("2606:2800::5efe:7f00:1", "2606:2800::200:5efe:7f00:1", "fd00::5efe:7f00:1"),
]
OWN = ["127.0.0.1", "127.0.0.53", "127.255.255.255", "::1"]
FORMS = [
    *("", " ", "localhost", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "127.1", "127"),
    *("127.0.1", "127.0.0.01", "127.0.0.1 ", "127.0.0.1\n", "127.0.0.1:80", "[::1]", "fe80::1%lo"),
    *(
        "::1%1",
        "0:0:0:0:0:0:0:1",
        "::0001",
        "::FFFF:7F00:1",
        "127\u30020\u30020\u30021",
        "\uff11\uff12\uff17.0.0.1",
        "::1\0",
    ),
    *("93.184.216.34.", "93.184.216.034", "2606:2800::1%eth0", "93.184.216.34/32", "1.2.3"),
]


@pytest.mark.parametrize("address", [PUBLIC, PUBLIC_6, "1.1.1.1", "64:ff9b::5db8:d822"])
def test_public_address_is_allowed(address: str) -> None:
    assert judge(address, False) is None
    assert judge(address, True) is None


@pytest.mark.parametrize("address", PRIVATE)
def test_private_address_needs_allow_private(address: str) -> None:
    assert judge(address, False) == "is a private address"
    assert judge(address, True) is None or addresses.is_own(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", [*NEVER, *sorted(map(str, METADATA))])
def test_address_is_refused_whatever_the_route_allows(address: str) -> None:
    for allow_private in (False, True):
        for literal in (False, True):
            assert judge(address, allow_private, literal=literal) is not None


@pytest.mark.parametrize("address", OWN)
def test_loopback_needs_to_be_written_in_the_route(address: str) -> None:
    assert judge(address, False) is not None
    assert judge(address, True) is not None
    assert judge(address, False, literal=True) is not None
    assert judge(address, True, literal=True) is None


@pytest.mark.parametrize("address", FORMS)
def test_unusual_form_is_refused(address: str) -> None:
    assert judge(address, True, literal=True) == "is not an address in its usual form"


def own_addresses() -> set[str]:
    """Return the addresses of this machine's interfaces, from /proc."""
    found: set[str] = set()
    leaf = ""
    with open("/proc/net/fib_trie") as lines:
        for line in lines:
            words = line.split()
            leaf = words[1] if words[:1] == ["|--"] else leaf
            if "LOCAL" in words and words[0] == "/32":
                found.add(leaf)
    return found


def test_own_addresses_are_refused() -> None:
    found = own_addresses()
    assert "127.0.0.1" in found
    for address in found:
        assert addresses.is_own(ipaddress.ip_address(address)), address
        assert judge(address, True) is not None, address


def test_public_address_of_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "is_own", lambda address: str(address) == PUBLIC)
    assert judge(PUBLIC, True) == "is an address of this machine"
    assert judge(PUBLIC, True, literal=True) is None


def test_other_addresses_are_not_own() -> None:
    for address in (PUBLIC, PUBLIC_6):
        assert not addresses.is_own(ipaddress.ip_address(address))


def test_address_that_cannot_be_checked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a kernel that uses up the descriptors of the process could reach this machine."""

    def fail(*_: object) -> socket.socket:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket, "socket", fail)
    code = errno.EMFILE
    assert judge(PUBLIC, False) == "could not be checked: Too many open files"
    code = errno.EAFNOSUPPORT
    assert judge(PUBLIC_6, False) is None


class FakeResolver:
    """A resolver whose answers are given; it counts how often it is asked."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self.answers.pop(0)


def run(host: str, resolver: FakeResolver, *, allow_private: bool = False) -> list[str]:
    return asyncio.run(resolve(host, 443, resolver, allow_private=allow_private))


def test_name_is_resolved_once_and_each_address_is_returned_once() -> None:
    resolver = FakeResolver([PUBLIC, PUBLIC_6, PUBLIC])
    assert run("example.org", resolver) == [PUBLIC, PUBLIC_6]
    assert resolver.asked == [("example.org", 443)]


@pytest.mark.parametrize(
    "answer",
    [[bad] for bad in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1")]
    + [[bad] for bad in ("64:ff9b::7f00:1", "fd00:ec2::254", "0.1.2.3", "224.0.0.1")]
    + [
        [PUBLIC, "127.0.0.1"],
        ["10.0.0.1", PUBLIC],
        [PUBLIC_6, PUBLIC, "fe80::1"],
        ["fe80::1%eth0"],
    ],
)
def test_one_bad_address_refuses_the_name(answer: list[str]) -> None:
    with pytest.raises(EgressRefused) as caught:
        run("example.org", FakeResolver(answer))
    assert "example.org" in str(caught.value)
    assert "allow_private" in caught.value.hint
    assert not any(f" {address} " in str(caught.value) for address in answer)


def test_name_that_resolves_anew_is_judged_anew() -> None:
    resolver = FakeResolver([PUBLIC], ["127.0.0.1"], [PUBLIC])
    assert run("example.org", resolver) == [PUBLIC]
    with pytest.raises(EgressRefused, match="loopback"):
        run("example.org", resolver)
    assert run("example.org", resolver) == [PUBLIC]


def test_private_name_needs_allow_private() -> None:
    with pytest.raises(EgressRefused, match="private"):
        run("wiki.corp.example", FakeResolver(["10.1.2.3"]))
    found = run("wiki.corp.example", FakeResolver(["10.1.2.3"]), allow_private=True)
    assert found == ["10.1.2.3"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_name_never_leads_to_loopback(address: str) -> None:
    """Else a route to an intranet would open the Jupyter server of this machine."""
    with pytest.raises(EgressRefused, match="loopback"):
        run("wiki.corp.example", FakeResolver([address]), allow_private=True)


def test_written_address_is_not_resolved() -> None:
    resolver = FakeResolver()
    assert run("127.0.0.1", resolver, allow_private=True) == ["127.0.0.1"]
    with pytest.raises(EgressRefused, match=r"127\.0\.0\.1 is a loopback"):
        run("127.0.0.1", resolver)
    assert resolver.asked == []


@pytest.mark.parametrize(
    "host", [*FORMS[3:], "a_b..c", "-a.b", "a" * 64 + ".org", "a.org.", "A.org"]
)
def test_host_that_is_no_name_is_never_resolved(host: str) -> None:
    resolver = FakeResolver()
    with pytest.raises(EgressRefused):
        run(host, resolver, allow_private=True)
    assert resolver.asked == []


def test_too_many_addresses_are_refused() -> None:
    with pytest.raises(EgressRefused, match="65 addresses"):
        run("example.org", FakeResolver([f"93.184.216.{i}" for i in range(65)]))


def test_name_without_address_is_an_error() -> None:
    with pytest.raises(EgressError, match="has no address"):
        run("example.org", FakeResolver([]))

    async def failing(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(EgressError, match="does not resolve"):
        asyncio.run(resolve("example.org", 443, failing))


def test_resolver_that_never_answers_ends_with_an_error() -> None:
    async def silent(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(EgressError, match="did not resolve"):
        asyncio.run(resolve("example.org", 443, silent, seconds=0.01))


def test_localhost_of_this_machine_is_refused() -> None:
    async def system_resolver(host: str, port: int) -> list[str]:
        with make_name_threads() as threads:
            return await NameResolver(threads).resolve(host, port)

    with pytest.raises(EgressRefused, match="loopback"):
        asyncio.run(resolve("localhost", 80, system_resolver, allow_private=True))
