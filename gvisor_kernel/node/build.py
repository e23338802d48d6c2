"""Makes the snapshot of an order on this node, in a process of the lowest priority."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from gvisor_kernel.config.settings import write_spec
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.kernel.snapshot_builder import build_in_background
from gvisor_kernel.kernel.snapshot_queue import end_with
from gvisor_kernel.node.serve import HostGone, adopt_places, receive_order
from gvisor_kernel.runtimes.nodes.orders import OrderError


def build() -> int:
    """Make the snapshot that the host orders on stdin, unless it exists; return the exit status.

    This process ends, and removes what it has begun, when stdin ends.
    """
    wake, never = os.pipe2(os.O_CLOEXEC)
    try:
        order = receive_order(sys.stdin.fileno(), wake)
        if order.kernel is None:
            raise OrderError("The order names no kernel.")
        adopt_places(order)
        end_with(sys.stdin.fileno())
        request = {**vars(order.request), "folder": str(order.request.folder)}
        spec = write_spec(replace(order.spec, runtime="runsc"))
        build_in_background({**order.kernel, "spec": spec, "request": request})
    except (KeyboardInterrupt, HostGone):
        return 0  # nobody wants it any more; of a job of Slurm, another status would be a failure
    except (GvisorKernelError, OrderError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        os.close(wake)
        os.close(never)
    return 0
