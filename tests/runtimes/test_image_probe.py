"""The probe of an image's Python, when its answer or its sandbox is not what it should be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.errors import IsolationError, LaunchError
from gvisor_kernel.images import RootImage
from gvisor_kernel.runtimes.runsc import image_probe
from gvisor_kernel.runtimes.runsc.image_probe import MAX_ANSWER, MEMORY, probe_image

ANSWER = json.dumps({"version": "3.12.0", "modules": ["zmq"], "packages": {}}).encode()


class FakeSandbox:
    """Has written ``says`` and does not end. ``fault``: what the verification finds."""

    def __init__(self, says: bytes, memory: int, fault: str) -> None:
        self._fault = fault
        self.events: list[str] = []
        self._memory = memory
        self.link_out, self._write = os.pipe()
        os.set_blocking(self._write, False)
        os.write(self._write, says[:65536])

    def memory_used(self) -> int:
        return self._memory

    def verify(self) -> None:
        self.events.append("verified")
        if self._fault:
            raise IsolationError(self._fault)

    def kill(self) -> None:
        self.events.append("killed")

    def close(self) -> None:
        self.events.append("closed")
        os.close(self.link_out)
        os.close(self._write)

    def stderr_tail(self) -> str:
        return ""


class FakeRuntime:
    """Takes the place of the runtime."""

    def __init__(self, says: bytes, memory: int, fault: str) -> None:
        self.sandbox = FakeSandbox(says, memory, fault)
        self.limit = 0

    def __call__(self, init_argv: list[str]) -> FakeRuntime:
        return self

    def start(self, spec: Any, request: Any) -> FakeSandbox:
        self.limit = spec.memory_limit
        return self.sandbox


@pytest.fixture
def image(tmp_path: Path) -> RootImage:
    program = tmp_path / "tree/usr/bin/python3"
    program.parent.mkdir(parents=True)
    program.write_text("")
    program.chmod(0o755)
    return RootImage("0" * 64, tmp_path, ("odd",), {}, {}, {}, 1, 1, 0.0)


def probe(
    image: RootImage,
    monkeypatch: pytest.MonkeyPatch,
    says: bytes,
    memory: int = 0,
    fault: str = "",
) -> tuple[list[str], BaseException | None]:
    """Return what happened to the sandbox, and what was raised."""
    runtime = FakeRuntime(says, memory, fault)
    monkeypatch.setattr(image_probe, "SECONDS", 0.3)
    error: BaseException | None = None
    try:
        probe_image(image, runtime)
    except (LaunchError, IsolationError) as raised:
        error = raised
    assert runtime.limit == MEMORY
    return runtime.sandbox.events, error


def test_answer_is_used_only_after_verification(
    image: RootImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe(image, monkeypatch, ANSWER + b"\n") == (["verified", "closed"], None)
    events, error = probe(image, monkeypatch, ANSWER + b"\n", fault="not isolated")
    assert events == ["verified", "closed"]
    assert isinstance(error, IsolationError)


def test_memory_is_watched_without_a_bridge(
    image: RootImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, error = probe(image, monkeypatch, b"", memory=MEMORY + 1)
    assert events == ["killed", "closed"]
    assert "more than 1024 MiB" in str(error)


@pytest.mark.parametrize(
    "says",
    [
        b"",
        ANSWER[:-1],
        b"[" * 60_000 + b"\n",
        b'{"version": ' + b"[" * 500 + b"]" * 500 + b', "modules": [], "packages": {}}\n',
        b'{"version": 1, "modules": 3, "packages": {}}\n',
        b"x" * 65536,
    ],
    ids=["empty", "no newline", "unclosed lists", "deep nesting", "wrong types", "too long"],
)
def test_malformed_answer_is_an_error(
    image: RootImage, monkeypatch: pytest.MonkeyPatch, says: bytes
) -> None:
    monkeypatch.setattr(image_probe, "MAX_ANSWER", min(MAX_ANSWER, 60_000))
    events, error = probe(image, monkeypatch, says)
    assert events == ["verified"] * says.endswith(b"\n") + ["closed"]
    assert "does not answer" in str(error)
