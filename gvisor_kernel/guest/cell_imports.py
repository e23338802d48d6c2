"""Reports to the host which modules of the environment the cells of a kernel import.

Runs in the kernel's process after each cell, for the first minutes. Only names leave the sandbox:
of modules that are installed beside the interpreter, and of variables that cells set. The host
counts the modules and imports the most used ones ahead in the next snapshot, but none if cells set
variables that these would have read before. It believes nothing else of a report.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from contextlib import suppress
from typing import Any, Iterator, List, Optional, Sequence, Set

from gvisor_kernel.guest.environment_modules import is_loaded
from gvisor_kernel.guest.questions import ADDRESS, LENGTH

VARIABLE = "GVISOR_KERNEL_LEARNS"
"""Set by the host where it wants to know."""
SECONDS = 600.0
"""Seconds after its first cell in which a kernel reports."""
SEND_SECONDS = 0.2
"""Seconds that a cell waits for PID 1 to take a report, at most."""
MAX_CODE = 100_000
"""Characters of a cell that is searched."""
MAX_NAMES = 64
MAX_NAME = 100
MAX_PARTS = 3
MAX_VARIABLES = 16

_STATEMENT = re.compile(
    r"^[^\S\n]*(?:import[^\S\n]+(?P<names>[\w., \t]+)"
    r"|from[^\S\n]+(?P<package>[\w.]+)[^\S\n]+import[^\S\n]+\(?(?P<members>[\w., \t]*))",
    re.MULTILINE | re.ASCII,
)


_VARIABLE = re.compile(r"\b[A-Z][A-Z0-9_]{2,63}\b", re.ASCII)


class CellImports:
    """Reports each import of one kernel once. The callback of IPython's event ``post_run_cell``."""

    def __init__(self) -> None:
        self._reported: Set[str] = set()
        self._end: Optional[float] = None

    def after_cell(self, result: Any) -> None:
        """Report what a cell has imported. ``result``: IPython's of the cell."""
        with suppress(Exception):  # a cell must not fail by this
            if VARIABLE not in os.environ:
                return
            code = result.info.raw_cell
            if len(code) > MAX_CODE or not ("import" in code or "env" in code):
                return
            now = time.monotonic()
            if self._end is None:
                self._end = now + SECONDS
            if now > self._end:
                return
            names = self._find_new(code)
            variables = find_variables(code)
            if names or variables:
                send_report(names, variables)
                self._reported.update(names)

    def _find_new(self, code: str) -> List[str]:
        names = {name for name in find_imports(code) if name not in self._reported}
        room = MAX_NAMES - len(self._reported)
        return sorted(name for name in names if is_loaded(name))[:room]


def find_imports(code: str) -> Iterator[str]:
    """Yield names that import statements in ``code`` may mean, also those in a cell with magics.

    Some are none: a word in a text, or a member that is a function. ``sys.modules`` tells.
    """
    for statement in _STATEMENT.finditer(code.replace(";", "\n")):
        package = statement["package"]
        words = (item.split() for item in (statement["names"] or statement["members"]).split(","))
        found = [item[0] for item in words if item]
        if package is not None:
            found = [package, *(f"{package}.{member}" for member in found)]
        for name in found:
            if not name.startswith(".") and len(name) <= MAX_NAME and name.count(".") < MAX_PARTS:
                yield name


def find_variables(code: str) -> List[str]:
    """Return the variables of the environment that ``code`` names, as it may have set them."""
    if "env" not in code:
        return []
    return sorted(set(_VARIABLE.findall(code)).intersection(os.environ))[:MAX_VARIABLES]


def send_report(names: List[str], variables: Sequence[str] = ()) -> None:
    """Send names to the host, and do not wait for its answer.

    :raises OSError: when PID 1 does not take them
    """
    head = json.dumps({"do": "imports", "names": names, "variables": list(variables)}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(SEND_SECONDS)
        connection.connect(ADDRESS)
        size = LENGTH.pack(LENGTH.size + len(head))
        connection.sendall(size + LENGTH.pack(len(head)) + head)
