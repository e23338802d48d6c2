"""Environments for tests, without a sandbox, and an index for those that have one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gvisor_kernel.egress.process import EgressWorker
from gvisor_kernel.environments.collection import find_packages
from gvisor_kernel.environments.environment import Base, Environment, Store, compute_digest

from ..egress.indexes import FakeIndex, serving

BASE = Base("host:/usr/bin/python3", "3.12")


@contextmanager
def serving_pip() -> Iterator[FakeIndex]:
    """Run an index that pip of this user is configured with."""
    with serving() as index, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            patch.delenv(name)
        patch.setenv("PIP_INDEX_URL", f"{index.url}/simple/")
        EgressWorker.instance().stop()  # it reads the configuration when it starts
        yield index
        EgressWorker.instance().stop()


def fill(folder: Path, python: str = "3.12") -> Path:
    """Make what pip would leave of one package, with the frame of a virtual environment."""
    site = folder / f"lib/python{python}/site-packages"
    (site / "demo-1.0.dist-info").mkdir(parents=True)
    (site / "demo.py").write_text("VERSION = '1.0'\n")
    (site / "_gvisor_kernel_image.pth").write_text("import site\n")
    (folder / "bin").mkdir()
    (folder / "bin/demo").write_text("#!/home/user/.venv/bin/python\n")
    (folder / "bin/python").symlink_to("/usr/bin/python3")
    (folder / f"bin/python{python}").symlink_to("/usr/bin/python3")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\n")
    return site


def make_environment(
    store: Store, requirements: tuple[str, ...], base: Base = BASE, created: float = 1.0
) -> Environment:
    """Put an environment into the store, as if a sandbox had installed it."""
    with store.write() as draft:
        shutil.rmtree(draft.tree)
        fill(draft.tree, base.python)
        (draft.tree / "abi").write_text(".abi3.so")
        return store.keep(
            draft,
            Environment(
                digest=compute_digest("0" * 64, base, ".abi3.so", requirements),
                directory=draft.directory,
                requirements=requirements,
                image=base.image,
                python=base.python,
                abi=".abi3.so",
                packages=find_packages(draft.tree, base.python),
                size=1,
                entries=1,
                created=created,
            ),
        )
