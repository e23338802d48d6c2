"""A program of its own that starts a kernel and runs one cell, as `jupyter execute` does.

``python -P program.py KERNELSPEC TRANSPORT`` prints DONE when the cell's reply has come. Only so is
the first start of a process measured, with all that it imports: so this file imports nothing else.
"""

from __future__ import annotations

import sys

from jupyter_client.manager import KernelManager

DONE = "done"
SECONDS = 120.0


def main(kernel_name: str, transport: str) -> None:
    manager = KernelManager(kernel_name=kernel_name, transport=transport)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        client.execute_interactive("1+1", timeout=SECONDS, output_hook=lambda message: None)
        print(DONE, flush=True)
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


if __name__ == "__main__":
    main(*sys.argv[1:])
