"""A server that speaks as much of the APIs of OpenAI and Anthropic as their clients need.

The name of the model says what it does: see ``Api.at_completions``. It demands the key.
"""

from __future__ import annotations

import json
import threading
from email.message import Message
from typing import Any, ClassVar

from .upstream import Handler

TOGETHER = 20
"""How many requests of the model "together" are answered at once, and no sooner."""
WORDS = ("one", "two", "three")


class Api(Handler):
    """``go`` releases the next event of the model "steps". ``key`` is the one that is right."""

    key = ""
    together = threading.Barrier(TOGETHER)
    failed: ClassVar[set[str]] = set()

    def _is_allowed(self) -> bool:
        seen = self.fake.seen[-1]
        given = seen.values("x-api-key") or seen.values("authorization")
        if [value.removeprefix("Bearer ") for value in given] == [self.key]:
            return True
        self._fail(401, f"the key {given} is wrong")
        return False

    def _fail(self, status: int, message: str = "as asked", **headers: str) -> None:
        error = {"type": "error", "error": {"type": "a_type", "message": message}}
        self._answer(json.dumps(error).encode(), status, Content_Type="application/json", **headers)

    def _send_json(self, value: object) -> None:
        self._answer(json.dumps(value).encode(), Content_Type="application/json")

    def _begin_events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _send_event(self, value: Any, name: str = "") -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        event = (f"event: {name}\n" if name else "") + f"data: {text}\n\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event.encode()))
        self.wfile.flush()

    def _await_go(self, model: str) -> None:
        """For "steps", wait until the client has the last event: it asks for /go then."""
        if model == "steps":
            assert self.fake.go.wait(60)
            self.fake.go.clear()

    def at_go(self, query: dict[str, str]) -> None:
        self.fake.go.set()
        self._answer(b"")

    def _find_model(self) -> str | None:
        """Return the model of a request that is to be answered; else it was answered.

        "fail-429-again" fails once. "fail-400" fails always. "quote" quotes the key.
        """
        model = str(json.loads(self.fake.seen[-1].body)["model"])
        if not self._is_allowed():
            return None
        kind, _, status = model.partition("-")
        if kind == "fail" and model not in self.failed:
            if status.endswith("-again"):
                self.failed.add(model)
            self._fail(int(status[:3]), **{"retry-after-ms": "1"})
            return None
        if model == "quote":
            self._fail(400, f"not with {self.key}, my friend")
            return None
        if model == "together":
            self.together.wait(60)
        return model

    def at_completions(self, query: dict[str, str]) -> None:
        """Answer as OpenAI. Models: "steps" waits between events, "endless" has no end."""
        model = self._find_model()
        if model is None:
            return
        base = {"id": "x", "created": 1, "model": model}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        if not json.loads(self.fake.seen[-1].body).get("stream"):
            message = {"role": "assistant", "content": "hello"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._send_json(
                {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
            )
            return
        self._begin_events()
        for word in endless_words() if model == "endless" else WORDS:
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            self._send_event({**base, "object": "chat.completion.chunk", "choices": [choice]})
            self._await_go(model)
        self._send_event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def at_messages(self, query: dict[str, str]) -> None:
        """Answer as Anthropic, with the same models."""
        model = self._find_model()
        if model is None:
            return
        message: dict[str, Any] = {"id": "x", "type": "message", "role": "assistant"}
        message |= {"model": model, "content": [], "stop_reason": None, "stop_sequence": None}
        message |= {"usage": {"input_tokens": 1, "output_tokens": 1}}
        if not json.loads(self.fake.seen[-1].body).get("stream"):
            text = {"type": "text", "text": "hello"}
            self._send_json({**message, "content": [text], "stop_reason": "end_turn"})
            return
        self._begin_events()

        def send(name: str, **fields: Any) -> None:
            self._send_event({"type": name, **fields}, name)

        send("message_start", message=message)
        send("content_block_start", index=0, content_block={"type": "text", "text": ""})
        for word in endless_words() if model == "endless" else WORDS:
            delta = {"type": "text_delta", "text": word}
            send("content_block_delta", index=0, delta=delta)
            self._await_go(model)
        send("content_block_stop", index=0)
        send("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3})
        send("message_stop")
        self.wfile.write(b"0\r\n\r\n")

    def at_files(self, query: dict[str, str]) -> None:
        """Take a file as a form; answer with its name and size."""
        if not self._is_allowed():
            return
        form = Message()
        form["content-type"] = self.fake.seen[-1].values("content-type")[0]
        mark = b"--" + str(form.get_param("boundary")).encode()
        (part,) = (p for p in self.fake.seen[-1].body.split(mark) if b"filename=" in p)
        content = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        self._send_json(
            {
                **{
                    "id": "x",
                    "object": "file",
                    "type": "file",
                    "created_at": "2026-01-01T00:00:00Z",
                },
                **{"filename": "a.bin", "purpose": "batch", "status": "processed"},
                **{"bytes": len(content), "size_bytes": len(content)},
                **{"mime_type": "application/octet-stream", "downloadable": False},
            }
        )


def endless_words() -> Any:
    """Return words without end; each is large, so that a client that has gone is noticed."""
    while True:
        yield "word " * 10_000
