"""Talk to an MCP server over stdin and stdout: what it offers, and what a tool answers.

    python try_server.py COMMAND...                                 its tools
    python try_server.py --call TOOL '{"name": "x"}' COMMAND...     one call

The server may be written in any language. Needs nothing but Python's standard library.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from typing import Any, Sequence

VERSION = "2025-06-18"
"""Of the protocol; a server that speaks another one answers which."""


class ServerError(Exception):
    """The server ended, was silent, or answered with an error."""


class Client:
    """A running server. To be used in a ``with``, which ends it."""

    def __init__(self, command: Sequence[str], seconds: float = 30) -> None:
        self.seconds = seconds
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            encoding="utf-8",
        )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        self._number = 0
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Client:
        try:
            client = {"name": "try_server", "version": "1"}
            self.about = self.ask(
                "initialize", protocolVersion=VERSION, capabilities={}, clientInfo=client
            )
            self._send({"method": "notifications/initialized"})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """The end of its input is what ends a server; one that goes on is killed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()

    def list_tools(self) -> list[dict[str, Any]]:
        tools: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            answer = self.ask("tools/list", **more)
            tools += answer["tools"]
            if not answer.get("nextCursor"):
                return tools
            more = {"cursor": answer["nextCursor"]}

    def call(self, tool: str, arguments: dict[str, Any]) -> str:
        """The text of the answer. Raises ServerError with it where the tool says that it failed."""
        answer = self.ask("tools/call", name=tool, arguments=arguments)
        parts = [part.get("text", f"[{part.get('type')}]") for part in answer.get("content", [])]
        if answer.get("isError"):
            raise ServerError("\n".join(parts))
        return "\n".join(parts)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one request. Raises ServerError."""
        self._number += 1
        self._send({"id": self._number, "method": method, "params": params})
        while True:
            try:
                line = self._lines.get(timeout=self.seconds)
            except queue.Empty:
                raise ServerError(f"no answer to {method} in {self.seconds:g} s") from None
            if not line:
                raise ServerError(f"the server ended with {self.process.wait()}")
            try:
                answer = json.loads(line)
            except ValueError:
                raise ServerError(f"this is no message, but stands on stdout: {line!r}") from None
            if answer.get("id") == self._number and "method" not in answer:
                if "error" in answer:
                    raise ServerError(f"{method}: {answer['error'].get('message')}")
                return dict(answer["result"])

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise ServerError(f"the server ended with {self.process.wait()}") from None

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip():
                self._lines.put(line)
        self._lines.put("")


def main(arguments: list[str]) -> int:
    call = None
    try:
        if arguments[:1] == ["--call"]:
            call, arguments = (arguments[1], json.loads(arguments[2])), arguments[3:]
    except (IndexError, ValueError) as error:
        print(f"--call takes a tool and JSON: {error}", file=sys.stderr)
        return 2
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with Client(arguments) as client:
            if call:
                print(client.call(*call))
                return 0
            about = client.about.get("serverInfo", {})
            print(f"{about.get('name')} speaks {client.about.get('protocolVersion')}")
            for tool in client.list_tools():
                print(f"\n{tool['name']}: {tool.get('description') or 'WITHOUT A DESCRIPTION'}")
                schema = tool.get("inputSchema", {})
                for name, value in schema.get("properties", {}).items():
                    needed = "needed" if name in schema.get("required", []) else "optional"
                    print(f"  {name} ({value.get('type', 'any')}, {needed})")
    except (ServerError, OSError) as error:
        print(f"It does not work: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
