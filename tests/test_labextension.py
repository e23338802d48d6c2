"""The built extension that is committed: it is whole, and what its sources give."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess

import pytest

from gvisor_kernel import __version__

from .sweeps import needs_all
from .world import PROJECT

DIST = PROJECT / "labextension" / "dist"

pytestmark = pytest.mark.once


def test_the_entry_that_is_named_is_there() -> None:
    build = json.loads((DIST / "package.json").read_text())["jupyterlab"]["_build"]
    assert (DIST / build["load"]).is_file()
    assert [path.name for path in DIST.glob("static/remoteEntry.*")] == [
        build["load"].removeprefix("static/")
    ]


def test_its_version_is_the_package_s() -> None:
    assert json.loads((DIST / "package.json").read_text())["version"] == __version__


def test_pip_is_named_as_what_removes_the_extension() -> None:
    assert json.loads((DIST / "install.json").read_text())["packageName"] == "gvisor-kernel"


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = "".join(path.read_text() for path in DIST.glob("static/*.js"))
    # A namespace of XML is a name, not an address.
    namespaces = {f"http://www.w3.org/{name}" for name in ("2000/svg", "1999/xhtml")}
    assert set(re.findall(r"https?://[^\s\"'`)]+", text)) <= namespaces


def test_it_was_built_of_these_sources() -> None:
    """Found without Node. ``--all`` builds it, and compares."""
    root = DIST.parent
    names = ("package.json", "package-lock.json", "tsconfig.json", "webpack.config.cjs")
    contract = "../gvisor_kernel/server/openapi.json"  # its types are made of that
    paths = [root / name for name in (*names, "install.json", contract)]
    paths += [path for name in ("src", "frame", "style") for path in (root / name).rglob("*")]
    found = sorted(str(path.relative_to(root)) for path in paths if path.is_file())
    lines = (
        f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in found
    )
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    built = (DIST / "sources.sha256").read_text().strip()
    assert built == digest, "labextension/dist is of other sources: run scripts/build and commit it"


@needs_all
@pytest.mark.timeout(700)
def test_the_built_files_are_what_the_sources_give() -> None:
    if shutil.which("npm") is None:
        pytest.skip("no npm: install Node 20 or newer")
    done = subprocess.run(
        [PROJECT / "scripts" / "build", "--check"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
