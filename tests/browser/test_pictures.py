"""The pictures of the documentation, each in light and in dark colours.

``scripts/docs --pictures`` writes them to docs/images. Otherwise they are beside the other
screenshots, and the test shows that what the pictures show can still be reached.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from ..sweeps import needs_all
from ..world import PROJECT
from .conftest import IN_SANDBOXES, KERNEL
from .lab import LabPage
from .looking import SIDEBAR, STATUS, wait_for_text

pytestmark = [*IN_SANDBOXES, needs_all]
THEMES = {"": "JupyterLab Light", "-dark": "JupyterLab Dark"}
SIZE = (1100, 640)
OPTIONS = [f"--KernelSpecManager.allowed_kernelspecs={name}" for name in ("python3", KERNEL)]
"""Of the server: the kernels that a reader has, and not those of the tests."""
CELL = """\
import platform
print("hello from", platform.system(), platform.release())
open("outputs/note.txt", "w").write("kept")"""


@pytest.fixture(params=THEMES, ids=["light", "dark"])
def suffix(request: pytest.FixtureRequest, lab: LabPage) -> Iterator[str]:
    """The end of a picture's name, with the page in these colours and of a picture's size."""
    name = str(request.param)
    folder = lab.server.base / "settings" / "@jupyterlab" / "apputils-extension"
    folder.mkdir(parents=True, exist_ok=True)
    theme = folder / "themes.jupyterlab-settings"
    theme.write_text(json.dumps({"theme": THEMES[name]}))
    try:
        lab.driver.set_window_size(*SIZE)
        lab.open()
        lab.find(f'body[data-jp-theme-light="{str(not name).lower()}"]')
        yield name
    finally:
        theme.unlink()
        for kernel in lab.server.request("GET", "api/kernels"):
            lab.server.request("DELETE", f"api/kernels/{kernel['id']}")
        for notebook in lab.server.folder.glob("*.ipynb"):
            notebook.unlink()


@pytest.fixture
def pictures(artifacts: Path) -> Path:
    return PROJECT / "docs" / "images" if os.environ.get("GK_TEST_PICTURES") else artifacts


def test_first_steps(lab: LabPage, suffix: str, display_name: str, pictures: Path) -> None:
    card = lab.find(f'.jp-LauncherCard[data-category="Notebook"][title^="{display_name}"]')
    assert card.is_displayed()
    lab.driver.save_screenshot(str(pictures / f"launcher{suffix}.png"))
    lab.pick_kernel(display_name)
    lab.wait_for_kernel(display_name)
    lab.run(CELL)
    assert "hello from Linux" in lab.output(1).text
    wait_for_text(lab, STATUS, " of 4 GB")
    lab.find('.jp-SideBar [data-id="gvisor-kernel-sandboxes"]').click()
    wait_for_text(lab, f"{SIDEBAR} .gk-row", "CPU ")
    assert lab.driver.find_elements(By.CSS_SELECTOR, ".jp-Dialog") == []
    lab.driver.save_screenshot(str(pictures / f"sandbox{suffix}.png"))
