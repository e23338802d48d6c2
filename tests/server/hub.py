"""A real JupyterHub in processes of its own: dummy logins, each user a number of the system."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from websocket import create_connection

from .. import leaks
from ..foreign import PYTHON, make_environment
from ..jupyter.helpers import SECONDS, Message, wait_until
from ..jupyter.server import Page
from ..mcp.npm import Npm
from ..world import World

PROXY = "configurable-http-proxy"
KERNEL = "gvisor-python"
GROUP = 52_600
"""The number of a group that all users of a hub with common folders have."""
FIRST_NUMBER = 52_700
"""The users' numbers begin here: no account has them."""
CULLER = {
    "name": "culler",
    "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
}
TESTER = {"name": "tester", "scopes": ["admin:users", "admin:servers", "tokens"]}


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
    """A hub with ``users``, each with a home below ``folder``, which all may enter.

    Its servers outlive it: call ``start`` again after ``end``, and ``stop`` for good.
    """

    def __init__(
        self,
        folder: Path,
        python: Path,
        proxy: list[str],
        *users: str,
        common: bool = False,
        recipe: str = "",
    ) -> None:
        """``common``: all users have one folder of files, and one for what pages share.
        ``recipe``: lines of an administrator's ``jupyterhub_config.py``."""
        self.folder = folder
        self.common = common
        self.users = users
        self.python = python
        self.password = secrets.token_hex(8)
        self.tokens = {name: secrets.token_hex(16) for name in ("tester", "culler")}
        numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(users))
        self.numbers = dict(zip(users, numbers, strict=True)) if os.geteuid() == 0 else {}
        public, self._api, proxy_api = find_ports(3)
        self.url = f"http://127.0.0.1:{public}"
        self._process: subprocess.Popen[bytes] | None = None
        self._config = folder / "hub" / "jupyterhub_config.py"
        self._make_folders()
        options = json.dumps(self._make_options(public, proxy_api, proxy))
        added = (
            "c.Spawner.args += ['--GVisorServer.warm=False', '--GVisorProvisioner.snapshot=off',"
            " '--GVisorServer.hibernate_on_shutdown=False']"
        )
        self._config.write_text(
            "import json\nfrom traitlets.config import Config\nc = get_config()\n"
            f"c.merge(Config(json.loads({options!r})))\n"
            + (f"{recipe}\n{added}\n" if recipe else "")
        )

    def home(self, user: str) -> Path:
        return self.folder / user

    def work(self, user: str) -> Path:
        """Where a user's notebooks are: a home is not shown to a kernel."""
        return self.folder / "common" if self.common else self.home(user) / "work"

    @property
    def shared(self) -> Path:
        """The folder that the administrator has named for what pages share."""
        return self.folder / "shared"

    def runtime(self, user: str) -> Path:
        return self.folder / "run" / user

    def state(self, user: str) -> Path:
        return self.home(user) / ".local" / "state" / "gvisor-kernel"

    def _make_folders(self) -> None:
        self.folder.chmod(0o711)
        (self.folder / "hub").mkdir(mode=0o700)
        (self.folder / "run").mkdir(mode=0o711)
        if self.common:
            for place in (self.folder / "common", self.shared):
                place.mkdir()
                os.chown(place, -1, GROUP)
                place.chmod(0o2770)
        for user in self.users:
            own = () if self.common else (self.work(user),)
            for place in (self.home(user), self.runtime(user), *own):
                place.mkdir(mode=0o700)
                number = self.numbers.get(user, os.geteuid())
                os.chown(place, number, number if self.numbers else os.getegid())

    def _make_options(self, public: int, proxy_api: int, proxy: list[str]) -> dict[str, Any]:
        own = self.folder / "hub"
        servers = [
            *(["--allow-root"] if os.geteuid() == 0 and not self.numbers else []),
            "--GVisorServer.warm=False",
            "--GVisorServer.hibernate_on_shutdown=False",
            "--GVisorProvisioner.snapshot=off",
            "--GVisorProvisioner.memory_limit=512M",
            "--ServerApp.jpserver_extensions={'gvisor_kernel.server': True}",
            *([f"--GVisorServer.shared_storage={self.shared}"] if self.common else []),
        ]
        services = (TESTER, CULLER)
        return {
            "JupyterHub": {
                "bind_url": f"{self.url}/",
                "hub_bind_url": f"http://127.0.0.1:{self._api}",
                "authenticator_class": "dummy",
                "spawner_class": "hub_spawner.NumberSpawner",
                "services": [
                    {"name": each["name"], "api_token": self.tokens[str(each["name"])]}
                    for each in services
                ],
                "load_roles": [{**each, "services": [each["name"]]} for each in services],
                "db_url": f"sqlite:///{own}/hub.sqlite",
                "cookie_secret_file": str(own / "cookie_secret"),
                "cleanup_servers": False,
            },
            "ConfigurableHTTPProxy": {
                "api_url": f"http://127.0.0.1:{proxy_api}",
                "command": proxy,
                "pid_file": str(own / "proxy.pid"),
            },
            "DummyAuthenticator": {"password": self.password},
            "Authenticator": {"allow_all": True},
            "Spawner": {
                "args": servers,
                "cmd": [str(self.python), "-m", "jupyterhub.singleuser"],
                "notebook_dir": str(self.work("{username}")),
                "start_timeout": int(10 * SECONDS),
                "http_timeout": int(10 * SECONDS),
                "env_keep": ["PATH", "LANG"],
            },
            "SimpleLocalProcessSpawner": {"home_dir_template": str(self.home("{username}"))},
            "NumberSpawner": {
                "numbers": self.numbers,
                "group": GROUP if self.common else None,
                "run_template": str(self.runtime("{username}")),
            },
        }

    def give_home(self, user: str) -> None:
        """Let a user own everything in the home."""
        number = self.numbers.get(user, os.geteuid())
        for path in self.home(user).rglob("*"):
            os.chown(path, number, number if self.numbers else os.getegid())

    # -- the hub and its servers -----------------------------------------------------------------

    def start(self) -> None:
        """Start the hub and its proxy, and wait until it answers."""
        with (self.folder / "hub" / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.python), "-m", "jupyterhub", "--config", str(self._config)],
                cwd=self.folder / "hub",
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, "the hub to listen")
        except BaseException:
            self.stop()
            print(self.log()[-8000:])
            raise

    def log(self) -> str:
        return (self.folder / "hub" / "log").read_text()

    def end(self, *, kill: bool = False) -> None:
        """End the hub alone: its servers go on."""
        process = self._process
        assert process is not None
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        process.wait(SECONDS)

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/hub/api/", timeout=SECONDS).ok
        except requests.ConnectionError:
            return False

    def start_server(self, user: str) -> None:
        """Start a user's server unless it runs, and wait until it is ready."""
        if user not in [each["name"] for each in self.ask("GET", "users")]:
            self.ask("POST", f"users/{user}")
        if not self._is_ready(user):
            self.ask("POST", f"users/{user}/server")
            wait_until(lambda: self._is_ready(user), f"the server of {user}", 10 * SECONDS)

    def stop_server(self, user: str) -> None:
        """Stop a user's server as the hub does at the button of that name."""
        self.ask("DELETE", f"users/{user}/server")
        wait_until(lambda: not self.has_server(user), f"the end of the server of {user}")

    def has_server(self, user: str) -> bool:
        return "" in self.ask("GET", f"users/{user}")["servers"]

    def _is_ready(self, user: str) -> bool:
        return bool(self.ask("GET", f"users/{user}")["servers"].get("", {}).get("ready"))

    def find_server(self, user: str) -> int:
        """Return the process of a user's server."""
        home = f"HOME={self.home(user)}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                argv = (folder / "cmdline").read_bytes()
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"jupyterhub.singleuser" in argv and home in variables:
                return int(folder.name)
        raise AssertionError(f"{user} has no server")

    def find_left(self, user: str, *, with_sockets: bool = True) -> set[str]:
        """Return the processes of a user, and the directories and sockets of sandboxes.

        A server that the hub stops leaves connection files, of whatever kernels. One that is
        killed leaves dead sockets until the next start: ``with_sockets`` is False for it.
        """
        base = self.home(user)
        left = set(leaks.processes(World(base, {})))
        number = self.numbers.get(user)
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "status").read_text().partition("\nUid:")[2].split()
            except OSError:
                continue
            if number is not None and words and int(words[0]) == number:
                left.add(f"process {folder.name} of {user}")
        sandboxes = self.state(user) / "sandboxes"
        left |= {str(path) for path in sandboxes.glob("*")}
        sockets = self.state(user) / "sockets"
        if not with_sockets:
            sockets = sockets / "none"
        for place in (sockets, self.runtime(user)):
            left |= {str(path) for path in place.rglob("*") if place == sockets or path.is_socket()}
        return left

    # -- requests --------------------------------------------------------------------------------

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """Ask the hub as its administrator."""
        answer = requests.request(
            method,
            f"{self.url}/hub/api/{path}",
            headers={"Authorization": f"token {self.tokens['tester']}"},
            json=body or None,
            timeout=SECONDS,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def make_token(self, user: str) -> str:
        """Return a token of a user, for all that this user may do."""
        return str(self.ask("POST", f"users/{user}/tokens", note="test")["token"])

    def ask_server(
        self, user: str, token: str, method: str, path: str, **body: Any
    ) -> requests.Response:
        """Ask a user's server with a token, or "" for none."""
        return requests.request(
            method,
            f"{self.url}/user/{user}/{path}",
            headers={"Authorization": f"token {token}"} if token else {},
            json=body or None,
            timeout=SECONDS,
            allow_redirects=False,
        )

    def start_kernel(self, user: str, token: str) -> str:
        """Start a kernel on a user's server; return its id."""
        answer = self.ask_server(user, token, "POST", "api/kernels", name=KERNEL)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    @contextmanager
    def page(self, user: str, token: str, kernel: str) -> Iterator[Page]:
        """Open a websocket to a kernel of a user's server."""
        session = uuid.uuid4().hex
        address = self.url.replace("http", "ws", 1) + f"/user/{user}/api/kernels/{kernel}"
        connection = create_connection(
            f"{address}/channels?session_id={session}",
            timeout=SECONDS,
            header=[f"Authorization: token {token}"],
        )
        try:
            yield Page(connection, session)
        finally:
            connection.close()

    def log_in(self, user: str) -> requests.Session:
        """Return the session of a browser in which a user has logged in and opened the server."""
        browser = requests.Session()
        login = f"{self.url}/hub/login"
        browser.get(login, timeout=SECONDS)
        form = {"username": user, "password": self.password, "_xsrf": browser.cookies["_xsrf"]}
        browser.post(login, data=form, timeout=SECONDS, allow_redirects=False).raise_for_status()
        (self.work(user) / "page.html").write_text("a page of the server")
        page = browser.get(f"{self.url}/user/{user}/files/page.html", timeout=SECONDS)
        page.raise_for_status()
        return browser

    def stop(self) -> None:
        """Stop all servers, the hub and its proxy."""
        process = self._process
        if process is None:
            return
        try:
            if process.poll() is None and self._answers():
                for each in self.ask("GET", "users"):
                    if each["servers"]:
                        self.stop_server(each["name"])
        finally:
            process.terminate()
            try:
                process.wait(SECONDS)
            finally:
                process.kill()
                process.wait()
                self._kill_rest()

    def _kill_rest(self) -> None:
        """End what still has a home here, so that a failed test leaves no process."""
        for thing in leaks.processes(World(self.folder, {})):
            if thing.startswith("process "):
                try:
                    os.kill(int(thing.split()[1]), signal.SIGKILL)
                except ProcessLookupError:
                    continue


def run_cell(page: Page, code: str) -> str:
    """Run a cell; return what it printed. Its reply may come before its output."""
    asked = page.execute(code)
    printed: list[str] = []
    waits = {"execute_reply", "idle"}

    def is_done(message: Message) -> bool:
        if message["parent_header"].get("msg_id") == asked:
            content = message["content"]
            if message["msg_type"] == "stream":
                printed.append(content["text"])
            waits.discard(message["msg_type"])
            waits.discard(content.get("execution_state", ""))
        return not waits

    page.wait_for(is_done, f"the end of {code!r}")
    return "".join(printed)


@contextmanager
def running_hub(
    *users: str, common: bool = False, recipe: str = "", jupyter_config: str = ""
) -> Iterator[Hub]:
    """Run a hub with the proxy from npm; skip the test where npm or pip cannot get the programs.

    ``jupyter_config``: the ``jupyter_config.py`` of the servers' environment.
    """
    folder = Path(tempfile.mkdtemp(prefix="gkh-", dir="/tmp"))
    try:
        folder.chmod(0o711)
        (folder / "npm").mkdir()
        npm = Npm(folder / "npm")
        node = shutil.which("node") or npm.node
        proxy = [node, str(npm.install(PROXY) / PROXY / "bin" / PROXY)]
        python = make_environment(
            *(folder / "environment", "jupyter_server", "jupyterhub", "jupyterhub-idle-culler"),
            python=PYTHON if os.geteuid() == 0 else sys.executable,
        )
        place = folder / "environment" / "etc" / "jupyter"
        place.mkdir(parents=True, exist_ok=True)
        (place / "jupyter_config.py").write_text(jupyter_config)
        hub = Hub(folder, python, proxy, *users, common=common, recipe=recipe)
        hub.start()
        try:
            for user in users:
                hub.start_server(user)
            yield hub
        finally:
            hub.stop()
    finally:
        shutil.rmtree(folder)
