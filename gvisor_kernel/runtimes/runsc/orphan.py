"""Saves a kernel whose process was killed, so that the next process can let it go on.

Its PID 1 waits for another host for a minute (``guest/host_link``). Runs in the small process that
outlives the owner (``after_owner``), which has no link to the sandbox and asks nothing inside.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host import processes
from gvisor_kernel.runtimes.runsc.kept_programs import find_files
from gvisor_kernel.runtimes.runsc.runsc_sandbox import save_sandbox
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.kept_packages import begin_to_keep, find_packages
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.runtimes.state.saved import MAX_NOTE, NOTE, SAVED, write_saved
from gvisor_kernel.runtimes.state.sealed import Cipher, Seal, read_note
from gvisor_kernel.runtimes.state.shown_files import find_held, find_shown_files
from gvisor_kernel.spec.layout import OUTPUTS
from gvisor_kernel.strict_json import parse_json

SAVE_SECONDS = 50.0
"""Less than PID 1 waits."""
NOTICE_SECONDS = 0.5
"""Seconds in which PID 1 notices that its host is gone, and forgets half a frame of it."""
_SCRIPT = f'kill -CONT "$0"; sleep {NOTICE_SECONDS}; "$@" && kill -STOP "$0"'
"""Lets a sandbox run, which waits stopped, only until it is saved: it would end after a minute, and
this process may be stopped meanwhile."""


def save_orphan(directory: Path, record: Record) -> bool:
    """Save the kernel of a sandbox that runs without its owner; see ``RuntimeEntry.save``."""
    sentry = record.processes.get("sentry")
    if sentry is None or not processes.is_alive(sentry) or not (directory / NOTE).is_file():
        return False

    within = ("/bin/sh", "-c", _SCRIPT, str(sentry.pid))
    save = partial(save_sandbox, record.program, directory, seconds=SAVE_SECONDS, within=within)
    try:
        content, key = read_note(directory / NOTE, directory.name)
        note, saved, cipher = parse_json(content, MAX_NOTE), time.time(), Cipher(key)

        def describe(seal: Seal) -> dict[str, str]:
            files = find_shown_files(sentry.pid, note["sources"]) | find_files(record.program)
            packages = find_packages(files, note["sources"])
            facts = {"files": files, "packages": packages, "saved": saved, "seal": asdict(seal)}
            *held, opened = find_held(sentry.pid, OUTPUTS, note["sources"])
            text = json.dumps(note | facts | {"held": held, "opened": opened})
            if len(text) > MAX_NOTE:
                raise ValueError("nobody could read it")
            return {NOTE: cipher.write_note(text, directory.name)}

        write_saved(directory / SAVED, lambda it: cipher.write_image(it, record, save), describe)
        records.change_record(directory, record, saved=saved)
        begin_to_keep()
    except (OSError, ValueError, LookupError, TypeError, GvisorKernelError):
        return False
    return True
