"""One closed JupyterLab: its private folder, its configuration, and its run.

Nothing of this user's configuration holds here but sections of ours, so no file can open what
``policy.py`` closes. Settings of the page are a copy that ends with the server: what a page wrote
would be another server's settings, too.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from jupyter_client.connect import LocalPortCache
from jupyter_core.paths import jupyter_config_dir, jupyter_data_dir, jupyter_runtime_dir
from jupyter_server.serverapp import ServerApp
from traitlets.config import Config

from gvisor_kernel.errors import GvisorKernelError, KernelspecError
from gvisor_kernel.host.homes import find_home
from gvisor_kernel.jupyter.kernelspecs import find_kernelspecs, install_kernelspec
from gvisor_kernel.jupyter.plan_factory import read_configuration
from gvisor_kernel.lab.policy import EXTENSIONS, harden

# by path: Jupyter's folders of this user

PREFIX = "gvisor-lab-"
"""Prefix of the private folder, in Jupyter's folder for what runs: tokens are there, too."""
KEPT = ("GVisorProvisioner", "GVisorEgress", "GVisorServer")
"""Sections of this user's Jupyter configuration that hold."""
DROPPED = ("JUPYTER_TOKEN", "JUPYTER_TOKEN_FILE", "JUPYTER_SERVER_ALLOW_UNAUTHENTICATED_ACCESS")
MAX_LOOKED = 100_000
"""Names in the folder that are looked at before a start, which takes a second."""
HEADERS = {
    # Script in the page cannot fetch from elsewhere, or send there, but by leaving the page.
    "Content-Security-Policy": "frame-ancestors 'self'; base-uri 'self'; object-src 'none';"
    " form-action 'self'; default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:",
    # Where a browser knows this, the page cannot leave for another site, either.
    "Connection-Allowlist": "(response-origin)",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}

DISABLED = (
    "@jupyter-notebook/lab-extension",  # its buttons lead to pages that this server has not
    "@jupyterlab/apputils-extension:announcements",  # asks at each start, as no answer is kept
)
"""Extensions that the page leaves out."""


class ClosedServer(ServerApp):
    """Jupyter's server, which reads configuration from its private folder alone."""

    folder = Path("/nonexistent")
    """The private folder. Set before an instance is made."""

    def _config_dir_default(self) -> str:
        return str(self.folder / "config")

    def _runtime_dir_default(self) -> str:
        return str(self.folder)

    @property
    def config_file_paths(self) -> list[str]:
        return [str(self.folder / "config")]


def check_folder(path: str) -> Path:
    """Return the real path of a folder that a closed server may show.

    :raises GvisorKernelError: when it is none, or has what this machine's programs run
    """
    folder = Path(path).resolve()
    if not folder.is_dir():
        raise GvisorKernelError(f"{path} is no folder.", "name an existing folder.")
    if home := find_home(str(folder)):
        raise GvisorKernelError(
            f"{folder} is the home {home}, or has it below: kernels are not shown a home.",
            "make a folder below it, and put there what you want to open.",
        )
    own = (jupyter_config_dir(), jupyter_data_dir(), jupyter_runtime_dir(), sys.prefix)
    for place in {Path(place).resolve() for place in (*own, *filter(None, sys.path))}:
        below = place.relative_to(folder).parts if place.is_relative_to(folder) else (".",)
        is_hidden = any(part.startswith(".") for part in below)
        if folder.is_relative_to(place) or not is_hidden:
            raise GvisorKernelError(
                f"{folder} is, has or lies in {place}, from which programs of this machine run.",
                "name a folder that has only what you want to open.",
            )
    return folder


def find_other_names(folder: Path) -> list[Path]:
    """Return a name of each file in a folder that has another one which the server does not show
    (hard links). Looks at MAX_LOOKED names, and follows no link."""
    found: dict[tuple[int, int], list[Path]] = {}
    links: dict[tuple[int, int], int] = {}
    for path in islice(_find_shown(folder), MAX_LOOKED):
        with suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                file = status.st_dev, status.st_ino
                links[file] = status.st_nlink
                found.setdefault(file, []).append(path)
    return sorted(names[0] for file, names in found.items() if len(names) < links[file])


