"""A process that owns kernels, to be killed by tests: ``python -m tests.faults.holder``.

Arguments: the number of kernels, the folder for their connection files (which Jupyter would
remove), and "busy" or "idle". Starts the kernels, runs an endless cell in each unless "idle" is
given, writes their identities as one line of JSON, and waits until its stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import sys

from jupyter_client.manager import KernelManager

from ..jupyter.helpers import SOONEST, connected, execute


def main(count: int, folder: str, then: str) -> None:
    managers = []
    for number in range(count):
        manager = KernelManager(
            kernel_name=SOONEST, connection_file=f"{folder}/kernel-{number}.json"
        )
        manager.start_kernel()
        with connected(manager) as client:
            assert execute(client, "import subprocess; x = 42").status == "ok"
            if then != "idle":
                client.execute("subprocess.run(['sleep', '1000'])")
        managers.append(manager)
    infos = [asyncio.run(m.provisioner.get_provisioner_info())["sandbox"] for m in managers]
    print(json.dumps(infos), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
