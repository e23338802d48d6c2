"""A process that runs kernels through their lives, and swaps one of their folders at a step.

    python -m tests.security.racer

Reads one JSON object per line and answers with one line. ``faults/points`` defines the steps and
the stages of a life. Each cell checks that it sees no hidden file, and writes.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.kernel.client import OwnClient
from gvisor_kernel.kernel.snapshot_queue import SnapshotQueue
from gvisor_kernel.snapshots.snapshot_store import Store

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
    """The life of a kernel whose cells check what they see first."""

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
    # A failed restore would discard the snapshot, which is good.
    Store.discard = lambda self, key, reason: None  # type: ignore[method-assign]
    SnapshotQueue.instance().stop()
    passed = points.Points()
    for line in sys.stdin:
        print(json.dumps(live(passed, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
