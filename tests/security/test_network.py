"""The network: a kernel reaches nothing, and each attempt fails at once instead of waiting."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .inside import Kernel, Neighbour

pytestmark = pytest.mark.usefixtures("unharmed")

SOON = 2.0
"""Seconds that an attempt may take on a busy machine. A timeout of TCP or DNS takes longer."""

UNREACHABLE = {"ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "ENETDOWN"}
FORBIDDEN = {"EPERM", "EACCES"}
UNKNOWN = {"EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "EINVAL", "ENOSYS"}

TOOLS = """
def connect(address, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as one:
        one.settimeout(30)
        one.connect(address)
        if kind == socket.SOCK_DGRAM:
            one.send(b"x")

def send(address, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        one.sendto(b"x", address)

def timed(action):
    begun = time.monotonic()
    return [refused(action), time.monotonic() - begun]

def ask(protocol, kind, flags, payload=b""):
    '''The answer of netlink; raises OSError for an error in it.'''
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as one:
        one.settimeout(5)
        one.bind((0, 0))
        one.send(struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload)
        answer = one.recv(65536)
    if struct.unpack_from("=H", answer, 4) == (2,):
        code = -struct.unpack_from("=i", answer, 16)[0]
        if code:
            raise OSError(code, "netlink")
    return answer
"""

ATTACKS = {
    "dns lookup": ("socket.getaddrinfo('example.org', 443)", None),
    "dns server of the internet": ("send(('8.8.8.8', 53))", UNREACHABLE),
    "dns server of the machine": ("connect(('127.0.0.53', 53))", {"ECONNREFUSED"}),
    "tcp": ("connect(('1.1.1.1', 443))", UNREACHABLE),
    "tcp to a private network": ("connect(('10.0.0.1', 22))", UNREACHABLE),
    "tcp to a container network": ("connect(('172.17.0.1', 2375))", UNREACHABLE),
    "udp": ("connect(('1.1.1.1', 443), kind=socket.SOCK_DGRAM)", UNREACHABLE),
    "udp broadcast": ("send(('255.255.255.255', 67))", UNREACHABLE),
    "udp multicast": ("send(('224.0.0.251', 5353))", UNREACHABLE),
    "ipv6 tcp": ("connect(('2606:4700::1111', 443), socket.AF_INET6)", UNREACHABLE),
    "ipv6 udp": ("send(('2606:4700::1111', 53), socket.AF_INET6)", UNREACHABLE),
    "ipv4 in ipv6": ("connect(('::ffff:1.1.1.1', 443), socket.AF_INET6)", UNREACHABLE),
    "metadata of a cloud": ("connect(('169.254.169.254', 80))", UNREACHABLE),
    "metadata of a cloud, ipv6": ("connect(('fd00:ec2::254', 80), socket.AF_INET6)", UNREACHABLE),
    "metadata of containers": ("connect(('169.254.170.2', 80))", UNREACHABLE),
    "icmp": (
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1).sendto(b'x', ('1.1.1.1', 0))",
        UNREACHABLE | FORBIDDEN | UNKNOWN,
    ),
    "raw icmp": ("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", FORBIDDEN),
    "raw tcp": ("socket.socket(socket.AF_INET, socket.SOCK_RAW, 6)", FORBIDDEN),
    "raw ip": ("socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)", FORBIDDEN),
    "raw ipv6": ("socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)", FORBIDDEN),
    "packets": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x300)", FORBIDDEN),
    "vsock to the hypervisor": ("connect((2, 1024), 40)", UNKNOWN),
    "bluetooth": ("socket.socket(31, socket.SOCK_RAW, 1)", UNKNOWN),
    "the kernel's crypto": ("socket.socket(38, socket.SOCK_SEQPACKET, 0)", UNKNOWN),
    "express data path": ("socket.socket(44, socket.SOCK_RAW, 0)", UNKNOWN),
    "key management": ("socket.socket(15, socket.SOCK_RAW, 2)", UNKNOWN),
    "can bus": ("socket.socket(29, socket.SOCK_RAW, 1)", UNKNOWN),
    "tipc": ("socket.socket(30, socket.SOCK_STREAM, 0)", UNKNOWN),
    "an address of the host": ("socket.socket().bind(('10.0.0.1', 8888))", UNREACHABLE),
    "a device": ("socket.socket().setsockopt(1, 25, b'eth0')", {"ENODEV", "EPERM", "EINVAL"}),
}
"""The attempts and the errors that are expected; None: any error of the resolver."""


@pytest.mark.parametrize("attack", ATTACKS)
def test_network_access_fails_at_once(kernel: Kernel, attack: str) -> None:
    code, expected = ATTACKS[attack]
    error, seconds = kernel.run(TOOLS + f"\nfound = timed(lambda: {code})")
    assert error is not None, "it succeeded"
    assert expected is None or error in expected
    assert seconds < SOON


def test_network_access_fails_as_namespace_root(kernel: Kernel) -> None:
    """Every capability in a network namespace of its own gives no way out."""
    attacks = {
        name: ATTACKS[name][0]
        for name in ("tcp", "udp", "ipv6 tcp", "metadata of a cloud", "dns lookup")
    }
    code = (
        TOOLS
        + """
found = {name: refused(lambda: eval(attack)) for name, attack in json.loads(sys.argv[1])[0].items()}
print(json.dumps([found, [name for _, name in socket.if_nameindex()]]))
"""
    )
    found, devices = kernel.run(f"found = as_root_of_a_namespace({code!r}, {attacks!r})")
    assert [name for name, error in found.items() if error is None] == []
    assert set(devices) <= {"lo"}


def test_link_local_address_is_unreachable(kernel: Kernel) -> None:
    """Through the loopback interface, where nothing answers: the only attempt that would wait."""
    found = kernel.run("""
        with socket.socket(socket.AF_INET6) as one:
            one.settimeout(0.3)
            try:
                one.connect(("fe80::1", 80, 0, 1))
            except OSError as error:
                found = str(error)
    """)
    assert found


def test_only_loopback_interface_exists(kernel: Kernel) -> None:
    found = kernel.run("""
        found = {
            "interfaces": [name for _, name in socket.if_nameindex()],
            "routes": Path("/proc/net/route").read_text().splitlines()[1:],
            "resolver": Path("/etc/resolv.conf").exists(),
        }
    """)
    assert found["interfaces"] == ["lo"]
    assert not [line for line in found["routes"] if not line.startswith("lo")]
    assert found["resolver"] is False


@contextmanager
def listening(
    family: socket.AddressFamily, kind: socket.SocketKind, address: object
) -> Iterator[socket.socket]:
    with socket.socket(family, kind) as server:
        server.bind(address)  # type: ignore[arg-type]
        if kind != socket.SOCK_DGRAM:
            server.listen()
        server.setblocking(False)
        yield server


def heard(server: socket.socket) -> bool:
    """Whether anything connected or sent a datagram."""
    try:
        if server.type == socket.SOCK_DGRAM:
            server.recv(1)
        else:
            server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "127.1.2.3"])  # noqa: S104
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_host_loopback_services_are_unreachable(
    kernel: Kernel, host: str, kind: socket.SocketKind
) -> None:
    """For example Jupyter itself."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if family == socket.AF_INET6 and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    try:
        server = listening(family, kind, (host, 0))
        with server as at:
            port = at.getsockname()[1]
            target = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104
            code = f"connect(({target!r}, {port}), {int(family)}, {int(kind)})"
            found = kernel.run(TOOLS + f"\nfound = timed(lambda: {code})")
            if kind == socket.SOCK_STREAM:
                assert found[0] in {"ECONNREFUSED", *UNREACHABLE}
            assert found[1] < SOON
            assert not heard(at)
    except OSError as error:
        if error.errno in (97, 99):
            pytest.skip("this machine has no IPv6")
        raise


def test_neighbour_services_are_unreachable(kernel: Kernel, neighbour: Neighbour) -> None:
    port = neighbour.kernel.run("""
        server = socket.create_server(("127.0.0.1", 0))
        server.setblocking(False)
        found = server.getsockname()[1]
    """)
    try:
        code = f"connect(('127.0.0.1', {port}))"
        assert kernel.run(TOOLS + f"\nfound = refused(lambda: {code})") == "ECONNREFUSED"
        assert neighbour.kernel.run("found = refused(server.accept)") == "EAGAIN"
    finally:
        neighbour.kernel.run("server.close(); found = None")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_host_abstract_sockets_are_unreachable(kernel: Kernel, kind: socket.SocketKind) -> None:
    name = f"\0gk-test-{os.getpid()}-{int(kind)}"
    with listening(socket.AF_UNIX, kind, name) as server:
        code = f"connect({name!r}, socket.AF_UNIX, {int(kind)})"
        assert kernel.run(TOOLS + f"\nfound = refused(lambda: {code})") == "ECONNREFUSED"
        assert not heard(server)


def test_abstract_socket_inside_is_not_visible_on_host(kernel: Kernel) -> None:
    """A program of the host cannot be made to connect to a name that a kernel has bound."""
    name = f"gk-test-{os.getpid()}-lure"
    kernel.run(f"lure = socket.socket(socket.AF_UNIX); lure.bind({chr(0) + name!r}); found = 0")
    try:
        assert name not in Path("/proc/net/unix").read_text()
    finally:
        kernel.run("lure.close(); found = 0")


@pytest.mark.parametrize("where", ["uploads", "outputs"])
def test_host_path_sockets_are_unreachable(kernel: Kernel, where: str) -> None:
    """A Unix socket in a shown folder is visible inside, but connecting to it fails."""
    folder = kernel.folder if where == "uploads" else kernel.folder / "outputs"
    # A socket's path has at most 107 bytes, so it is bound through an open directory.
    at = os.open(folder, os.O_RDONLY)
    try:
        with listening(socket.AF_UNIX, socket.SOCK_STREAM, f"/proc/self/fd/{at}/s") as server:
            found = kernel.run(f"""
                found = [
                    refused(lambda: socket.socket(socket.AF_UNIX).connect(path))
                    for path in ("/mnt/user-data/{where}/s", "/workspace/s")
                ]
            """)
            assert not heard(server)
            os.unlink("s", dir_fd=at)
    finally:
        os.close(at)
    assert None not in found


def test_socket_in_outputs_is_not_created_on_host(kernel: Kernel) -> None:
    """A socket that is bound inside must not appear on the host, where others could connect."""
    kernel.run("""
        found = refused(lambda: socket.socket(socket.AF_UNIX).bind("/mnt/user-data/outputs/lure"))
    """)
    assert not (kernel.folder / "outputs" / "lure").is_socket()


def test_netlink_shows_and_changes_nothing_of_the_host(kernel: Kernel) -> None:
    found = kernel.run(
        TOOLS
        + """
no_link = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0)
links = ask(0, 18, 0x301, no_link)
address = struct.pack("=BBBBI", 2, 24, 0, 0, 1) + struct.pack("=HH4s", 8, 2, b"\\n\\0\\0\\1")
link = no_link + struct.pack("=HH4s", 8, 3, b"x\\0\\0\\0")
route = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0)
found = {
    "names": [name for name in ("lo", "eth0", "docker0", "wlan0") if name.encode() in links],
    "add an address": refused(lambda: ask(0, 20, 0x605, address)),
    "add a link": refused(lambda: ask(0, 16, 0x605, link)),
    "add a route": refused(lambda: ask(0, 24, 0x605, route)),
}
others = {"firewall": 12, "audit": 9, "selinux": 7, "connector": 11, "scsi": 18}
for name, protocol in others.items():
    found[name] = refused(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol))
"""
    )
    assert found.pop("names") == ["lo"]
    assert [what for what, error in found.items() if error is None] == []


def test_host_device_events_are_not_received(kernel: Kernel) -> None:
    """The netlink socket for them exists inside; nothing arrives on it."""
    found = kernel.run("""
        try:
            events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
        except OSError as error:
            found = errno.errorcode[error.errno]
        else:
            found = refused(lambda: events.bind((0, 0xffffffff)))
            if found is None:
                found = bool(select.select([events], [], [], 0.05)[0])
            events.close()
    """)
    assert found in (False, "EPROTONOSUPPORT", "ENOTSUP", "EPERM", "EACCES")


def test_host_sockets_are_not_listed(kernel: Kernel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        table = Path("/proc/net/tcp").read_text()
        assert f":{port:04X} " in table
        found = kernel.run("""
            found = [Path(p).read_text() for p in glob.glob("/proc/net/*")
                     if os.path.isfile(p) and refused(lambda: open(p).close()) is None]
        """)
    assert f":{port:04X} " not in json.dumps(found)
