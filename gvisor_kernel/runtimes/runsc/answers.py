"""What installed programs runsc have answered, kept for all processes of this user.

Asking runsc for its version and its flags takes longer than any other step of a start in Python,
and trying what it needs takes a small sandbox. Here is only the file; who asks is ``command_line``
and ``features``. The file belongs to this user, and nothing from a sandbox is in it.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import StateError
from gvisor_kernel.host.private_directories import read_file, write_file
from gvisor_kernel.runtimes.state.records import state_root

FILE = "runsc.json"
MAX_BYTES = 256 * 1024
"""The flags of one program take 3 KB."""
MAX_PROGRAMS = 8
"""How many programs are remembered on this machine; the oldest are forgotten."""


def read_answers(program: str) -> dict[str, Any]:
    """Return what ``program`` has answered before, by question; the types are not checked.

    ``program``: path and fingerprint, so that another file at the same path has no answers. Returns
    an empty dictionary if the file is missing or damaged.
    """
    found = _read_all().get(program)
    return found if isinstance(found, dict) else {}


def keep_answers(program: str, answers: dict[str, Any]) -> None:
    """Add ``answers`` to those of ``program``. Never raises: without the file the next process asks
    again. Two processes may write at the same time; then one of the answers is asked for again."""
    merged = {**read_answers(program), **answers}
    others = [item for item in _read_all().items() if item[0] != program]
    newest = dict([*others, (program, merged)][-MAX_PROGRAMS:])
    with suppress(OSError, StateError), tempfile.TemporaryDirectory(dir=state_root()) as folder:
        draft = Path(folder, FILE)
        write_file(draft, json.dumps(newest))
        draft.replace(state_root() / FILE)


def _read_all() -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError, StateError):
        found = json.loads(read_file(state_root() / FILE, MAX_BYTES))
        if isinstance(found, dict):
            return found
    return {}
