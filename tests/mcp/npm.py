"""Packages of npm that tests start."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

NODE = 22
"""What the packages here need."""
INSTALL = ("install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")


class Npm:
    """Installs packages into a folder, each once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._installed: dict[Sequence[str], Path] = {}
        self._node: str | None = None

    def install(self, *packages: str) -> Path:
        """Return the folder with the packages; skip the test if npm cannot install them."""
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed")
        if packages not in self._installed:
            folder = self._folder / str(len(self._installed))
            folder.mkdir()
            (folder / "package.json").write_text("{}")
            variables = {"npm_config_cache": str(self._folder / "cache")}
            done = subprocess.run(
                [npm, *INSTALL, *packages],
                cwd=folder,
                env={**os.environ, **variables},
                capture_output=True,
                timeout=240,
            )
            if done.returncode:
                pytest.skip(f"npm cannot install {packages[0]}")
            self._installed[packages] = folder / "node_modules"
        return self._installed[packages]

    @property
    def node(self) -> str:
        """A Node.js that is new enough: this machine's, or npm's package of it."""
        if self._node is None:
            self._node = find_node() or self._install_node()
        return self._node

    def _install_node(self) -> str:
        machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "unknown")
        name = f"node-linux-{machine}"
        return str(self.install(f"{name}@{NODE}") / name / "bin" / "node")

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment of a program in JavaScript."""
        path = f"{Path(self.node).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, **variables}


def find_node() -> str | None:
    """Return this machine's Node.js, if it is new enough."""
    node = shutil.which("node")
    if node is None:
        return None
    done = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30)
    return node if int(done.stdout.lstrip("v").split(".")[0] or 0) >= NODE else None
