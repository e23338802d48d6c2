"""Run notebooks/tour.ipynb in a sandbox; print each cell's result and duration.

The notebook's folder is the checkout, or the argument. Every cell of the notebook asserts what it
prints, so a claim that does not hold stops the tour.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from gvisor_kernel.errors import GvisorKernelError

PROJECT = Path(__file__).resolve().parent.parent
KERNEL = "gvisor-python"
PLOT = "tour.png"


def find_folder() -> Path:
    """Return the checkout, or a new folder if the checkout is not writable."""
    try:
        with tempfile.TemporaryFile(dir=PROJECT):
            return PROJECT
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="gvisor-kernel-tour-"))
        shutil.copy(PROJECT / "README.md", folder)
        return folder


def run(folder: Path) -> None:
    notebook = nbformat.read(PROJECT / "notebooks" / "tour.ipynb", as_version=4)
    client = NotebookClient(
        notebook, kernel_name=KERNEL, timeout=120, resources={"metadata": {"path": str(folder)}}
    )
    began = time.perf_counter()
    with client.setup_kernel():
        started = time.perf_counter() - began
        print(f"    {started:4.1f} s  the kernel answered", flush=True)
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            before = time.perf_counter()
            client.execute_cell(cell, index)
            took = time.perf_counter() - before
            lines = "".join(o.text for o in cell.outputs if o.output_type == "stream").splitlines()
            for number, line in enumerate(lines):
                print(f"    {took:4.1f} s  {line}" if number == 0 else f"            {line}")
            sys.stdout.flush()
    print(f"    {time.perf_counter() - began:4.1f} s  total, including the kernel's shutdown")
    ran = folder / "outputs" / "tour.ipynb"
    ran.unlink(missing_ok=True)
    with ran.open("x") as file:  # a kernel may have put a file or a link there
        nbformat.write(notebook, file)


def main() -> int:
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else find_folder()
    plot = folder / "outputs" / PLOT
    plot.unlink(missing_ok=True)
    try:
        run(folder)
    except CellExecutionError as error:
        print(f"\nA claim of the tour does not hold on this machine:\n{error}", file=sys.stderr)
        return 1
    except GvisorKernelError as error:
        print(f"\nThe sandbox did not start. {error}", file=sys.stderr)
        return 1
    if not plot.is_file():
        print(f"\nThe tour left no plot at {plot}.", file=sys.stderr)
        return 1
    environment = Path(sys.executable).parent
    root = "--allow-root " if os.geteuid() == 0 else ""
    print(
        f"\nThe plot:              {plot}\n"
        f"The executed notebook: {plot.with_name('tour.ipynb')}\n\n"
        'To pick "Python 3 (gVisor)" in JupyterLab:\n'
        f"    {environment}/pip install jupyterlab && {environment}/jupyter lab {root}{folder}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
