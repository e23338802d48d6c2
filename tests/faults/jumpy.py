"""A server whose wall clock jumps: ``python -m tests.faults.jumpy SECONDS FOLDER``.

Only ``time.time`` of this process is changed, not the machine's clock. libzmq, selectors and locks
use the monotonic clock. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time

from gvisor_kernel.cli.main import main as command
from gvisor_kernel.kernel.snapshot_queue import SnapshotQueue
from gvisor_kernel.runtimes import get_runtime

from ..jupyter.helpers import execute, kernel_log, running_kernel, wait_for_text, wait_until


class Clock:
    def __init__(self) -> None:
        self.offset = 0.0
        self._time = time.time
        time.time = self.time
        time.time_ns = lambda: int(self.time() * 1e9)

    def time(self) -> float:
        return self._time() + self.offset


def main(seconds: float, folder: str) -> dict[str, bool]:
    os.chdir(folder)
    SnapshotQueue.instance().stop()
    clock = Clock()
    seen = {}
    with running_kernel() as (manager, client):
        execute(client, "x = 6 * 7")
        clock.offset = seconds
        seen["a cell after it"] = execute(client, "x").result == "42"
        seen["an interrupt"] = not manager.interrupt_kernel() and manager.is_alive()
        seen["no sandbox is swept"] = get_runtime("runsc").sweep() == []
        seen["it is listed"] = command(["list", "--json"]) == 0
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        seen["a restart"] = execute(client, "6 * 7").result == "42"
        busy = client.execute("import time; print('begun', flush=True); time.sleep(1000)")
        wait_for_text(client, "begun")
        clock.offset = -seconds
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=60)
        seen["an interrupt of a cell"] = reply["parent_header"]["msg_id"] == busy
        clock.offset = seconds
    with running_kernel() as (manager, client):
        seen["a start"] = execute(client, "6 * 7").result == "42"
        seen["from a snapshot"] = "was restored from a snapshot" in kernel_log(manager)
        clock.offset = 0
        client.execute("import os; os.kill(os.getpid(), 9)")
        wait_until(lambda: not manager.is_alive(), "the kernel's death")
        seen["a death is noticed"] = True
    return seen


if __name__ == "__main__":
    print("\n" + json.dumps(main(float(sys.argv[1]), sys.argv[2])))
