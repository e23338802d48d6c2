"""Runs notebooks in forked workers of a process that has a kernel.

``python -m tests.jupyter.forked_workers KERNEL NOTEBOOKS WORKERS``. The workers inherit the event
loop that jupyter_core keeps between calls. They share its descriptors, and so each other's
wake-ups.
"""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient


def run_notebook(kernel: str, number: int) -> int:
    """Run a notebook that prints ``number``, and return what it printed."""
    cell = nbformat.v4.new_code_cell(f"print({number})")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, kernel_name=kernel, timeout=None, startup_timeout=300).execute()
    (output,) = cell["outputs"]
    return int(output["text"])


def main(kernel: str, notebooks: int, workers: int) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # of newer Pythons: a fork with threads
    run_notebook(kernel, 0)
    manager = KernelManager(kernel_name=kernel)
    manager.start_kernel()
    try:
        numbers = range(1, notebooks + 1)
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            printed = list(pool.map(run_notebook, [kernel] * notebooks, numbers))
        assert printed == list(numbers), printed
        assert manager.is_alive()
    finally:
        manager.shutdown_kernel()
    print(f"{notebooks} notebooks")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
