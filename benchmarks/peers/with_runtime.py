"""Run a peer's program so that its containers use another OCI runtime than the engine's default.

python with_runtime.py RUNTIME MODULE-OR-FILE [ARGUMENTS]: the peers have no such setting. A file is
looked up in the installed packages. A separate program without imports of this package.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

from docker.models.containers import (  # type: ignore[import-untyped,unused-ignore]
    ContainerCollection,
)


def main() -> None:
    runtime, program = sys.argv[1:3]
    del sys.argv[1:3]
    run = ContainerCollection.run

    def run_with(self: ContainerCollection, *args: Any, **kwargs: Any) -> Any:
        return run(self, *args, runtime=runtime, **kwargs)

    ContainerCollection.run = run_with
    if not program.endswith(".py"):
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        return
    for folder in sys.path:
        path = Path(folder, program)
        if path.is_file():
            sys.argv[0] = str(path)
            runpy.run_path(str(path), run_name="__main__")
            return
    raise SystemExit(f"{program} is not installed")


if __name__ == "__main__":
    main()
