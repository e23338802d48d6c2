"""What a kernel may make a front end do, message by message; in a browser: tests/browser."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gvisor_kernel.bridge.doors import (
    MAX_CELL,
    MAX_MATCHES,
    MAX_SIZE,
    NOTHING,
    AllowedEffects,
    guard,
    opens_widget,
    read_request,
)
from gvisor_kernel.bridge.wire import WireMessage, new_message

MARKUP = "<img src=x onerror=alert(1)>"


def request(kind: str, **content: Any) -> WireMessage:
    return new_message(kind, content, b"{}", b"")


def pass_on(
    kind: str, content: dict[str, Any], asked: AllowedEffects = NOTHING
) -> dict[str, Any] | None:
    passed = guard(new_message(kind, content, b"{}", b""), asked)
    return None if passed is None else dict(json.loads(bytes(passed.content)))


def payloads(code: str, *sent: dict[str, Any]) -> list[dict[str, Any]]:
    reply = {"status": "ok", "execution_count": 1, "user_expressions": {}, "payload": [*sent]}
    passed = pass_on("execute_reply", reply, read_request(request("execute_request", code=code)))
    assert passed is not None
    assert passed | {"payload": []} == reply | {"payload": []}
    return list(passed["payload"])


@pytest.mark.parametrize(
    "code", ["%load a.py", "x = 1\n%loadpy a", "load a.py", "%recall 1", "f.set_next_input('x')"]
)
def test_a_cell_that_asks_for_a_text_gets_it(code: str) -> None:
    text = {"source": "set_next_input", "text": "x = 1\u202e", "replace": True}

    assert payloads(code, text) == [text | {"text": "x = 1\\u202e"}]


@pytest.mark.parametrize("code", ["1 + 1", "%load_ext autoreload", "loads()", "", "a?"])
def test_no_other_cell_is_written(code: str) -> None:
    assert payloads(code, {"source": "set_next_input", "text": "x", "replace": False}) == []


def test_only_a_cell_that_says_so_ends_a_console() -> None:
    end = {"source": "ask_exit", "keepkernel": False}

    assert payloads("exit()", end) == [end]
    assert payloads("1 + 1", end) == []


def test_a_pager_shows_text() -> None:
    page = {"source": "page", "start": 0, "data": {"text/plain": "a", "text/html": MARKUP}}

    assert payloads("a?", page) == [page | {"data": {"text/plain": "a"}}]
    assert payloads("a?", page | {"data": MARKUP}) == []


@pytest.mark.parametrize("source", ["edit", "edit_magic", "load_magic", "", 7, None])
def test_no_other_payload_passes(source: object) -> None:
    assert payloads("%edit", {"source": source, "filename": "/etc/passwd"}) == []


def test_a_text_that_is_too_long_for_a_cell_is_left_out() -> None:
    text = {"source": "set_next_input", "text": "x" * (MAX_CELL + 1), "replace": True}

    assert payloads("%load a.py", text) == []


@pytest.mark.parametrize("payload", [{}, "x", [1, None, []], 7])
def test_payloads_that_are_none_are_left_out(payload: object) -> None:
    passed = pass_on("execute_reply", {"status": "ok", "payload": payload})

    assert passed == {"status": "ok", "payload": []}


def test_the_value_of_an_expression_is_text() -> None:
    data = {"text/plain": "7", "text/html": MARKUP, "application/vnd.vega.v5+json": {}}
    value = {"status": "ok", "data": data, "metadata": {"text/html": {"isolated": False}}}
    failed = {"status": "error", "ename": "NameError", "evalue": "b", "traceback": []}
    sent = {"a": value, "b": failed, "c": MARKUP}
    passed = pass_on("execute_reply", {"status": "ok", "user_expressions": sent})

    assert passed == {
        "status": "ok",
        "user_expressions": {
            "a": {"status": "ok", "data": {"text/plain": "7"}, "metadata": {}},
            "b": failed | {"data": {}, "metadata": {}},
        },
    }
    for odd in (None, [], MARKUP):
        passed = pass_on("execute_reply", {"status": "ok", "user_expressions": odd})
        assert passed == {"status": "ok", "user_expressions": {}}


def test_the_input_of_a_cell_is_a_text_and_a_number() -> None:
    sent = {"code": "1 + 1", "execution_count": 3}

    assert pass_on("execute_input", sent | {"x": MARKUP, "data": {"text/html": MARKUP}}) == sent
    assert pass_on("execute_input", sent | {"execution_count": MARKUP}) == {
        **{"code": "1 + 1", "execution_count": 0}
    }
    for code in ({"text/html": MARKUP}, [MARKUP], None, "x" * MAX_SIZE):
        assert pass_on("execute_input", {"code": code, "execution_count": 1}) is None


def test_the_number_of_a_cell_is_one() -> None:
    """It is saved in the notebook, and a page that nbconvert makes has it as markup."""
    for count, passed in ((3, 3), (None, None), (MARKUP, 0), ([[{}]], 0), (True, 0)):
        reply = {"status": "ok", "execution_count": count}
        assert pass_on("execute_reply", reply) == reply | {"execution_count": passed}


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff", b'{"a":' * 200, b" " * (MAX_SIZE + 1)])
def test_an_execution_ends_whatever_its_reply_is(text: bytes) -> None:
    message = WireMessage([], b"", b'{"msg_type": "execute_reply"}', b"{}", b"{}", text, [])
    passed = guard(message, NOTHING)

    assert passed is not None
    assert json.loads(bytes(passed.content))["status"] == "error"


@pytest.mark.parametrize(
    ("content", "passes"),
    [
        ('{"comm_id": "a", "target_name": "jupyter.widget", "target_module": null}', True),
        ('{"comm_id":"a","target_name":"jupyter.widget","data":{"x":"\\"target_name\\""}}', True),
        ('{"target_name": "victim"}', False),
        ('{"target_name": "jupyter.widget.control"}', False),
        ('{"target_name": "jupyter.widget", "target_name": "victim"}', False),
        ('{"target_name": "jupyter.widget", "target_nam\\u0065": "victim"}', False),
        ('{"target_name": "jupyter.widget", "target_module": "evil"}', False),
        ('{"target_name": "jupyter.widget", "target_module": null, "target_module": "e"}', False),
        ('{"target_name" : "victim", "x": "jupyter.widget"}', False),
        ("{}", False),
    ],
)
def test_a_comm_is_a_widgets(content: str, passes: bool) -> None:
    assert opens_widget(content.encode()) is passes


@pytest.mark.parametrize("state", ["busy", "idle", "starting"])
def test_a_kernel_says_what_it_does(state: str) -> None:
    assert pass_on("status", {"execution_state": state}) == {"execution_state": state}
    assert pass_on("status", {"execution_state": state, "x": MARKUP}) == {"execution_state": state}


@pytest.mark.parametrize("state", ["dead", "restarting", "unknown", MARKUP, 7, None, "x" * 5000])
def test_a_kernel_does_not_say_that_it_is_dead(state: object) -> None:
    assert pass_on("status", {"execution_state": state}) is None


def complete(code: str, cursor: int, **reply: Any) -> dict[str, Any]:
    asked = read_request(request("complete_request", code=code, cursor_pos=cursor))
    passed = pass_on("complete_reply", {"status": "ok", "metadata": {}, **reply}, asked)
    assert passed is not None
    return passed


def test_a_completion_passes_as_it_is() -> None:
    kind = {"start": 2, "end": 6, "text": "open", "type": "function", "signature": "(file)"}
    metadata = {"_jupyter_types_experimental": [kind]}
    reply = {"matches": ["open"], "cursor_start": 2, "cursor_end": 6, "metadata": metadata}

    assert complete("\na\u00e4open\nb", 6, **reply) == {"status": "ok", **reply}


@pytest.mark.parametrize(("begin", "end"), [(-9, 99), (0, 6), ("0", None), (5, 1), (True, 2**70)])
def test_a_completion_stays_in_its_line(begin: object, end: object) -> None:
    passed = complete("one\ntwo\nthree", 6, matches=["x"], cursor_start=begin, cursor_end=end)

    assert 4 <= passed["cursor_start"] <= 6 <= passed["cursor_end"] <= 7


def test_a_completion_inserts_what_it_shows() -> None:
    kinds = [
        {"text": "os.system('id')", "type": MARKUP * 9, "signature": "\u202e", "start": 0},
        {"text": "b", "type": "function", "start": -5, "end": 99},
    ]
    passed = complete(
        *("ab", 2),
        matches=["ab", "b\nimport os"],
        cursor_start=0,
        cursor_end=2,
        metadata={"_jupyter_types_experimental": kinds, "x": MARKUP},
    )

    assert passed["matches"] == ["ab"]
    [kind] = passed["metadata"].pop("_jupyter_types_experimental")
    assert passed["metadata"] == {}
    assert (kind["text"], kind["start"], kind["end"]) == ("ab", 0, 2)
    assert kind["signature"] == "\\u202e"
    assert len(kind["type"]) == 50


@pytest.mark.parametrize("matches", [["a"] * 10**6, ["x" * 2000], [1, None, {}], "abc", {}])
def test_odd_completions_are_left_out(matches: object) -> None:
    assert complete("a", 1, matches=matches)["matches"] == []


def test_completions_are_counted() -> None:
    assert len(complete("a", 1, matches=["a"] * (MAX_MATCHES + 9))["matches"]) == MAX_MATCHES


def test_help_is_text() -> None:
    data = {"text/html": MARKUP, "application/vnd.vega.v5+json": {}}
    found = {"status": "ok", "found": True, "metadata": {"x": MARKUP}}

    assert pass_on("inspect_reply", found | {"data": data | {"text/plain": "a"}}) == {
        **{"status": "ok", "found": True, "metadata": {}},
        "data": {"text/plain": "a"},
    }
    markdown = pass_on("inspect_reply", found | {"data": data | {"text/markdown": "*a*"}})
    assert markdown is not None
    assert markdown["data"] == {"text/plain": "*a*"}
    nothing = pass_on("inspect_reply", found | {"data": data})
    assert nothing == {"status": "ok", "found": False, "data": {}, "metadata": {}}


def test_a_question_is_short_and_hides_nothing() -> None:
    asked = pass_on("input_request", {"prompt": "\u202e" * 9999, "password": 1, "x": MARKUP})

    assert asked == {"prompt": ("\\u202e" * 9999)[:2000], "password": False}
    usual = {"prompt": "\x1b[1mName:\n\u00e4 ", "password": True}
    assert pass_on("input_request", usual) == usual


@pytest.mark.parametrize(
    "language",
    [
        {
            **{"name": "python", "version": "3.13.5", "mimetype": "text/x-python"},
            "codemirror_mode": {"name": "ipython", "version": 3},
            **{"pygments_lexer": "ipython3", "nbconvert_exporter": "python"},
            "file_extension": ".py",
        },
        {
            **{"name": "typescript", "version": "5.9.2", "mimetype": "text/x.typescript"},
            **{"codemirror_mode": "typescript", "pygments_lexer": "typescript"},
            **{"nbconvert_exporter": "script", "file_extension": ".ts"},
        },
    ],
)
def test_a_language_passes_as_it_is(language: dict[str, Any]) -> None:
    passed = pass_on("kernel_info_reply", {"language_info": language})

    assert passed is not None
    assert passed["language_info"] == language


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("nbconvert_exporter", it) for it in ("os.system", "webpdf", "pdf", "html", ["python"])),
        *(("file_extension", it) for it in ("/../.bashrc", "../x", ".a/b", ".py\n", "py", "." * 9)),
        *(("mimetype", it) for it in ("text/html; x", MARKUP, "a" * 99 + "/b", 7)),
        *(("pygments_lexer", it) for it in ("../x", "a\nb", MARKUP)),
        *(("codemirror_mode", it) for it in (MARKUP, {"name": MARKUP}, [], {"version": {}})),
        ("name", MARKUP),
        ("unknown", "x"),
    ],
)
def test_a_language_names_nothing_of_the_host(field: str, value: object) -> None:
    passed = pass_on("kernel_info_reply", {"language_info": {"version": "1", field: value}})

    assert passed is not None
    assert passed["language_info"] == {"name": "", "version": "1"}


@pytest.mark.parametrize(
    "url",
    [
        *("http://docs.python.org/", "https://evil.example/", "javascript:alert(1)", "", 7),
        *("https://docs.python.org@evil.example/", "https://docs.python.org:1/", "//["),
        "https://docs.python.org.evil.example/",
    ],
)
def test_help_leads_to_known_sites(url: object) -> None:
    good = {"text": "Python", "url": "https://docs.python.org/3"}
    links = [{"text": "Python", "url": url}, good, "x", {"url": good["url"]}]
    passed = pass_on("kernel_info_reply", {"help_links": links})

    assert passed is not None
    assert passed["help_links"] == [good]


def test_the_debugger_shows_a_variable_as_text() -> None:
    reply = {"type": "response", "success": True, "command": "richInspectVariables"}
    body = {"data": {"text/plain": "1", "text/html": MARKUP}, "metadata": {"x": 1}, "seq": 1}
    passed = pass_on("debug_reply", reply | {"body": body})

    assert passed == reply | {"body": {"data": {"text/plain": "1"}, "metadata": {}, "seq": 1}}


@pytest.mark.parametrize("kind", ["debug_event", "debug_reply"])
def test_the_debugger_sends_what_its_protocol_has(kind: str) -> None:
    sent = {"type": MARKUP, "seq": MARKUP, "command": ["x"], "x": MARKUP, "body": [MARKUP]}
    named = {"type": kind.removeprefix("debug_").replace("reply", "response"), "seq": 0}
    success = {"success": False} if kind == "debug_reply" else {}

    assert pass_on(kind, sent) == {**named, "command": "", **success}
    sent = {"seq": 3, "body": {"data": {"text/html": MARKUP}, "metadata": {"text/html": {}}}}
    passed = pass_on(kind, sent)
    assert passed == {**named, "seq": 3, **success, "body": {"data": {}, "metadata": {}}}


def test_a_reply_has_a_known_status_and_known_fields() -> None:
    for status in (MARKUP, "", None, ["ok"], "OK"):
        passed = pass_on("execute_reply", {"status": status, "x": MARKUP, "traceback": MARKUP})
        assert passed == {"status": "error", "ename": "", "evalue": "", "traceback": []}
    for status in ("ok", "aborted"):
        assert pass_on("execute_reply", {"status": status, "ename": MARKUP}) == {"status": status}


def test_an_error_has_short_texts_and_a_traceback() -> None:
    """A page that draws a line of 7 MB stops for seconds, and 60 MB of text the server."""
    huge, lines = "x" * 7_000_000, ["Traceback", "x" * 10**6]
    sent = {"ename": huge, "evalue": huge, "traceback": [*lines, 7, None], "x": MARKUP}
    passed = pass_on("error", sent)

    assert passed == {"ename": huge[:1000], "evalue": huge[:10_000], "traceback": lines}
    usual = {"ename": "ValueError", "evalue": "a\nb", "traceback": ["\x1b[31mx\x1b[0m"]}
    assert pass_on("error", usual) == usual
    for content in (b"{", b'{"evalue": "' + b"x" * 17_000_000 + b'"}'):
        error = WireMessage([], b"", b'{"msg_type": "error"}', b"{}", b"{}", content, [])
        passed = guard(error, NOTHING)
        assert passed is not None
        assert json.loads(bytes(passed.content))["ename"] == "KernelError"


@pytest.mark.parametrize("version", ["4.1", "6.0", "5.x", "", 5, None])
def test_a_kernel_speaks_version_5(version: object) -> None:
    for said, passed in ((version, "5.4"), ("5.3", "5.3")):
        info = pass_on("kernel_info_reply", {"protocol_version": said})
        assert info is not None
        assert info["protocol_version"] == passed


@pytest.mark.parametrize("kind", ["debug_event", "debug_reply", "history_reply", "comm_info_reply"])
def test_a_huge_list_is_left_out(kind: str) -> None:
    passed = pass_on(
        kind, {"body": [{}] * 100_000, "history": [{}] * 100_000, "comms": [[]] * 10**5}
    )

    assert passed is None or len(json.dumps(passed)) < 200


def test_what_front_ends_do_not_act_on_passes_unread() -> None:
    message = new_message("stream", {"text": MARKUP}, b"{}", b"")

    assert guard(message, NOTHING) is message


def test_a_console_indents_by_blanks() -> None:
    reply = {"status": "incomplete", "indent": "    "}

    assert pass_on("is_complete_reply", reply) == reply
    assert pass_on("is_complete_reply", reply | {"indent": "rm -rf"}) == reply | {"indent": ""}
