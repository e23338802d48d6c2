"""A process that owns kernels, for tests to kill: run as ``python -m tests.faults.holder``.

Starts as many sandboxed kernels as its first argument says, with their connection files (which
are Jupyter's to remove) in the folder that the second one names; runs a cell in each that never
ends, unless a third one is "idle", writes one line of JSON (their identities), and waits until its
stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import sys

from jupyter_client.manager import KernelManager

from ..jupyter.helpers import connected, execute


def main(count: int, folder: str, then: str) -> None:
    managers = []
    for number in range(count):
        manager = KernelManager(
            kernel_name="gvisor-python", connection_file=f"{folder}/kernel-{number}.json"
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
