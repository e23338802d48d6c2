"""Environments of their own for programs that the tests' environment does not have.

pip gets them from the package index that it is configured with. Where it does not answer, the test
is skipped and says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from .world import PROJECT

PIP_SECONDS = 900
PYTHON = "/usr/bin/python3"
"""The distribution's: root's own may be in a home that no other user can enter."""


def make_environment(
    folder: Path, *packages: str, ours: bool = True, python: str = sys.executable
) -> Path:
    """Make an environment with ``packages``, and with this project; return its Python.

    ``ours``: whether it has this project. Any user may enter it where ``folder`` allows that.
    """
    subprocess.run([python, "-m", "venv", str(folder)], check=True, timeout=120, umask=0o022)
    made = folder / "bin" / "python"
    run_pip(made, "install", *packages, *([str(PROJECT)] if ours else []))
    return made


def run_pip(python: Path, command: str, *words: str) -> None:
    """Run pip; skip the test if it fails, with its last line."""
    quiet = ("--quiet", "--disable-pip-version-check")
    root = ("--root-user-action=ignore",) if command == "install" else ()
    done = subprocess.run(
        [str(python), "-m", "pip", command, *quiet, *root, *words],
        capture_output=True,
        text=True,
        timeout=PIP_SECONDS,
        check=False,
        umask=0o022,
        env={**os.environ, "PIP_NO_INPUT": "1"},
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        pytest.skip(f"pip cannot {command} {' '.join(words)}: {said[-1] if said else 'no reason'}")


def get_source(python: Path, folder: Path, package: str) -> Path:
    """Return the unpacked source distribution of a package, which has its tests."""
    folder.mkdir()
    run_pip(
        *(python, "download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"),
        *("--dest", str(folder), package),
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")
