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


def read_answers(path: str, fingerprint: str) -> dict[str, Any]:
    """Return what the program at ``path`` has answered before, by question; the types are not
    checked.

    Another file at the same path has another ``fingerprint``, so it has no answers. Returns an
    empty dictionary if the file of answers is missing or damaged, and for a script.
    """
    found = {} if is_script(path) else _read_all().get(f"{path} {fingerprint}")
    return found if isinstance(found, dict) else {}


def keep_answers(path: str, fingerprint: str, answers: dict[str, Any]) -> None:
    """Add ``answers`` to those of a program, unless it is a script. Never raises: without the file
    the next process asks again. Two processes may write at the same time; then one of the answers
    is asked for again."""
    if is_script(path):
        return
    program = f"{path} {fingerprint}"
    merged = {**read_answers(path, fingerprint), **answers}
    others = [item for item in _read_all().items() if item[0] != program]
    newest = dict([*others, (program, merged)][-MAX_PROGRAMS:])
    with suppress(OSError, StateError), tempfile.TemporaryDirectory(dir=state_root()) as folder:
        draft = Path(folder, FILE)
        write_file(draft, json.dumps(newest))
        draft.replace(state_root() / FILE)


def is_script(path: str) -> bool:
    """Return whether the program at ``path`` is a script. What answers then is a program that the
    script starts: when that is replaced, the script stays as it is."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return True


def _read_all() -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError, StateError):
        found = json.loads(read_file(state_root() / FILE, MAX_BYTES))
        if isinstance(found, dict):
            return found
    return {}
