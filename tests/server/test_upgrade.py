"""Another version of the package is installed in the environment of a server that runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import requests

from ..jupyter.helpers import SECONDS
from ..jupyter.server import JupyterServer
from ..world import PROJECT
from .test_hibernation import find_listed, run, start


class Environment:
    """A virtual environment in which wheels of two versions are installed in turn."""

    def __init__(self, base: Path) -> None:
        self.python = base / "venv" / "bin" / "python"
        self._run(sys.executable, "-m", "venv", "--without-pip", base / "venv")
        (site,) = (base / "venv").glob("lib/python*/site-packages")
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        copy = base / "copy"
        ignored = shutil.ignore_patterns(".*", "node_modules", "tests", "__pycache__")
        shutil.copytree(PROJECT, copy, ignore=ignored, symlinks=True)
        self._wheels = {}
        for version in ("0.1.0", "0.2.0"):
            file = copy / "gvisor_kernel" / "__init__.py"
            line = f'__version__ = "{version}"'
            file.write_text(re.sub(r'^__version__ = ".*"', line, file.read_text(), flags=re.M))
            folder = base / version
            build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
            self._run(*build, cwd=copy)
            (self._wheels[version],) = folder.iterdir()

    @staticmethod
    def _run(*argv: object, cwd: Path = PROJECT) -> None:
        words = [str(word) for word in argv]
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, version: str) -> None:
        pip = (sys.executable, "-m", "pip", "--python", self.python, "install", "-q", "--no-deps")
        self._run(*pip, "--no-index", "--disable-pip-version-check", self._wheels[version])


class Server(JupyterServer):
    """A server of ``environment``; its kernels are left to the next one."""

    def __init__(self, folder: Path, environment: Environment) -> None:
        extensions = ("gvisor_kernel.server",)
        super().__init__(folder, "--GVisorServer.warm=False", extensions=extensions)
        self.leaves, self._environment = True, environment

    def argv(self, port: int) -> list[str]:
        words = super().argv(port)
        options = words[next(i for i, word in enumerate(words) if word.startswith("--")) :]
        # -P: or the package of the tests' working directory is imported
        return [str(self._environment.python), "-P", "-m", "jupyter_server", *options]

    def refuses(self) -> str:
        """Try to start a kernel, and return what the log says of it."""
        with pytest.raises(requests.HTTPError) as refusal:
            self.ask("POST", "kernels", name="gvisor-python")
        assert refusal.value.response.status_code == 500
        return "".join(self.log[-80:])


def test_a_server_says_that_it_must_be_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up, down and up again: kernels that run go on, and so do those that were saved."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    environment, folder = Environment(tmp_path), tmp_path / "work"
    (folder / "n").mkdir(parents=True)
    environment.install("0.1.0")
    session: dict[str, Any] = {}
    for old, new in (("0.1.0", "0.2.0"), ("0.2.0", "0.1.0"), ("0.1.0", "0.2.0")):
        server = Server(folder, environment)
        server.start()
        try:
            session = session or start(server)
            kernel = session["kernel"]["id"]
            with server.page(kernel) as page:
                run(page, "x = globals().get('x', 0) + 1; print()")
                environment.install(new)
                assert run(page, "print(x)").strip().isdigit()
                said = server.refuses()
                assert f"This process runs gvisor-kernel {old}, and {new} is installed now" in said
                assert "restart the server" in said
        finally:
            server.stop()
        (listed,) = find_listed(kernel)
        assert listed.state == "hibernated", "".join(server.log[-30:])
    server = Server(folder, environment)
    server.start()
    try:
        with server.page(kernel) as page:
            assert run(page, "print(x)") == "3\n"
        server.ask("DELETE", f"sessions/{session['id']}")
    finally:
        server.stop()
