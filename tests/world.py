"""The private world of a test run: a home, Jupyter's directories and state, in one folder.

Starts no process. The folder's path is short, because Unix sockets lie in it. It marks what belongs
to this run: it is in the environment or argv of each of the run's processes.
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
"""Settings for each way to start a kernel and to exchange messages. ``restored``: from the run's
snapshot, if one fits. ``docker``: in the run's engine (``tests/conftest.py``). ``ssh`` and
``slurm`` are added by the fixtures of their servers."""
CLUSTER = os.environ.get("GK_TEST_KUBECONFIG", "")
CLUSTER_IMAGE = os.environ.get("GK_TEST_KUBERNETES_IMAGE", "")
if CLUSTER and CLUSTER_IMAGE:
    WAYS["kubernetes"] = {
        "runtime": "kubernetes",
        "image": CLUSTER_IMAGE,
        "snapshot": "off",
        "memory_limit": "512M",
        "kubernetes": {"config": CLUSTER, "cpu": "500m"},
    }
    """In a real cluster, see ``tests/kubernetes/test_real_cluster.py``."""

if os.environ.get("GK_TEST_RUNTIME"):
    WAYS["other"] = json.loads(os.environ["GK_TEST_RUNTIME"])
    """The settings of kernels of another package's runtime, which ``every_runtime`` tests, too."""


@dataclass(frozen=True)
class World:
    """``base`` contains everything; ``outer`` is the environment at the start of the run."""

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
        """Return the variables that point programs at this world."""
        return {
            "HOME": str(self.base / "home"),
            "IPYTHONDIR": str(self.base / "home" / ".ipython"),
            "JUPYTER_CONFIG_DIR": str(self.base / "c"),
            "JUPYTER_DATA_DIR": str(self.base / "d"),
            "JUPYTER_PREFER_ENV_PATH": "0",  # otherwise kernelspecs of an environment would win
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "MPLCONFIGDIR": str(self.base / "home" / "mpl"),
            "PYTHONUSERBASE": site.getuserbase(),  # otherwise its packages would follow HOME
            "TMPDIR": str(self.temporary),
            "XDG_CACHE_HOME": str(self.base / "home" / ".cache"),
            "XDG_CONFIG_HOME": str(self.base / "home" / ".config"),
            "XDG_DATA_HOME": str(self.base / "home" / ".local" / "share"),
            "XDG_RUNTIME_DIR": str(self.run),
            "XDG_STATE_HOME": str(self.state),
        }

    @classmethod
    def create(cls) -> World:
        """Create the folder and point this process's environment at it."""
        base = Path(tempfile.mkdtemp(prefix="gk-", dir="/tmp"))
        world = cls(base, dict(os.environ))
        for folder in ("home", "c", "d", "r", "s", "t", "x"):
            (base / folder).mkdir(mode=0o700)
        for name in list(os.environ):
            if name.startswith(("JUPYTER_", "JPY_", "KERNEL_", "IPYTHON")):
                del os.environ[name]
        os.environ.update(world.environment())
        # Otherwise each process of a run would compile the package, and pytest every test, again.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.dont_write_bytecode = False
        tempfile.tempdir = None
        runsc = os.environ.get("GK_TEST_RUNSC")
        if runsc:
            os.environ["PATH"] = f"{Path(runsc).parent}{os.pathsep}{os.environ['PATH']}"
        return world

    def remove(self) -> None:
        """Restore the process's environment and remove the folder."""
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
        """Install the project's kernelspec where Jupyter looks first.

        Its interpreter is this one, or that of ``GK_TEST_PYTHON``. It starts kernels cold, so that
        no snapshots are made beside tests that start kernels by name only. There is another
        kernelspec for each way.
        """
        spec = json.loads((PROJECT / "kernelspecs" / DEFAULT_KERNEL / "kernel.json").read_text())
        spec["argv"][0] = os.environ.get("GK_TEST_PYTHON", sys.executable)
        stanza = spec["metadata"]["kernel_provisioner"]
        own = stanza.get("config", {})
        for way, settings in WAYS.items():
            # What kernels import must not shape snapshots of tests that run beside them.
            stanza["config"] = {**own, "preload": "off", **settings}
            self.add_kernelspec(kernelspec_of(way), spec)
            if way == "direct":
                self.add_kernelspec(DEFAULT_KERNEL, spec)

    def make_folder(self, name: str) -> Path:
        """Make a folder of this world for servers of the run."""
        path = self.base / name
        path.mkdir(mode=0o700)
        return path

    def add_way(self, way: str, settings: dict[str, Any]) -> None:
        """Add a way whose settings are known when its server runs, and its kernelspec."""
        WAYS[way] = settings
        spec = json.loads((self.kernelspecs / DEFAULT_KERNEL / "kernel.json").read_text())
        spec["metadata"]["kernel_provisioner"]["config"] |= settings
        self.add_kernelspec(kernelspec_of(way), spec)


def kernelspec_of(way: str) -> str:
    """Return the name of the kernelspec whose kernels start in ``way``."""
    return f"{DEFAULT_KERNEL}-{way}"
