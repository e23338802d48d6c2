"""Events and their payloads: each decodes to what was encoded, and nothing else is accepted."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from gvisor_kernel.link import (
    Channel,
    Connection,
    Exited,
    Hello,
    IdleQuery,
    IdleReply,
    LocalProtocolError,
    Log,
    LogSource,
    Message,
    Ping,
    Pong,
    RemoteProtocolError,
    Resume,
    Resumed,
    Signal,
    Start,
    Started,
    Stats,
    Trim,
)
from gvisor_kernel.link.frames import MAX_PAYLOAD, FrameType
from gvisor_kernel.link.state import Role, State

from .helpers import RESUME, START, connected_pair, connection_in, events, raw

ODD_TEXT = 'tab\t quote" nul\0 ü \U0001f600 \udc80'
"""Text that an environment may contain. A byte that is not UTF-8 shows as a lone surrogate."""

EVENTS = [
    Hello(),
    Hello(1, (("release", "1.2"), ("", ""), ("python", "3.9 ü\0"))),
    START,
    Start(0, ("",), (), "", ""),
    Start(2**32 - 1, (ODD_TEXT,), ((ODD_TEXT, ODD_TEXT),), ODD_TEXT, ODD_TEXT, "hmac-sha512"),
    Started(0),
    Started(2**32 - 1),
    RESUME,
    Resume(2**32 - 1, ((ODD_TEXT, ODD_TEXT),), ODD_TEXT, "", "00"),
    Resumed(7, True),
    Resumed(0, False),
    IdleQuery(2**32 - 1),
    IdleReply(1, True),
    IdleReply(2**32 - 1, False),
    IdleReply(1, False, unknown=True),
    Trim(2**32 - 1),
    Signal(1, 1),
    Signal(1, 64),
    Exited(1, 0),
    Exited(1, 255),
    Exited(1, -64),
    Stats(0, 0, 0),
    Stats(2**32 - 1, 2**32 - 1, 2**64 - 1),
    Ping(0),
    Ping(2**64 - 1),
    Pong(2**64 - 1),
]


@pytest.mark.parametrize("event", EVENTS, ids=repr)
def test_payload_decodes_to_the_encoded_event(event: Hello | Start | Stats) -> None:
    assert type(event).decode(event.encode()) == event


def test_payload_layouts_are_fixed() -> None:
    assert Started(1).encode().hex() == "00000001"
    assert Signal(1, 2).encode().hex() == "0000000102"
    assert Exited(1, -9).encode().hex() == "00000001fffffff7"
    assert Stats(1, 2, 3).encode().hex() == "00000001000000020000000000000003"
    assert Ping(5).encode().hex() == Pong(5).encode().hex() == "0000000000000005"
    assert json.loads(Hello(facts=(("a", "b"),)).encode()) == {
        "protocol": "gvisor-kernel-link",
        "version": 10,
        "facts": {"a": "b"},
    }
    assert json.loads(START.encode()) == {
        "run": 1,
        "argv": ["python3", "-m", "x"],
        "environment": {"HOME": "/home/user"},
        "cwd": "/workspace",
        "key": "secret",
        "signature_scheme": "hmac-sha256",
        "egress": True,
    }


@pytest.mark.parametrize(
    ("kind", "size"),
    [(Started, 4), (Signal, 5), (Trim, 4), (Exited, 8), (Stats, 16), (Ping, 8), (Pong, 8)],
)
def test_binary_payload_of_wrong_length_is_refused(kind: type[Started], size: int) -> None:
    for wrong in {0, size - 1, size + 1, MAX_PAYLOAD}:
        with pytest.raises(RemoteProtocolError, match=f"has {wrong} bytes; {size} are expected"):
            kind.decode(bytes(wrong))


@pytest.mark.parametrize("number", [0, 65, 255])
def test_signal_number_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(RemoteProtocolError, match="SIGNAL has the number"):
        Signal.decode(b"\0\0\0\1" + bytes([number]))


@pytest.mark.parametrize("status", [256, -65, 2**31 - 1, -(2**31)])
def test_exit_status_out_of_range_is_refused(status: int) -> None:
    with pytest.raises(RemoteProtocolError, match="EXIT has the status"):
        Exited.decode(b"\0\0\0\1" + status.to_bytes(4, "big", signed=True))


def change_payload(payload: bytes, **values: object) -> bytes:
    """Return a JSON payload with other values; ``...`` removes a key."""
    body = {**json.loads(payload), **values}
    return json.dumps({key: value for key, value in body.items() if value is not ...}).encode()


NOT_OBJECTS = [
    b"",
    b"\xff",
    b"null",
    b"[]",
    b'"text"',
    b"1",
    b"{",
    b"{} {}",
    b"\xef\xbb\xbf{}",
    "{}".encode("utf-16"),
    b"[" * MAX_PAYLOAD,
    b'{"a":' * (MAX_PAYLOAD // 5),
    b"9" * MAX_PAYLOAD,
]
NOT_NUMBERS: list[object] = [..., None, "1", 1.0, True, -1, 2**32, [], float("inf"), float("nan")]
NOT_TEXT: list[object] = [..., None, 1, [], {}, ["x"]]


@pytest.mark.parametrize("kind", [Hello, Start])
@pytest.mark.parametrize("payload", NOT_OBJECTS, ids=lambda payload: repr(payload[:8]))
def test_payload_without_json_object_is_refused(kind: type[Hello], payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        kind.decode(payload)


def one_key_each(name: str, values: Iterable[object]) -> list[dict[str, object]]:
    return [{name: value} for value in values]


INVALID_STARTS = [
    *one_key_each("run", NOT_NUMBERS),
    *one_key_each("cwd", NOT_TEXT),
    *one_key_each("key", NOT_TEXT),
    *one_key_each("signature_scheme", NOT_TEXT),
    *one_key_each("egress", (..., None, 0, 1, "true", [])),
    *one_key_each("argv", (..., None, [], {}, "python3", [1], ["x", None])),
    *one_key_each("environment", (..., None, [], "A=1", {"A": 1}, {"A": None})),
]
INVALID_HELLOS = [
    *one_key_each("version", NOT_NUMBERS),
    *one_key_each("protocol", (..., None, "", "jupyter", 1)),
    *one_key_each("facts", (None, [], "x", {"a": 1}, {"a": None}, {"a": ["b"]})),
    *one_key_each("facts", ({"a": "\ud800"}, {"\udfff": "b"})),
]


@pytest.mark.parametrize("wrong", INVALID_STARTS, ids=repr)
def test_start_with_an_invalid_field_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError):
        Start.decode(change_payload(START.encode(), **wrong))


@pytest.mark.parametrize("wrong", INVALID_HELLOS, ids=repr)
def test_hello_with_an_invalid_field_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError):
        Hello.decode(change_payload(Hello().encode(), **wrong))


def test_unknown_keys_are_ignored() -> None:
    assert Hello.decode(change_payload(Hello().encode(), extra=[1])) == Hello()
    assert Start.decode(change_payload(START.encode(), extra={})) == START
    assert Resume.decode(change_payload(RESUME.encode(), extra=None)) == RESUME


@pytest.mark.parametrize("key", ["run", "environment", "cwd", "key", "seed", "egress"])
@pytest.mark.parametrize("wrong", [None, [], -1, {"a": 1}], ids=repr)
def test_resume_with_an_invalid_field_is_refused(key: str, wrong: object) -> None:
    with pytest.raises(RemoteProtocolError):
        Resume.decode(change_payload(RESUME.encode(), **{key: wrong}))


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 2**32 - 1])
@pytest.mark.parametrize("role", Role)
def test_other_version_is_refused_with_both_versions(role: Role, version: int) -> None:
    end = Connection(role, Hello())
    with pytest.raises(
        RemoteProtocolError, match=f"speaks version {version} .* this side speaks 10"
    ):
        end.receive_data(raw(FrameType.HELLO, Hello(version).encode()))


def test_credit_of_wrong_length_is_refused() -> None:
    for stream in (
        raw(FrameType.CREDIT, bytes(3), Channel.HB),
        raw(FrameType.CREDIT, bytes(5), Channel.HB),
    ):
        with pytest.raises(RemoteProtocolError):
            connection_in(Role.GUEST, State.IDLE).receive_data(stream)


ANY_LOG = [b"", b"\xff\xfe\0", b"\xed\xa0\x80", b"\x1b[2J\r\n\a", bytes(range(256)), b"\xf0\x9f"]


@pytest.mark.parametrize("text", ANY_LOG, ids=repr)
@pytest.mark.parametrize("source", LogSource)
def test_log_with_any_bytes_decodes_to_text(source: LogSource, text: bytes) -> None:
    host = connection_in(Role.HOST, State.IDLE)
    host.receive_data(raw(FrameType.LOG, text, source))
    (log,) = events(host)
    assert isinstance(log, Log)
    assert log.source is source
    assert log.text.encode("utf-8") == text.decode("utf-8", "replace").encode("utf-8")


def test_long_log_is_cut_to_one_frame() -> None:
    host, guest = connected_pair()
    guest.send_log(LogSource.STDOUT, "ü" * MAX_PAYLOAD)
    guest.send_log(LogSource.STDERR, "lone \ud800")
    host.receive_data(guest.data_to_send())
    first, second = events(host)
    assert first == Log(LogSource.STDOUT, "ü" * (MAX_PAYLOAD // 2))
    assert second == Log(LogSource.STDERR, "lone ?")


UNSENDABLE = [
    (Role.HOST, Signal(1, 0)),
    (Role.HOST, Signal(1, 65)),
    (Role.HOST, Signal(1, 256)),
    (Role.HOST, Signal(2, 15)),
    (Role.HOST, Ping(-1)),
    (Role.GUEST, Exited(1, 256)),
    (Role.GUEST, Exited(1, -65)),
    (Role.GUEST, Exited(2, 0)),
    (Role.GUEST, Started(2)),
    (Role.GUEST, Stats(-1, 0, 0)),
    (Role.GUEST, Stats(0, 0, 2**64)),
]


@pytest.mark.parametrize(("role", "event"), UNSENDABLE, ids=repr)
def test_event_that_the_peer_would_refuse_is_not_sent(role: Role, event: Ping) -> None:
    end = connection_in(role, State.RUNNING)
    with pytest.raises(LocalProtocolError):
        end.send(event)
    assert end.state is State.RUNNING
    assert end.run == 1
    assert end.data_to_send() == b""


UNSENDABLE_STARTS = {
    "no argv": Start(1, (), (), "/", "k"),
    "no number": Start(-1, ("x",), (), "/", "k"),
    "too long": Start(1, ("x" * MAX_PAYLOAD,), (), "/", "k"),
}


@pytest.mark.parametrize("start", UNSENDABLE_STARTS.values(), ids=UNSENDABLE_STARTS.keys())
def test_start_that_cannot_be_sent_changes_no_state(start: Start) -> None:
    host = connection_in(Role.HOST, State.IDLE)
    with pytest.raises(LocalProtocolError):
        host.send(start)
    assert host.state is State.IDLE
    assert host.run is None
    assert host.data_to_send() == b""


def test_repr_of_events_contains_no_secrets_or_bodies() -> None:
    assert "secret" not in repr(START)
    assert "/home/user" not in repr(START)
    assert "secret" not in repr(RESUME)
    assert "0000" not in repr(RESUME)
    message = Message(Channel.IOPUB, [b"body"], 266, 1)
    assert repr(message) == "<Message iopub 1 parts 266 bytes>"
