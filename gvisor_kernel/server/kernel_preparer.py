"""Prepares the starts that are likely next in a server, one after the other.

It also notices that packages were installed, upgraded or removed, and that kernels are to start
with another runsc: then the snapshot is made anew before the next start would find that it does not
fit. ``Listings`` notices which folder a client
has gone to: JupyterLab with our extension names it; other front ends list it, or open a notebook in
it, and the server's contents manager tells that as an event.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvisor_kernel.config.validators import HOST_IMAGE
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.jupyter.plan_factory import make_plan_ahead
from gvisor_kernel.kernel.plan import KernelPlan, fix_program
from gvisor_kernel.kernel.preparation import may_prepare, prepare, renew
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.mounts.host_python import ask_interpreter

log = logging.getLogger(__name__)

FIRST_SECONDS = 1.0
"""Seconds after the server's start, which has other things to do."""
PAUSE_SECONDS = 2.0
"""Seconds after each preparation: a client may ask for another folder all the time, and each one
costs a restore. Of the requests meanwhile the last one counts."""
# Not inotify, which tells of a change at once: an installation goes on for minutes, so the wait
# until nothing changes is needed in any case.
LOOK_SECONDS = 10.0
"""Seconds between two looks at the folders of packages: a stat for each. What has changed must then
stay as it is for as long, since an installation takes its time."""
RUNSC_SECONDS = 60.0
"""Seconds between two looks for another runsc: some system calls each."""
USUAL = "gvisor-python"
"""The kernelspec that is made ready at the start if the server's default is not ours."""


class NotOurs(Exception):
    """There is no kernelspec of this name, or its kernels have no sandbox."""


class OutsideRoot(Exception):
    """The folder is not below the server's root."""


@dataclass(frozen=True)
class KernelChoice:
    """A kernel that may be started: the name of its kernelspec, and the folder."""

    kernel_name: str
    folder: Path


class Packages:
    """The folders of an interpreter's packages, as they were at the last look."""

    def __init__(self) -> None:
        self._python = ""
        self._times: tuple[int, ...] = ()
        self._is_changing = False

    def have_changed(self, plan: KernelPlan) -> bool:
        """Return whether they have changed, and were the same at the last two looks.

        Only for packages of this machine: those of an image do not change.
        """
        if plan.spec.image != HOST_IMAGE or not get_runtime(plan.spec.runtime).shows_host_python:
            return False
        interpreter = ask_interpreter(plan.request.python)
        folders = (*interpreter.site_directories, interpreter.user_site or "")
        times = tuple(map(_modified_at, folders))
        if plan.request.python != self._python:
            self._python, self._times, self._is_changing = plan.request.python, times, False
        elif times != self._times:
            self._times, self._is_changing = times, True
        elif self._is_changing:
            self._is_changing = False
            return True
        return False


