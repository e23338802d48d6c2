"""A process that takes kernels through their lives, and has a folder of theirs swapped on the way.

    python -m tests.security.racer

Reads one JSON object a line and answers with one line. Where a swap can be made, and which lives
there are, is said by ``faults/points``. Each cell looks for what no kernel may see, and writes.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.kernel.background_builder import SnapshotBuilder
from gvisor_kernel.kernel.client import OwnClient
from gvisor_kernel.snapshots.store import Store

from ..faults import points
from .races import exchange

LOOK = """
import os
for folder in ("outputs", "uploads"):
    seen = os.listdir("/mnt/user-data/" + folder)
    assert "secret" not in seen and "outputs/secret" not in seen, seen
assert not os.path.exists("/mnt/user-data/uploads/outputs/secret")
open("/mnt/user-data/outputs/written", "w").close()
"""


class Life(points.Life):
    """Of a kernel that looks around before it does anything else."""

    def _run(self, client: OwnClient, code: str) -> None:
        super()._run(client, LOOK + code)


def live(passed: points.Points, request: dict[str, Any]) -> dict[str, Any]:
    os.chdir(request["folder"])
    found = points.find_life(request, passed)
    life = Life(passed, found._plan)
    passed.begin(request["at"], partial(exchange, *map(Path, request["swap"])), list)
    refused = False
    try:
        getattr(life, request["stage"])()
    except GvisorKernelError:
        refused = True
    finally:
        passed.armed = False
        life.close()
    return {"points": passed.passed, "refused": refused}


def main() -> None:
    # Whoever did not come back from an image tells the store so. The image is as it was.
    Store.discard = lambda self, key, reason: None  # type: ignore[method-assign]
    SnapshotBuilder.instance().end()
    passed = points.Points()
    for line in sys.stdin:
        print(json.dumps(live(passed, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
