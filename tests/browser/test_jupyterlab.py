"""A sandboxed kernel in JupyterLab, driven through Chromium."""

from __future__ import annotations

import pytest

from ..gvisor import gvisor_release
from ..sweeps import needs_all
from .conftest import KERNEL, WRONG_SETTING
from .lab import LabPage

pytestmark = pytest.mark.browser


def show_text_and_a_picture(lab: LabPage) -> None:
    """Run two cells in a new notebook, and check what it shows."""
    lab.run("import platform\nprint('hello from', platform.release())")
    text = lab.output(1).text
    assert "hello from" in text
    if KERNEL.startswith("gvisor"):
        assert f"hello from {gvisor_release()}" in text

    lab.run(
        "%matplotlib inline\n"
        "import matplotlib.pyplot as plt, numpy as np\n"
        "x = np.linspace(0, 6.3, 200)\n"
        "plt.plot(x, np.sin(x), 'tab:orange')\n"
        "plt.show()"
    )
    image = lab.find(".jp-RenderedImage img")  # after what is printed on the way, if anything is
    lab.wait_for_colours(image, 10)
    lab.screenshot("text-and-picture")


@needs_all  # test_extension.py checks the same in its notebook
def test_a_notebook_shows_text_and_a_picture(lab: LabPage, display_name: str) -> None:
    lab.pick_kernel(display_name)
    lab.wait_for_kernel(display_name)
    show_text_and_a_picture(lab)


@needs_all
@pytest.mark.skipif(
    not KERNEL.startswith("gvisor"), reason="GK_TEST_KERNEL names a kernel without our settings"
)
def test_the_dialog_of_a_failed_start_says_what_to_do(lab: LabPage) -> None:
    lab.pick_kernel(WRONG_SETTING)
    message = lab.dialog()
    lab.screenshot("failed-start")
    assert "memory_limit" in message
    assert "'lots'" in message
    assert "What to do" in message
