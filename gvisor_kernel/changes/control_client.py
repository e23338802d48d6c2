"""Asks the process that has a kernel about the kernel's changes, by its control socket. Blocks."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gvisor_kernel.changes.change import Applied, Change, Changes, ChangesError, RefusedChange
from gvisor_kernel.changes.control import MAX_ANSWER, SOCKET, WORK_SECONDS
from gvisor_kernel.changes.diff import Diff
from gvisor_kernel.strict_json import JsonError, parse_json

PART = 256 * 1024


def list_changes(
    directory: Path, *, diff: bool = False, under: Sequence[str] = ()
) -> tuple[Changes, dict[str, Diff]]:
    """Return the changes of the sandbox with this state directory, and diffs by path.

    ``under``: only those of these paths.

    :raises ChangesError: when they cannot be listed
    """
    content = ask(directory, {"do": "list", "diff": diff, "under": list(under)})
    try:
        changes = tuple(Change(**change) for change in content["changes"])
        found = Changes(changes, content["more"], content["total"])
        whole = set(content.get("whole", ()))  # an older process does not say
        diffs = content.get("diffs", {}).items()
        return found, {path: Diff(text, path in whole) for path, text in diffs}
    except (AttributeError, KeyError, TypeError) as error:
        raise _malformed() from error


def apply_changes(
    directory: Path, changes: Sequence[Change], *, named: Sequence[str] = (), force: bool = False
) -> Applied:
    """Apply changes as they were listed. ``named``: paths of those that may run by themselves.

    :raises ChangesError: when nothing can be applied
    """
    wanted = [[change.path, change.state] for change in changes]
    question = {"do": "apply", "changes": wanted, "named": list(named), "force": force}
    content = ask(directory, question)
    try:
        refused = tuple(RefusedChange(**one) for one in content["refused"])
        return Applied(tuple(content["applied"]), refused, content["undo"])
    except (KeyError, TypeError) as error:
        raise _malformed() from error


def ask(directory: Path, question: Mapping[str, object]) -> dict[str, Any]:
    """Ask one question and return the answer.

    :raises ChangesError: when there is none, or it is an error
    """
    end = time.monotonic() + WORK_SECONDS
    received = bytearray()
    try:
        # by path: below the state directory, whose parents only this user can change
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
                asking.settimeout(WORK_SECONDS)
                asking.connect(f"/proc/self/fd/{folder}/{SOCKET}")
                asking.sendall(json.dumps(question).encode() + b"\n")
                while not received.endswith(b"\n") and len(received) <= MAX_ANSWER:
                    asking.settimeout(max(end - time.monotonic(), 0.01))
                    part = asking.recv(PART)
                    if not part:
                        break
                    received += part
        finally:
            os.close(folder)
    except OSError as error:
        raise ChangesError(
            f"The process that has this kernel does not answer: {error.strerror or error}.",
            "the kernel must run, and must have been started by this version of gvisor-kernel.",
        ) from error
    try:
        content = parse_json(bytes(received), MAX_ANSWER)
    except JsonError as error:
        raise _malformed() from error
    if not isinstance(content, dict):
        raise _malformed()
    if "error" in content:
        raise ChangesError(str(content["error"]), str(content.get("hint", "")))
    return content


def _malformed() -> ChangesError:
    return ChangesError(
        "The process that has this kernel gave no answer that can be read.",
        "it may be busy with others: try again.",
    )
