"""Drive JupyterLab: a server process, and its page in headless Chromium.

``LabServer`` and ``LabPage`` know how JupyterLab starts and the structure of its page. The tests
say what a kernel must do.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions as ec
from selenium.webdriver.support.ui import WebDriverWait

from gvisor_kernel.host.processes import read_descendants

from ..patience import scale_seconds
from ..slow_imports import command_of

BROWSER_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # Chromium refuses root otherwise; it only visits our own server
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # WebGL in software
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-component-extensions-with-background-pages",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-features=BackForwardCache,MediaRouter,OptimizationHints,Translate",
    "--disable-sync",
    "--window-size=1280,1100",
    "--force-device-scale-factor=1",
)
EXPOSED = (
    "--LabApp.expose_app_in_browser=True",
    "--JupyterNotebookApp.expose_app_in_browser=True",
)
"""Options of a server whose pages have ``jupyterapp``."""
START_SECONDS = scale_seconds(60)
WAIT_SECONDS = scale_seconds(60)
POLL_SECONDS = 0.2
"""A look into a frame takes six requests of the driver: often, they cost more than the page."""


class LabServer:
    """A JupyterLab with the test world's kernelspecs and its own configuration in ``base``."""

    def __init__(
        self, base: Path, log_path: Path, base_url: str = "/", options: Sequence[str] = ()
    ) -> None:
        self.base = base
        self.folder = base / "notebooks"
        self.log_path = log_path
        self.base_url = base_url
        self.options = options
        self.url = ""
        self._port = 0
        self.token = secrets.token_hex(16)
        self._process: subprocess.Popen[str] | None = None
        self._running = threading.Event()
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        page_config = self.base / "config" / "labconfig" / "page_config.json"
        page_config.parent.mkdir(parents=True, exist_ok=True)
        config = {
            # The question about news would cover the launcher.
            "disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True},
            # Each page would have the server run node, to see whether JupyterLab must be built.
            "buildCheck": False,
        }
        page_config.write_text(json.dumps(config))
        if not self._port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._port = probe.getsockname()[1]
        self.url = ""
        self._running.clear()
        self._process = subprocess.Popen(
            [
                *command_of("jupyterlab"),
                "--no-browser",
                "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={self._port}",
                "--ServerApp.port_retries=50",
                f"--ServerApp.base_url={self.base_url}",
                f"--ServerApp.root_dir={self.folder}",
                f"--IdentityProvider.token={self.token}",
                "--LabApp.extension_manager=readonly",
                f"--ServerApp.cookie_secret_file={self.base / 'cookie'}",
                *(["--allow-root"] if os.geteuid() == 0 else []),
                *self.options,
            ],
            env=os.environ
            | {
                "JUPYTER_CONFIG_DIR": str(self.base / "config"),
                "JUPYTERLAB_SETTINGS_DIR": str(self.base / "settings"),
                "JUPYTERLAB_WORKSPACES_DIR": str(self.base / "workspaces"),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, name="jupyterlab-log", daemon=True)
        self._reader.start()
        if not self._running.wait(START_SECONDS) or not self.url:
            self.stop()
            raise RuntimeError(
                f"JupyterLab did not start within {START_SECONDS} s:\n{self.log_tail()}"
            )
        deadline = time.monotonic() + START_SECONDS
        while True:  # it prints its address before it listens
            with contextlib.suppress(ConnectionError):
                socket.create_connection(("127.0.0.1", urlsplit(self.url).port or 0)).close()
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"JupyterLab does not listen:\n{self.log_tail()}")
            time.sleep(0.05)

    def _read_log(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self.log_path.open("a") as log, self._process.stdout as lines:
            for line in lines:
                log.write(line)
                log.flush()
                # The port may differ from the requested one; the line after "is running at" has it.
                if not self.url and (match := re.search(r"http://127\.0\.0\.1:\d+/", line)):
                    self.url = match[0] + self.base_url.removeprefix("/")
                    self._running.set()
        self._running.set()

    def log_tail(self) -> str:
        return self.log_path.read_text()[-4000:] if self.log_path.exists() else ""

    def request(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own server
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            answer = reply.read()
        return json.loads(answer) if answer else None

    def stop(self) -> None:
        """Shut the kernels down, then kill the server.

        SIGTERM would hang after a failed start, whatever the kernel: jupyter_client 8.10 keeps its
        id among the pending ones, and shutdown_all raises for it.
        """
        if self._process is None:
            return
        try:
            if self.url and self._process.poll() is None:
                self.end_kernels()
        finally:
            self.kill()

    def end_kernels(self) -> None:
        for kind in ("sessions", "kernels"):
            for one in self.request("GET", f"api/{kind}"):
                with contextlib.suppress(urllib.error.HTTPError):  # it has just ended
                    self.request("DELETE", f"api/{kind}/{one['id']}")

    def terminate(self) -> None:
        """Stop the server as a service manager does, with its kernels."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(START_SECONDS)
        if self._reader is not None:
            self._reader.join(10)

    def kill(self, *, with_children: bool = False) -> None:
        """Kill the server as a crash does. Its sandboxes end by themselves; ``with_children``: what
        would clean up after them is killed, too, as when memory runs out."""
        assert self._process is not None
        children = read_descendants(self._process.pid) if with_children else ()
        self._process.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        if self._reader is not None:
            self._reader.join(10)
        folder = Path(os.environ["JUPYTER_RUNTIME_DIR"])
        for file in (*folder.glob(f"jpserver-{self._process.pid}*"), *folder.glob("kernel-*")):
            file.unlink(missing_ok=True)  # a module has one server


@contextlib.contextmanager
def browser(
    chromium: str, chromedriver: str, profile: Path, *flags: str, logged: bool = False
) -> Iterator[webdriver.Chrome]:
    """Headless Chromium with a fresh profile; ``logged`` if ``get_log`` is asked what it did."""
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*BROWSER_FLAGS, *flags):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={profile}")
    if logged:  # what the page asks for, and what it complains about: a tenth of its CPU time
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    profile.mkdir(mode=0o700)
    service = webdriver.ChromeService(
        executable_path=chromedriver,
        service_args=["--log-level=WARNING"],
        log_output=subprocess.DEVNULL,
        env=os.environ | {"XDG_RUNTIME_DIR": str(profile)},  # dconf leaves files there
    )
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.set_page_load_timeout(WAIT_SECONDS)
        yield driver
    finally:
        started = []
        with contextlib.suppress(psutil.NoSuchProcess):  # the test has ended it
            started = psutil.Process(service.process.pid).children(recursive=True)
        try:
            driver.quit()
        finally:
            for each in started:  # a driver that hangs leaves its browser
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


class LabPage:
    """Actions and checks on JupyterLab's page."""

    def __init__(self, driver: webdriver.Chrome, server: LabServer, artifacts: Path) -> None:
        self.driver = driver
        self.server = server
        self.artifacts = artifacts

    def find(self, css: str, seconds: float = WAIT_SECONDS) -> WebElement:
        """Wait for the visible element ``css``; save a screenshot on timeout."""
        try:
            return WebDriverWait(self.driver, seconds, poll_frequency=POLL_SECONDS).until(
                ec.visibility_of_element_located((By.CSS_SELECTOR, css)), f"{css} never appeared"
            )
        except TimeoutException:
            self.screenshot_of_failure()
            raise

    def find_menu(self, label: str) -> WebElement:
        """Wait for the entry ``label`` of the menu bar, or of a menu that is open."""
        path = (
            f"//li[contains(@class,'lm-MenuBar-item') or contains(@class,'lm-Menu-item')]"
            f"[.//*[normalize-space()='{label}']]"
        )
        try:
            return WebDriverWait(self.driver, WAIT_SECONDS, poll_frequency=POLL_SECONDS).until(
                ec.visibility_of_element_located((By.XPATH, path)), f"no menu has {label}"
            )
        except TimeoutException:
            self.screenshot_of_failure()
            raise

    def wait_until(
        self, condition: Callable[[], Any], message: str, seconds: float = WAIT_SECONDS
    ) -> None:
        """Wait until ``condition`` holds; save a screenshot on timeout."""
        try:
            WebDriverWait(self.driver, seconds, poll_frequency=POLL_SECONDS).until(
                lambda _: condition(), message
            )
        except TimeoutException:
            self.screenshot_of_failure()
            raise

    def screenshot_of_failure(self) -> None:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[-1].split()[0]
        self.screenshot(f"timeout-{test}")

    def screenshot(self, name: str) -> Path:
        path = self.artifacts / f"{name}.png"
        self.driver.save_screenshot(str(path))
        return path

    def open(self) -> None:
        """Open a fresh workspace with the launcher, as after the first start."""
        self.driver.get(
            f"{self.server.url}lab/workspaces/auto-test?reset&token={self.server.token}"
        )
        self.find(".jp-Launcher")

    def open_path(self, path: str) -> None:
        """Open a file of the server's folder in a fresh workspace."""
        self.driver.get(
            f"{self.server.url}lab/workspaces/auto-test/tree/{quote(path)}"
            f"?reset&token={self.server.token}"
        )
        self.find(".jp-Notebook .jp-Cell .cm-content").click()

    def has_lab(self) -> bool:
        """Whether the page of JupyterLab is loaded, with ``jupyterapp``."""
        return self.driver.current_url.startswith(f"{self.server.url}lab/")

    def open_here(self, path: str, *, keep: bool = False) -> None:
        """Open a notebook in the page that is loaded, from its file.

        ``keep``: what else is open there stays. A page that is loaded anew costs more CPU time
        than most tests.
        """
        found = self.driver.execute_async_script(
            """
            const [path, keep, done] = arguments;
            const { commands, shell } = jupyterapp;
            const before = [...shell.widgets('main'), ...shell.widgets('down')];
            for (const it of before) if (it.context?.path === path) it.dispose();
            commands.execute('docmanager:open', { path }).then(async widget => {
              await widget.context.ready;
              if (!keep) for (const it of before) it.dispose();
              done('');
            }).catch(error => done(String(error)));
            """,
            path,
            keep,
        )
        assert found == "", found
        self.find(".jp-Notebook:not(.lm-mod-hidden *) .jp-Cell")

    def open_tab(self, path: str) -> None:
        """Bring a document that is open to the front."""
        self.driver.execute_script(
            """
            const { shell } = jupyterapp;
            const found = [...shell.widgets('main')].find(it => it.context?.path === arguments[0]);
            shell.activateById(found.id);
            """,
            path,
        )
        self.wait_until(
            lambda: (
                self.driver.execute_script("return jupyterapp.shell.currentWidget?.context?.path")
                == path
            ),
            f"{path} never came to the front",
        )

    def to_notebook(self) -> None:
        """Bring the notebook's tab to the front."""
        self.find(".lm-DockPanel-tabBar .lm-TabBar-tab[title*='.ipynb']").click()
        self.find(".jp-Notebook")

    def pick_kernel(self, display_name: str) -> None:
        """Click the kernel's card under "Notebook" in the launcher."""
        self.find(f'.jp-LauncherCard[data-category="Notebook"][title^="{display_name}"]').click()

    def dialog(self) -> str:
        """Return the text of the dialog that JupyterLab shows."""
        return self.find(".jp-Dialog-content").text

    def wait_for_kernel(self, display_name: str) -> None:
        """Wait until the status bar says that the kernel is connected and idle.

        The indicator in the notebook's toolbar says idle even before the kernel has started.
        """
        wanted = f"{display_name} | Idle"
        try:
            WebDriverWait(self.driver, WAIT_SECONDS, poll_frequency=POLL_SECONDS).until(
                ec.text_to_be_present_in_element((By.ID, "jp-bottom-panel"), wanted),
                f"the status bar never said {wanted!r}",
            )
        except TimeoutException:
            self.screenshot_of_failure()
            raise

    def run(self, source: str) -> None:
        """Type ``source`` into the selected cell and press Shift+Enter."""
        self.find(".jp-Notebook .jp-Cell.jp-mod-active .cm-content").click()
        # Inserted at once: with key presses the editor would close brackets and indent.
        self.driver.execute_cdp_cmd("Input.insertText", {"text": source})
        ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(
            Keys.SHIFT
        ).perform()

    def output(self, number: int) -> WebElement:
        """Wait for the output area of the cell whose prompt is ``[number]:``."""
        cell = (
            f"//*[contains(@class,'jp-CodeCell')]"
            f"[.//*[contains(@class,'jp-InputPrompt') and normalize-space()='[{number}]:']]"
        )
        try:
            return WebDriverWait(self.driver, WAIT_SECONDS, poll_frequency=POLL_SECONDS).until(
                ec.presence_of_element_located(
                    (By.XPATH, f"{cell}//*[contains(@class,'jp-OutputArea-child')]/..")
                ),
                f"the cell [{number}] never showed an output",
            )
        except TimeoutException:
            self.screenshot_of_failure()
            raise

    def wait_for_colours(self, image: WebElement, count: int) -> None:
        """Wait until the browser has drawn ``image`` with at least ``count`` colours."""
        WebDriverWait(self.driver, WAIT_SECONDS, poll_frequency=POLL_SECONDS).until(
            lambda _: self.colours(image) >= count, "the picture stayed blank"
        )

    def colours(self, image: WebElement) -> int:
        """Return the number of colours in ``image`` as drawn by the browser; 0 if not loaded."""
        return int(
            self.driver.execute_script(
                """
                const image = arguments[0];
                if (!image.complete || image.naturalWidth === 0) return 0;
                const canvas = document.createElement("canvas");
                canvas.width = image.naturalWidth;
                canvas.height = image.naturalHeight;
                const context = canvas.getContext("2d");
                context.drawImage(image, 0, 0);
                const words = new Uint32Array(
                    context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
                return new Set(words).size;
                """,
                image,
            )
        )
