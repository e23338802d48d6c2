"""A process with a worker, for tests of its end. Prints pids, then waits for the end of stdin.

``fork``: a child is forked that has a copy of everything, and a worker of its own.
"""

from __future__ import annotations

import os
import sys

from gvisor_kernel.egress.process import EgressWorker, Grant


def main() -> None:
    end = EgressWorker.instance().open(Grant("python-1", (), None), lambda line: None)
    pids = [EgressWorker.instance().pid]
    if "fork" in sys.argv:
        child = os.fork()
        if not child:
            kept = EgressWorker.instance().open(Grant("python-2", (), None), lambda line: None)
            print(os.getpid(), EgressWorker.instance().pid, flush=True)
            sys.stdin.read()
            kept.close()
            EgressWorker.instance().end()
            os._exit(0)
    print(*pids, flush=True)
    sys.stdin.read()
    end.close()


if __name__ == "__main__":
    main()
