"""Drive Firefox by WebDriver BiDi, which it speaks itself: Debian has no geckodriver.

``Firefox`` has the few methods of selenium's driver that ``LabPage`` and the checks of the wall
use, so that the same checks run in both browsers.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import re
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket

from ..patience import scale_seconds

SECONDS = scale_seconds(60)
PREFERENCES = {
    # What Firefox asks its maker's hosts for by itself; there is no network here.
    "app.normandy.enabled": False,
    "app.update.auto": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.systemAddon.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}


class Firefox:
    """One window of a Firefox that listens at ``address``."""

    def __init__(self, address: str) -> None:
        self._numbers = itertools.count(1)
        self._socket = websocket.create_connection(
            address + "/session", timeout=SECONDS, suppress_origin=True
        )
        self._requests: list[dict[str, Any]] = []
        self._order("session.new", {"capabilities": {}})
        self._order("session.subscribe", {"events": ["network.beforeRequestSent"]})
        tree = self._order("browsingContext.getTree", {})
        self._window = tree["contexts"][0]["context"]

    def _order(self, method: str, params: dict[str, Any]) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer["type"] == "event":
                if answer["method"] == "network.beforeRequestSent":
                    self._requests.append({"url": answer["params"]["request"]["url"]})
            elif answer["id"] == number:
                if answer["type"] == "error":
                    raise RuntimeError(f"{method}: {answer['error']}: {answer['message']}")
                return answer["result"]

    def get(self, url: str) -> None:
        """Go to ``url``, and wait until the page is loaded."""
        where = {"context": self._window, "url": url, "wait": "complete"}
        self._order("browsingContext.navigate", where)

    def execute_script(self, source: str, *arguments: Any) -> Any:
        """Run the function's body ``source`` in the page; arguments and result are JSON."""
        text = json.dumps(arguments)
        result = self._order(
            "script.callFunction",
            {
                "functionDeclaration": "text => JSON.stringify("
                f"(function () {{{source}\n}}).apply(null, JSON.parse(text)) ?? null)",
                "arguments": [{"type": "string", "value": text}],
                "target": {"context": self._window},
                "awaitPromise": False,
            },
        )
        if result["type"] == "exception":
            raise RuntimeError(result["exceptionDetails"]["text"])
        return json.loads(result["result"]["value"])

    def get_log(self, _kind: str) -> list[dict[str, str]]:
        """Return the requests since the last call, in the form of Chromium's log."""
        self.execute_script("")  # events come before its answer
        requests, self._requests = self._requests, []
        method = "Network.requestWillBeSent"
        return [
            {"message": json.dumps({"message": {"method": method, "params": {"request": it}}})}
            for it in requests
        ]

    def save_screenshot(self, path: str) -> None:
        shot = self._order("browsingContext.captureScreenshot", {"context": self._window})
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def firefox(program: str, profile: Path) -> Iterator[Firefox]:
    """Headless Firefox with a fresh profile."""
    profile.mkdir(mode=0o700)
    (profile / "user.js").write_text(
        "".join(f"user_pref({json.dumps(k)}, {json.dumps(v)});\n" for k, v in PREFERENCES.items())
    )
    process = subprocess.Popen(
        [program, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port=0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={"HOME": str(profile), "PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(profile)},
    )
    assert process.stderr is not None
    reader = None
    try:
        for line in process.stderr:
            if found := re.search(r"WebDriver BiDi listening on (ws://127\.0\.0\.1:\d+)", line):
                break
        else:
            raise RuntimeError(f"Firefox ended with status {process.wait()} before it listened")
        reader = threading.Thread(target=deque, args=(process.stderr, 0), name="firefox-log")
        reader.start()  # a full pipe would stop Firefox
        with contextlib.closing(Firefox(found[1])) as driver:
            yield driver
    finally:
        process.terminate()
        process.wait()
        if reader is not None:
            reader.join()
        process.stderr.close()