def _find_shown(folder: Path) -> Iterator[Path]:
    """Yield the folders and files that are not hidden."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in (*folders, *files) if not name.startswith("."))


def make_config(folder: Path, private: Path) -> Config:
    """Return the configuration of a closed server for ``folder``."""
    own = read_configuration()
    config = Config({name: own[name] for name in KEPT if name in own})
    harden(config)
    config.GVisorServer.hibernate_on_shutdown = False  # what a stranger wrote ends with the page
    server = config.ServerApp
    server.jpserver_extensions = dict.fromkeys(EXTENSIONS[:2], True)
    server.root_dir = str(folder)
    server.default_url = "/lab"
    server.ip = "127.0.0.1"
    # Not Jupyter's 8888: a page that stays open would be a page of the next server there.
    server.port = LocalPortCache.instance().find_available_port("127.0.0.1")
    server.allow_remote_access = False  # another name for this machine is refused
    server.allow_root = os.geteuid() == 0
    server.allow_unauthenticated_access = False
    server.tornado_settings = {"headers": HEADERS, "page_config_hook": _leave_out}
    config.PasswordIdentityProvider.allow_password_change = False
    # This user's other servers believe signatures, so none is made or believed here.
    config.NotebookNotary.db_file = ":memory:"
    config.NotebookNotary.secret = secrets.token_bytes(1024)
    config.LabApp.user_settings_dir = str(private / "settings")
    config.LabApp.workspaces_dir = str(private / "workspaces")
    return config


def _leave_out(_handler: Any, page: dict[str, Any]) -> dict[str, Any]:
    page["disabledExtensions"] = [*page.get("disabledExtensions", ()), *DISABLED]
    return page


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a server's private folder, and remove it at the end; also those of killed servers."""
    above = Path(jupyter_runtime_dir())
    above.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in above.glob(f"{PREFIX}*"):
        if not Path("/proc", left.name.removeprefix(PREFIX).partition("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=above))
    try:
        (folder / "config").mkdir()
        (folder / "config" / "migrated").touch()  # nothing of IPython's old folders is moved
        (folder / "workspaces").mkdir()
        with suppress(OSError, shutil.Error):
            settings = Path(jupyter_config_dir(), "lab", "user-settings")
            shutil.copytree(settings, folder / "settings")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def provide_kernelspecs(private: Path, wanted: Iterable[str] = ()) -> None:
    """If no kernelspec of ours is installed, let this process find the package's own.

    :raises KernelspecError: when there is none, or not one of those that are ``wanted``
    """
    if not find_kernelspecs():
        made = install_kernelspec(prefix=str(private)).directory
        paths = [str(made.parent.parent), os.environ.get("JUPYTER_PATH", "")]
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, paths))
    known = {spec.name for spec in find_kernelspecs()}
    if missing := set(wanted) - known:
        raise KernelspecError(
            f"There is no kernelspec {min(missing)!r} of gvisor-kernel.",
            f"use one of these: {', '.join(sorted(known))}; or gvisor-kernel install --name NAME.",
        )


def run_lab(folder: Path, options: Any) -> None:
    """Run JupyterLab until it is ended.

    ``options``: configuration that a person has given, which opens nothing (``policy.py``).

    :raises GvisorKernelError: when the server cannot start
    """
    for name in [*DROPPED, *(name for name in os.environ if name.startswith("JUPYTER_GATEWAY_"))]:
        os.environ.pop(name, None)
    with private_folder() as private:
        provide_kernelspecs(private, options.KernelSpecManager.get("allowed_kernelspecs", ()))
        config = make_config(folder, private)
        config.merge(options)
        ClosedServer.folder = private
        # A closed terminal ends the server as a service manager does, with its sandboxes.
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        ClosedServer.launch_instance(argv=[], config=config)
