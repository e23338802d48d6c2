"""Helpers to attack: run code in a kernel, and check host and neighbour.

Every cell can use ``PRELUDE``. An attack prints in JSON what it achieved, or the error with which
it was refused. Whether host and neighbour are unharmed is checked from outside.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.runtimes.mounts.folders import open_inputs
from gvisor_kernel.runtimes.mounts.outputs import open_outputs

from ..jupyter.helpers import execute, running_kernel
from ..runtimes.conftest import make_request

PRELUDE = '''
import ctypes, errno, glob, json, os, select, signal, socket, stat, struct, subprocess, sys, time
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)

def refused(action):
    """The name of the error with which action was refused, or None if it was done."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))
    except ValueError as error:  # as Python puts it of limits
        return repr(error)
    return None

def call(name, *arguments):
    """A function of libc; raises OSError."""
    result = getattr(libc, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result

def elsewhere(code, *arguments):
    """The JSON that code prints in a process of its own, with this prelude."""
    program = PRELUDE + code
    argv = [sys.executable, "-c", program, json.dumps(arguments)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return json.loads(done.stdout)

def as_root_of_a_namespace(code, *arguments):
    """Likewise, in namespaces of its own (not of processes), with every capability there."""
    enter = "\\nfor flag in (0x10000000, 0x20000, 0x40000000, 0x8000000, 0x4000000):\\n"
    enter += "    if libc.unshare(flag) and flag == 0x10000000: raise OSError('no namespace')\\n"
    return elsewhere(enter + code, *arguments)
'''
PRELUDE += f"\nPRELUDE = {PRELUDE!r}\n"

SECRET = "hunter2-6f1d0c"  # noqa: S105 - nobody's
"""Content of files and variables of the host that no kernel may see."""


@dataclass
class Kernel:
    """A kernel that runs, its client, and its notebook's folder."""

    manager: KernelManager
    client: BlockingKernelClient
    folder: Path

    def run(self, code: str, seconds: float = 60.0) -> Any:
        """Run ``code``, and return the value of its variable ``found``."""
        answer = execute(self.client, textwrap.dedent(code) + "\nprint(json.dumps(found))", seconds)
        assert answer.status == "ok", answer.reply["content"]
        return json.loads(answer.text.splitlines()[-1])

    @property
    def sandbox(self) -> Any:
        return self.manager.provisioner._kernel.sandbox  # type: ignore[union-attr]


@contextmanager
def attacker(
    folder: Path, settings: dict[str, Any] | None = None, **start: Any
) -> Iterator[Kernel]:
    """A kernel in ``folder`` in which the prelude was run."""
    start = {"cwd": str(folder), **start}
    with running_kernel(settings=settings, start=start) as (manager, client):
        assert execute(client, PRELUDE).status == "ok"
        yield Kernel(manager, client, folder)


@dataclass
class Neighbour:
    """A second kernel, which must not be affected by the attack."""

    kernel: Kernel
    asked: int = 0

    def check(self, seconds: float = 10.0) -> None:
        """Assert that the kernel answers, and that its memory and files are unchanged."""
        self.asked += 1
        found = self.kernel.run(
            """
            asked += 1
            found = [asked, Path("/mnt/user-data/outputs/mine").read_text(), os.getcwd()]
            """,
            seconds,
        )
        assert found == [self.asked, "neighbour's", "/workspace"]


@contextmanager
def running_neighbour(folder: Path) -> Iterator[Neighbour]:
    with attacker(folder) as kernel:
        kernel.run(
            "asked = 0; found = Path('/mnt/user-data/outputs/mine').write_text(\"neighbour's\")"
        )
        yield Neighbour(kernel)


@dataclass
class Host:
    """Files of the host that must stay as they are."""

    guarded: tuple[Path, ...]
    left_out: tuple[Path, ...] = ()
    before: dict[Path, Any] = field(default_factory=dict)

    def look(self) -> dict[Path, Any]:
        found: dict[Path, Any] = {}
        for top in self.guarded:
            for path in (top, *sorted(top.rglob("*"))):
                if any(path.is_relative_to(left) for left in self.left_out):
                    continue
                status = path.lstat()
                content = path.read_bytes() if path.is_file() else b""
                found[path] = (content, status.st_mode, status.st_uid, status.st_nlink)
        return found


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def outputs_of(spec: SandboxSpec, folder: Path) -> str | None:
    """Return the folder that a kernel started in ``folder`` could write as outputs."""
    with ExitStack() as stack:
        inputs = open_inputs(spec, make_request(folder), stack)
        return open_outputs(spec, inputs, stack).path


def uploads_of(spec: SandboxSpec, folder: Path) -> str | None:
    """Return the folder that a kernel started in ``folder`` would see as uploads."""
    with ExitStack() as stack:
        uploads = open_inputs(spec, make_request(folder), stack).uploads
        return None if uploads is None else uploads.path
