"""Runs of notebooks with Output widgets end: nbclient misses no reply (``bridge/replies.py``).

``tests/bridge/test_replies.py`` shows without a kernel what it missed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from .helpers import SECONDS, SOONEST

pytest.importorskip("ipywidgets")

CAPTURED = """with out:
    clear_output(wait=True)
    print({number})
    display({number})
"""
FAILED = """with out:
    clear_output(wait=True)
    raise ValueError("a captured error")
"""
CELLS = 20


# nbclient calls it for kernels whose dates have an unusual format, as these have.
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_cells_with_output_widgets_end(folder: Path) -> None:
    """No cell has a timeout, which would wake nbclient."""
    cells = [
        "import ipywidgets\nfrom IPython.display import clear_output, display",
        "out = ipywidgets.Output()\nout",
        *(CAPTURED.format(number=number) for number in range(CELLS)),
        FAILED,
        "ipywidgets.interact(lambda x: print(x), x=10);",
    ]
    notebook = new_notebook(cells=[*map(new_code_cell, cells)])  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook, kernel_name=SOONEST, resources={"metadata": {"path": str(folder)}}
    )

    async def run() -> None:
        async with asyncio.timeout(SECONDS):
            await client.async_execute()

    asyncio.run(run())
    captured = [
        output
        for state in client.widget_state.values()
        if state.get("_model_name") == "OutputModel"
        for output in state["outputs"]
    ]
    assert [output["output_type"] for output in captured] == ["error", "stream"]
    assert captured[1]["text"] == "10\n"
