"""A process that kills something at a point of a verb of ``gvisor-kernel``'s states that last.

    python -m tests.lasting.points

See ``tests/faults/points``. Each stage is one verb over a kernel in which ``x`` is 2, and in its
checkpoint "one" 1.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.kernel.branches import name_branches, remove_all
from gvisor_kernel.kernel.client import connect, wait_for_reply
from gvisor_kernel.kernel.saved_kernel import find_saved
from gvisor_kernel.runtimes.state import packer, records
from gvisor_kernel.runtimes.state.pages import FOLDER
from gvisor_kernel.runtimes.state.saved import NOTE
from gvisor_kernel.runtimes.state.sweep import has_run

from ..faults import parts, points
from ..faults.points import Life, Points

KERNEL_ID = "0d4f9c3e-7d56-4f0e-9f4a-000000000001"
MORTAL = ("sentry", "gofer", "PID 1", "kernel")
"""Parts without which a kernel that is awake cannot go on."""


class LastingLife(Life):
    """A kernel of a server that takes back what its earlier process has left."""

    was_saved = False
    """Whether the kernel was saved when a part was killed."""

    def hibernate(self) -> None:
        self._begin()
        self._points.armed = True
        asyncio.run(self.kernel.hibernation.hibernate())

    def wake(self) -> None:
        self._begin()
        asyncio.run(self.kernel.hibernation.hibernate())
        self._points.armed = True
        asyncio.run(self.kernel.hibernation.resume())

    def save(self) -> None:
        self._begin()
        self._points.armed = True
        asyncio.run(self.kernel.checkpoints.make("two"))

    def rewind(self) -> None:
        packer.WAIT_SECONDS = 0.0
        self._begin()
        # Otherwise a busy machine would pass other points each time.
        one = self.kernel.hibernation.find_directory() / FOLDER / "one"
        self._wait_until(lambda: not list(one.glob("image*")))
        self._points.armed = True
        asyncio.run(self.kernel.checkpoints.rewind("one"))

    def branch(self) -> None:
        self._begin()
        self._points.armed = True
        remove_all(asyncio.run(self.kernel.hibernation.branch(name_branches(2, "b"))))

    def branch_saved(self) -> None:
        self._begin()
        asyncio.run(self.kernel.hibernation.hibernate())
        self._points.armed = True
        remove_all(asyncio.run(self.kernel.hibernation.branch(name_branches(2, "b"))))

    def take(self) -> None:
        """Take over what a killed process has left, and say what it has."""
        saved = find_saved(KERNEL_ID)
        if saved is None:
            self.said.append("nothing is left")
            return
        plan = saved.adapt(self._plan)
        self.address = asyncio.run(self.kernel.adopt(plan, saved.compare(plan)))
        self.say()

    def _begin(self) -> None:
        self.address = asyncio.run(self.kernel.launch(self._plan))
        with connect(self.address, self._plan, self.kernel.find_end) as client:
            wait_for_reply(client, client.kernel_info())
            self._run(client, "x = 1")
            asyncio.run(self.kernel.checkpoints.make("one"))
            self._run(client, "x = 2")
        directory = self.kernel.hibernation.find_directory()
        self._wait_until((directory / NOTE).exists)

    def _wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + points.SECONDS
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def say(self) -> None:
        """Note what ``x`` is."""
        with connect(self.address, self._plan, self.kernel.find_end) as client:
            request = client.execute("", user_expressions={"x": "x"})
            deadline = time.monotonic() + points.SECONDS
            while time.monotonic() < deadline:
                with suppress(Exception):
                    reply = client.get_shell_msg(timeout=0.2)
                    if reply["parent_header"].get("msg_id") == request:
                        found = reply["content"].get("user_expressions", {}).get("x", {})
                        self.said.append(found.get("data", {}).get("text/plain", str(reply)))
                        return
                if self.kernel.exit_status is not None:
                    self.said.append(f"dead: {self.kernel.find_end()}")
                    return
            self.said.append("no reply")

    def note_kill(self) -> None:
        self.was_saved = self.kernel.hibernation.saved is not None

    def go_on(self, request: dict[str, Any]) -> None:
        """Say what the kernel has; or that it has died, as it may of what was killed."""
        self.said.clear()
        with suppress(GvisorKernelError):
            asyncio.run(self.kernel.hibernation.resume())
        if self.kernel.exit_status is None:
            self.say()
        if self.kernel.exit_status is not None:
            may = request["victim"] in MORTAL and not self.was_saved
            self.said = ["may be dead"] if may else [f"dead: {self.kernel.find_end()}"]


def find_life(request: dict[str, Any], its_points: Points) -> Life:
    base = points.find_life(request, its_points)._plan
    plan = replace(base, lasts=True, request=replace(base.request, kernel_id=KERNEL_ID))
    life = LastingLife(its_points, plan)
    act = its_points.act

    def note_and_act() -> None:
        life.note_kill()
        act()

    its_points.act = note_and_act
    return life


def find_sandbox() -> Path | None:
    """Return the directory of the newest sandbox that is more than a saved branch."""
    running = [one for one in records.sandbox_directories() if has_run(one)]
    return running[-1] if running else None


if __name__ == "__main__":
    parts.find_sandbox = find_sandbox
    points.main(find_life)
