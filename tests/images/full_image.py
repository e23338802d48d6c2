"""The image ``full`` as it is in this tree: its digest, when it was last built, and building it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ..sweeps import ALL
from ..world import PROJECT

CHAIN = ("base", "python", "polyglot", "full")
NOTEBOOK = PROJECT / "notebooks/full.ipynb"
GIVEN = os.environ.get("GK_TEST_IMAGES", "")
"""A folder to use as XDG_DATA_HOME, in which the image was built already."""
LAST = re.compile(
    r"`full` was last built, and its notebook run in it, on (\d{1,2} \w+ 20\d\d), [^`]*`(\w{12})`"
)
"""What docs/images.md says."""
BUILD = 2 * 3600.0
"""Seconds after which a build has failed."""
RUN = "scripts/test --all tests/jupyter/test_notebooks.py -k full"


def digest() -> str:
    """Return what the image and its notebook are made of, in twelve hexadecimal digits."""
    content = hashlib.sha256()
    folders = [PROJECT / "images" / name for name in CHAIN]
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    for path in [*files, NOTEBOOK]:
        content.update(f"{path.relative_to(PROJECT)}\n{path.stat().st_size}\n".encode())
        content.update(path.read_bytes())
    return content.hexdigest()[:12]


def last_built() -> tuple[str, str]:
    """Return the date and the digest that docs/images.md names."""
    text = (PROJECT / "docs/images.md").read_text()
    found = LAST.search(text)
    assert found, f"docs/images.md does not say when the image full was last built: {LAST.pattern}"
    return found[1], found[2]


def why_not() -> str:
    """Return why no test can use the image here; nothing if one can."""
    if GIVEN:
        return ""
    if not ALL:
        return "the image full is built by scripts/test --all, or named by GK_TEST_IMAGES"
    missing = [name for name in ("buildah", "mmdebstrap") if shutil.which(name) is None]
    missing += ["root"] * (os.geteuid() != 0)
    return f"the image full cannot be built without {' and '.join(missing)}" if missing else ""


def build(folder: Path) -> Path:
    """Build the image and its bases from the distribution's packages; return its XDG_DATA_HOME.

    It takes ten minutes, and 12 GiB below ``folder``: buildah's own storage is there, too. The
    mounts of that end with the namespace.
    """
    configuration = folder / "storage.conf"
    configuration.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    command = ["unshare", "--mount", sys.executable, "-m", "gvisor_kernel", "image", "build"]
    environment = {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(configuration),
        "DOCKER_HOST": f"unix://{folder}/none",  # an engine would keep the images
        "XDG_DATA_HOME": str(folder / "data"),
    }
    subprocess.run(
        [*command, "full", "--bootstrap", "trixie"], check=True, env=environment, timeout=BUILD
    )
    return folder / "data"


def remove(folder: Path) -> None:
    """Remove what ``build`` has made, which pytest would keep for its last three runs."""
    for name in ("data", "graph", "run"):
        shutil.rmtree(folder / name, ignore_errors=True)