def _modified_at(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - often, so fast
    except OSError:
        return 0


class KernelPreparer:
    """Prepares the kernel that was requested last. On the server's loop, until ``end``."""

    def __init__(self, application: Any, executor: Executor, enabled: bool) -> None:
        """``application``: the server's. Without ``enabled`` nothing is made."""
        self.enabled = enabled
        self._application = application
        self._executor = executor
        self._choice: KernelChoice | None = None
        self._working: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._last: tuple[KernelChoice, KernelPlan] | None = None
        """The kernel that was prepared last, and its plan: its packages are watched."""
        self._packages = Packages()
        self._runsc = ""
        """The very runsc for which a kernel was prepared last."""
        self._looked = 0.0

    def start(self) -> None:
        """Make ready what is started most likely in the server's root folder, soon."""
        if self.enabled:
            self._starting = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> None:
        await asyncio.sleep(FIRST_SECONDS)
        await self.visit("")
        loop = asyncio.get_running_loop()
        while self.enabled:  # no timeout: a task that ends with the server
            await asyncio.sleep(LOOK_SECONDS)
            if self._last is not None and self._working is None:
                await loop.run_in_executor(self._executor, self._look, *self._last)

    async def visit(self, path: str) -> None:
        """Request the kernel that is started most likely, in the folder of ``path``."""
        manager = self._application.kernel_manager
        for name in dict.fromkeys((manager.default_kernel_name, USUAL)):
            with suppress(NotOurs, OutsideRoot):
                await self.request(name, path)
                return

    async def request(self, kernel_name: str, path: str) -> bool:
        """Request a kernel in the folder of ``path``, as clients of the server name paths.

        Returns False if nothing is made, since that is turned off.

        :raises NotOurs: when there is no such kernelspec, or its kernels have no sandbox
        :raises OutsideRoot: when the folder is not below the server's root
        """
        choice = KernelChoice(kernel_name, self.find_folder(path))
        loop = asyncio.get_running_loop()
        try:
            plan = await loop.run_in_executor(self._executor, self._make_plan, choice)
        except GvisorKernelError as error:
            log.info("Nothing is made ready: %s", error.fact)
            return False
        if plan is None:
            raise NotOurs(kernel_name)
        if not self.enabled:
            return False
        self._choice = choice
        if self._working is None:
            self._working = loop.create_task(self._work())
        return True

    def find_folder(self, path: str) -> Path:
        """Return the folder that a client names by ``path``.

        :raises OutsideRoot: when it is not below the server's root
        """
        manager = self._application.kernel_manager
        root = os.path.abspath(manager.root_dir)  # noqa: PTH100 - also drops ".."
        if "\0" in path:
            raise OutsideRoot(path)
        folder = Path(os.path.abspath(manager.cwd_for_path(path)))  # noqa: PTH100
        if not folder.is_relative_to(root):
            raise OutsideRoot(path)
        return folder

    def _make_plan(self, choice: KernelChoice) -> KernelPlan | None:
        specs = self._application.kernel_spec_manager
        try:
            spec = specs.get_kernel_spec(choice.kernel_name)
        except (KeyError, OSError, ValueError) as error:
            raise NotOurs(choice.kernel_name) from error
        return make_plan_ahead(choice.kernel_name, spec, choice.folder, self._application)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            # no timeout: until no client has asked again; the server's end cancels it
            while self._choice is not None:
                choice, self._choice = self._choice, None
                await loop.run_in_executor(self._executor, self._prepare, choice)
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._working = None

    def _prepare(self, choice: KernelChoice) -> None:
        try:
            plan = self._make_plan(choice)
            if plan is not None:
                self._packages.have_changed(plan)  # from now on
                self._runsc = fix_program(plan).spec.runsc
                prepare(plan)
                self._last = choice, plan
        except (GvisorKernelError, NotOurs) as error:
            log.info("Nothing is made ready: %s", error)
        except Exception:
            log.exception("Nothing is made ready")

    def _look(self, choice: KernelChoice, planned: KernelPlan) -> None:
        """Have the snapshot for ``choice`` made anew if its packages have changed; that and the
        spare if another runsc is to be used."""
        try:
            if time.monotonic() - self._looked >= RUNSC_SECONDS:
                self._looked = time.monotonic()
                if fix_program(planned).spec.runsc != self._runsc:
                    self._prepare(choice)
                    return
            if not self._packages.have_changed(planned):
                return
            plan = self._make_plan(choice)
            if plan is not None and may_prepare(plan):
                renew(plan)
        except (GvisorKernelError, NotOurs) as error:
            log.info("No snapshot is made: %s", error)
        except Exception:
            log.exception("No snapshot is made")

    async def end(self) -> None:
        """Take no more requests. What is being made ends with the process."""
        self.enabled = False
        for task in (self._starting, self._working):
            if task is not None:
                task.cancel()


SCHEMA = "https://events.jupyter.org/jupyter_server/contents_service/v1"
VISIT_SECONDS = 120.0
"""A folder that was listed within this time was not gone to: pages list theirs again and again."""
MAX_FOLDERS = 1000
"""Folders whose last listing is remembered."""
MAX_ENTRIES = 2000
"""Names in a folder that are looked at for a notebook."""


class Listings:
    """Calls ``visit(folder)`` for each folder with notebooks that a client goes to.

    On the server's loop, until ``end``. ``root``: the folder that the server shows.
    """

    def __init__(
        self, logger: Any, root: str, executor: Executor, visit: Callable[[str], Awaitable[None]]
    ) -> None:
        """``logger``: the server's event logger."""
        self._logger = logger
        self._root = root
        self._executor = executor
        self._visit = visit
        self._seen: dict[str, float] = {}
        """The time at which each folder was listed last."""
        self._next: str | None = None
        self._working: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen."""
        self._logger.add_listener(schema_id=SCHEMA, listener=self._on_event)

    async def _on_event(self, logger: Any, schema_id: str, data: dict[str, Any]) -> None:
        path = data.get("path")
        if data.get("action") == "get" and isinstance(path, str):
            self.note(path)

    def note(self, path: str) -> None:
        """Note that a client has got the folder or file ``path``."""
        folder = path.strip("/")
        if folder.endswith(".ipynb"):
            folder = folder.rpartition("/")[0]
        loop = asyncio.get_running_loop()
        now = loop.time()
        last = self._seen.pop(folder, None)
        self._seen[folder] = now
        if len(self._seen) > MAX_FOLDERS:
            del self._seen[next(iter(self._seen))]
        if last is not None and now - last < VISIT_SECONDS:
            return
        self._next = folder
        if self._working is None:
            self._working = loop.create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._next is not None:  # the last of those that came meanwhile
                folder, self._next = self._next, None
                look = asyncio.get_running_loop().run_in_executor(
                    self._executor, has_notebooks, self._root, folder
                )
                if await look:  # no timeout: MAX_ENTRIES names of a folder
                    await self._visit(folder)
        except Exception:
            log.exception("Nothing is made ready for a folder that was listed")
        finally:
            self._working = None

    def end(self) -> None:
        """Listen no more. Idempotent."""
        with suppress(Exception):
            self._logger.remove_listener(listener=self._on_event)
        self._next = None
        if self._working is not None:
            self._working.cancel()


def has_notebooks(root: str, folder: str) -> bool:
    """Return whether a notebook lies directly in a folder of the server. Blocks."""
    path = Path(root, folder)
    if ".." in path.parts or "\0" in folder:
        return False
    with suppress(OSError), os.scandir(path) as found:
        for count, entry in enumerate(found):
            if count >= MAX_ENTRIES:
                break
            if entry.name.endswith(".ipynb") and not entry.name.startswith("."):
                return True
    return False
