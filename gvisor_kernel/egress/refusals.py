"""The exceptions that become the answer to a request of a sandbox. No I/O.

Refusal                 the request is answered with a status and a text
├── BadRequest          it is not HTTP as this proxy reads it
├── Refused             a rule of the configuration forbids it
├── LimitReached        a limit of its route is used up
├── NotAvailable        the route packages does not have it
└── UpstreamFailed      the server that it was for cannot be used
    └── Unreachable     there is no connection to it

A text never quotes a credential, and never what a server or a library said.
"""

from __future__ import annotations


class Refusal(Exception):
    """A request that is answered with ``status`` and ``text`` instead of being passed on.

    ``reason`` is the text of the status line: short and ASCII, since pip and urllib show only that
    when a CONNECT fails.
    """

    def __init__(self, status: int, reason: str, text: str = "", retry_after: int = 0) -> None:
        self.status = status
        self.reason = "".join(c for c in reason if " " <= c <= "~")[:200]
        self.text = text or f"{reason}."
        self.retry_after = retry_after
        super().__init__(reason)


class BadRequest(Refusal):
    """A request that another program could read differently from this one, or cannot read."""

    def __init__(self, fact: str, status: int = 400) -> None:
        super().__init__(status, fact)


class Refused(Refusal):
    """A rule of the configuration forbids the request; ``advice`` is what would allow it."""

    def __init__(self, rule: str, advice: str) -> None:
        super().__init__(
            403, f"gvisor-kernel: {rule}", f"gvisor-kernel: {rule}.\nWhat to do: {advice}"
        )


class LimitReached(Refusal):
    """A limit of the route is reached; ``advice`` says who could raise it.

    ``status``: 413 for a request that is too large, 429 for too many, 502 for an answer that is too
    large, 504 for one that takes too long.
    """

    def __init__(self, fact: str, advice: str, status: int, retry_after: int = 0) -> None:
        fact = fact.rstrip(".")
        super().__init__(
            status,
            f"gvisor-kernel: {fact}",
            f"gvisor-kernel: {fact}.\nWhat to do: {advice}",
            retry_after,
        )


class NotAvailable(Refusal):
    """The route ``packages`` does not have what was asked for, or cannot get it."""

    def __init__(self, status: int, fact: str) -> None:
        self.fact = fact
        super().__init__(status, f"gvisor-kernel: {fact}")


class UpstreamFailed(Refusal):
    """The server cannot be reached, or does not answer as HTTP demands. ``advice`` may be empty."""

    def __init__(self, fact: str, status: int = 502, advice: str = "") -> None:
        self.fact = fact
        text = f"gvisor-kernel: {fact}.\nWhat to do: {advice}" if advice else ""
        super().__init__(status, f"gvisor-kernel: {fact}", text)


class Unreachable(UpstreamFailed):
    """No connection to the server can be made."""
