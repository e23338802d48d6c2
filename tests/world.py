"""The private world a test run lives in: a home, Jupyter's directories, state, all in one folder.

Nothing here starts a process. The folder's path is short, because Unix sockets lie in it, and it
marks what belongs to this run: it stands in the environment or argv of every process of ours.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parent.parent
DEFAULT_KERNEL = "gvisor-python"

WAYS: dict[str, dict[str, Any]] = {
    "direct": {"snapshot": "off"},
    "relay": {"snapshot": "off", "kernel_mode": "relay"},
    "restored": {"snapshot": "auto", "spare": False},
    "docker": {"runtime": "docker", "image": "gvisor-kernel-tests"},
}
"""Settings for each way in which a kernel starts and is spoken to. ``restored``: from the image of
the run, if there is one that fits; ``docker``: by the engine of the run (``tests/conftest.py``)."""


@dataclass(frozen=True)
class World:
    """``base`` holds everything; ``outer`` is the environment the run was started with."""

    base: Path
    outer: dict[str, str]

    @property
    def temporary(self) -> Path:
        return self.base / "t"

    @property
    def runtime(self) -> Path:
        """Jupyter's connection files."""
        return self.base / "r"

    @property
    def run(self) -> Path:
        return self.base / "x"

    @property
    def kernelspecs(self) -> Path:
        return self.base / "d" / "kernels"

    @property
    def state(self) -> Path:
        return self.base / "s"

    def environment(self) -> dict[str, str]:
        """What points programs at this world; HOME is one whose contents nobody needs."""
        return {
            "HOME": str(self.base / "home"),
            "IPYTHONDIR": str(self.base / "home" / ".ipython"),
            "JUPYTER_CONFIG_DIR": str(self.base / "c"),
            "JUPYTER_DATA_DIR": str(self.base / "d"),
            "JUPYTER_PREFER_ENV_PATH": "0",  # else what an environment has installed would win
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "MPLCONFIGDIR": str(self.base / "home" / "mpl"),
            "PYTHONUSERBASE": site.getuserbase(),  # else packages there would follow HOME
            "TMPDIR": str(self.temporary),
            "XDG_CACHE_HOME": str(self.base / "home" / ".cache"),
            "XDG_CONFIG_HOME": str(self.base / "home" / ".config"),
            "XDG_DATA_HOME": str(self.base / "home" / ".local" / "share"),
            "XDG_RUNTIME_DIR": str(self.run),
            "XDG_STATE_HOME": str(self.state),
        }

    @classmethod
    def create(cls) -> World:
        """Make the folder and turn this process's environment to it."""
        base = Path(tempfile.mkdtemp(prefix="gk-", dir="/tmp"))
        world = cls(base, dict(os.environ))
        for folder in ("home", "c", "d", "r", "s", "t", "x"):
            (base / folder).mkdir(mode=0o700)
        for name in list(os.environ):
            if name.startswith(("JUPYTER_", "JPY_", "KERNEL_", "IPYTHON")):
                del os.environ[name]
        os.environ.update(world.environment())
        tempfile.tempdir = None
        runsc = os.environ.get("GK_TEST_RUNSC")
        if runsc:
            os.environ["PATH"] = f"{Path(runsc).parent}{os.pathsep}{os.environ['PATH']}"
        return world

    def remove(self) -> None:
        """Give the process its environment back and remove the folder."""
        os.environ.clear()
        os.environ.update(self.outer)
        tempfile.tempdir = None
        shutil.rmtree(self.base, ignore_errors=True)

    def add_kernelspec(self, name: str, spec: dict[str, Any]) -> Path:
        folder = self.kernelspecs / name
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps(spec, indent=1))
        return folder

    def install(self) -> None:
        """The project's own kernelspec, with this interpreter or another one that GK_TEST_PYTHON
        names, where Jupyter looks first.

        It starts kernels cold, so that nothing makes images beside the tests of whoever starts
        kernels by their name alone. For those who cannot say more, there is one for each way.
        """
        spec = json.loads((PROJECT / "kernelspecs" / DEFAULT_KERNEL / "kernel.json").read_text())
        spec["argv"][0] = os.environ.get("GK_TEST_PYTHON", sys.executable)
        stanza = spec["metadata"]["kernel_provisioner"]
        own = stanza.get("config", {})
        for way, settings in WAYS.items():
            stanza["config"] = {**own, **settings}
            self.add_kernelspec(kernelspec_of(way), spec)
            if way == "direct":
                self.add_kernelspec(DEFAULT_KERNEL, spec)


def kernelspec_of(way: str) -> str:
    """The name of a kernelspec whose kernels start in ``way``."""
    return f"{DEFAULT_KERNEL}-{way}"
