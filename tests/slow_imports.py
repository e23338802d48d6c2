"""Leave out an import that takes seconds, in pytest and in the servers that tests start.

jsonschema imports ``rfc3987_syntax``, if it is there, to check the formats of IRIs. That compiles
38 grammars: two seconds of CPU time in each process of the run and for each start of a Jupyter
server. jsonschema works without it, and no schema of Jupyter or of this project names such a
format.
"""

from __future__ import annotations

import sys
from typing import Any

GRAMMARS = "rfc3987_syntax"
PROGRAM = f"""
import runpy, sys
sys.modules[{GRAMMARS!r}] = None
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def leave_out_grammars() -> None:
    """Make an import of the grammars fail in this process, as if they were not installed."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault(GRAMMARS, None)


def command_of(module: str) -> list[str]:
    """Return how to run ``python -m module`` without the grammars; its arguments follow."""
    return [sys.executable, "-c", PROGRAM, module]
