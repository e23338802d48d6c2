"""A Jupyter server in its own process, and a client that acts like a browser's page."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from websocket import WebSocket, WebSocketTimeoutException, create_connection

from ..slow_imports import command_of
from .helpers import SECONDS, Message, wait_until


class JupyterServer:
    """``jupyter server`` on a free port, with ``extensions`` beside those that are enabled in its
    environment. ``log`` contains all that it printed. Its kernels end with it; with ``leaves`` they
    hibernate, and stay for another server."""

    def __init__(self, folder: Path, *options: str, extensions: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.extensions = dict.fromkeys(extensions, True)
        self.options = options
        self.leaves: bool | None = False
        """None: as gVisor's release has it."""
        self.token = secrets.token_hex(16)
        self.log: list[str] = []
        self.url = ""
        self.prefix = ""
        """The server's base URL, without the slash at its end; ``url`` ends with it."""
        self._is_up = threading.Event()
        self.process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            self.argv(port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="jupyter-server-log", daemon=True)
        self._reader.start()
        if not self._is_up.wait(SECONDS) or not self.url:
            self.stop()
            raise AssertionError("The server did not start:\n" + "".join(self.log[-40:]))
        wait_until(self._answers, "the server to listen")  # it prints its URL before it listens

    def argv(self, port: int) -> list[str]:
        return [
            *command_of("jupyter_server"),
            "--no-browser",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}",
            f"--ServerApp.root_dir={self.folder}",
            f"--IdentityProvider.token={self.token}",
            f"--ServerApp.jpserver_extensions={self.extensions}",
            *(
                []
                if self.leaves is None
                else [f"--GVisorServer.hibernate_on_shutdown={self.leaves}"]
            ),
            *(["--allow-root"] if os.geteuid() == 0 else []),
            *self.options,
        ]

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/api", timeout=SECONDS).ok
        except requests.ConnectionError:
            return False

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.log.append(line)
                if found := re.search(r"(http://127\.0\.0\.1:\d+)/", line):
                    self.url = found[1] + self.prefix
                    self._is_up.set()
        self._is_up.set()

    def stop(self) -> None:
        """Stop the server by SIGTERM, as a service manager does."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            if self._reader is not None:
                self._reader.join()

    def ask(self, method: str, path: str, /, **body: Any) -> Any:
        """Make a REST call and return the JSON of the response.

        :raises requests.HTTPError: for a status of 4xx or 5xx
        """
        answer = requests.request(
            method,
            f"{self.url}/api/{path}",
            headers={"Authorization": f"token {self.token}"},
            json=body or None,
            timeout=SECONDS,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    @contextmanager
    def page(self, kernel_id: str) -> Iterator[Page]:
        """Open a websocket to a kernel."""
        session = uuid.uuid4().hex
        connection = create_connection(
            f"{self.url.replace('http', 'ws')}/api/kernels/{kernel_id}/channels"
            f"?session_id={session}&token={self.token}",
            timeout=SECONDS,
        )
        try:
            yield Page(connection, session)
        finally:
            connection.close()


class Lab(JupyterServer):
    """``gvisor-kernel lab``, as a person starts it, but for the browser. Its token is its own.

    With ``GK_TEST_OPEN_LAB`` it is an ordinary server with ``extensions``, to see attacks succeed.
    """

    def argv(self, port: int) -> list[str]:
        if os.environ.get("GK_TEST_OPEN_LAB"):
            return super().argv(port)
        options = ("--no-browser", f"--port={port}", "--GVisorServer.warm=False", *self.options)
        return [*command_of("gvisor_kernel"), "lab", str(self.folder), *options]

    def start(self) -> None:
        super().start()
        found = (re.search(r"token=([0-9a-f]{32,})", line) for line in self.log)
        self.token = next((match[1] for match in found if match), self.token)

    def send(self, method: str, path: str, body: Any = None, **more: Any) -> requests.Response:
        """Send a request as a page does; ``body`` is JSON."""
        headers = {"Authorization": f"token {self.token}"} | more.pop("headers", {})
        url, seconds = f"{self.url}/{path}", SECONDS
        return requests.request(method, url, json=body, timeout=seconds, headers=headers, **more)


class Page:
    """One client: sends requests, and receives the messages of all channels in order."""

    def __init__(self, connection: WebSocket, session: str) -> None:
        self.connection = connection
        self.session = session

    def send(self, message_type: str, content: dict[str, Any], channel: str = "shell") -> str:
        msg_id = uuid.uuid4().hex
        header = {
            "msg_id": msg_id,
            "msg_type": message_type,
            "session": self.session,
            "username": "test",
            "version": "5.3",
        }
        message = {
            "header": header,
            "parent_header": {},
            "metadata": {},
            "content": content,
            "channel": channel,
        }
        self.connection.send(json.dumps(message))
        return msg_id

    def execute(self, code: str) -> str:
        return self.send("execute_request", {"code": code, "silent": False, "allow_stdin": False})

    def wait_for(self, condition: Callable[[Message], bool], what: str) -> Message:
        deadline = time.monotonic() + SECONDS
        seen: list[str] = []
        while True:
            self.connection.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                message: Message = json.loads(self.connection.recv())
            except WebSocketTimeoutException:
                raise AssertionError(f"Waited in vain for {what}; got: {seen[-20:]}") from None
            if condition(message):
                return message
            seen.append(f"{message['msg_type']} {str(message['content'])[:80]}")

    def wait_for_text(self, text: str) -> Message:
        return self.wait_for(
            lambda m: m["msg_type"] == "stream" and text in m["content"]["text"], repr(text)
        )

    def wait_for_reply(self, msg_id: str) -> dict[str, Any]:
        message = self.wait_for(
            lambda m: m["channel"] == "shell" and m["parent_header"].get("msg_id") == msg_id,
            f"the reply to {msg_id}",
        )
        content: dict[str, Any] = message["content"]
        return content

    def wait_for_state(self, state: str) -> None:
        self.wait_for(lambda m: m["content"].get("execution_state") == state, f"the state {state}")
