"""A real JupyterHub in processes of its own: dummy logins, each user's server as this user."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import requests

from ..jupyter.helpers import SECONDS, wait_until

PROXY = "configurable-http-proxy"


def find_missing() -> str:
    """Return what is missing for a hub; "" if nothing is."""
    if importlib.util.find_spec("jupyterhub") is None:
        return "no JupyterHub: pip install jupyterhub"
    return "" if shutil.which(PROXY) else f"no {PROXY}: npm install -g {PROXY}"


def find_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Hub:
    """A hub with ``users``, each of whom works in a folder of that name below ``folder``."""

    def __init__(self, folder: Path, *users: str) -> None:
        self.folder = folder
        self.users = users
        self.password = secrets.token_hex(8)
        self._token = secrets.token_hex(16)
        self._ports = find_ports(3)
        self.url = f"http://127.0.0.1:{self._ports[0]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the hub and all servers."""
        for user in self.users:
            (self.folder / user).mkdir()
        public, api, proxy = self._ports
        arguments = [
            *(["--allow-root"] if os.geteuid() == 0 else []),
            "--GVisorServer.warm=False",
            "--ServerApp.jpserver_extensions={'gvisor_kernel.server': True}",
        ]
        options = {
            "JupyterHub": {
                "bind_url": f"http://127.0.0.1:{public}/",
                "hub_bind_url": f"http://127.0.0.1:{api}",
                "authenticator_class": "dummy",
                "spawner_class": "simple",
                "services": [{"name": "test", "api_token": self._token}],
                "load_roles": [
                    {
                        "name": "test",
                        "services": ["test"],
                        "scopes": ["admin:users", "admin:servers", "tokens"],
                    }
                ],
                "db_url": "sqlite:///:memory:",
                "cookie_secret_file": str(self.folder / "cookie_secret"),
            },
            "ConfigurableHTTPProxy": {
                "api_url": f"http://127.0.0.1:{proxy}",
                "command": [shutil.which(PROXY)],
                "pid_file": str(self.folder / "proxy.pid"),
            },
            "DummyAuthenticator": {"password": self.password},
            "Authenticator": {"allow_all": True},
            "Spawner": {
                "args": arguments,
                "cmd": [sys.executable, "-m", "jupyterhub.singleuser"],
                "notebook_dir": str(self.folder / "{username}"),
                "start_timeout": 10 * SECONDS,
                "http_timeout": 10 * SECONDS,
                # The world of the tests: its kernelspecs and its state.
                "env_keep": [*os.environ],
                # The hub may end them before they have removed their files here.
                "environment": {"JUPYTER_RUNTIME_DIR": str(self.folder / "runtime")},
            },
            "SimpleLocalProcessSpawner": {"home_dir_template": os.environ["HOME"]},
        }
        config = self.folder / "jupyterhub_config.json"
        config.write_text(json.dumps(options))
        log = (self.folder / "hub.log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "--config", str(config)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, "the hub to listen")
            for user in self.users:
                self.ask("POST", f"users/{user}")
                self.ask("POST", f"users/{user}/server")
            for user in self.users:
                wait_until(lambda user=user: self._is_ready(user), f"the server of {user}")
        except BaseException:
            self.stop()
            print((self.folder / "hub.log").read_text()[-8000:])
            raise

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/hub/api/", timeout=SECONDS).ok
        except requests.ConnectionError:
            return False

    def _is_ready(self, user: str) -> bool:
        return bool(self.ask("GET", f"users/{user}")["servers"].get("", {}).get("ready"))

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """Ask the hub as its administrator."""
        answer = requests.request(
            method,
            f"{self.url}/hub/api/{path}",
            headers={"Authorization": f"token {self._token}"},
            json=body or None,
            timeout=SECONDS,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def make_token(self, user: str) -> str:
        """Return a token of a user, for all that this user may do."""
        return str(self.ask("POST", f"users/{user}/tokens", note="test")["token"])

    def log_in(self, user: str) -> requests.Session:
        """Return the session of a browser in which a user has logged in and opened the server."""
        browser = requests.Session()
        login = f"{self.url}/hub/login"
        browser.get(login, timeout=SECONDS)
        form = {"username": user, "password": self.password, "_xsrf": browser.cookies["_xsrf"]}
        browser.post(login, data=form, timeout=SECONDS, allow_redirects=False).raise_for_status()
        browser.get(f"{self.url}/user/{user}/tree", timeout=SECONDS).raise_for_status()
        return browser

    def stop(self) -> None:
        """Stop the hub, which stops its servers and its proxy."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
