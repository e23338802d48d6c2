"""In Firefox, which does not keep a frame from the network, nothing of a kernel's is run at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import IN_SANDBOXES, KERNEL
from .firefox import firefox
from .lab import LabPage, LabServer
from .looking import wait_for_text
from .test_wall import ATTACKS, HARMLESS, OUTPUT, PREPARE, check, run_all, walled, write_notebook

pytestmark = IN_SANDBOXES
LINE = ".gk-wall-line"


class FirefoxPage(LabPage):
    """JupyterLab in Firefox: only what needs no more than scripts and screenshots works."""

    def open_notebook(self, path: str) -> None:
        self.driver.get(
            f"{self.server.url}lab/workspaces/auto-test/tree/{path}?reset&token={self.server.token}"
        )
        self.wait_until(
            lambda: self.driver.execute_script(
                # A window without a screen never has the focus, by which JupyterLab knows it.
                "for (const it of window.jupyterapp?.shell.widgets('main') ?? [])"
                "  it.node.dispatchEvent(new FocusEvent('focus'));"
                "const it = window.jupyterapp?.shell.currentWidget;"
                "return !!it?.context?.isReady && it.content.widgets.length > 1"
            ),
            "the page never showed all of its notebook",
        )


@pytest.fixture
def page(server: LabServer, tmp_path: Path, artifacts: Path) -> Iterator[FirefoxPage]:
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        pytest.skip("no Firefox: install the package firefox-esr")
    # Without a screen, Firefox never makes the cells that JupyterLab leaves to idle time.
    settings = server.base / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    try:
        with firefox(program, tmp_path / "firefox") as driver:
            shown: Any = driver
            yield FirefoxPage(shown, server, artifacts)
    finally:
        shutil.rmtree(settings)


def test_a_kernel_prints_and_nothing_acts(page: FirefoxPage) -> None:
    cells = {"prepare": PREPARE, **ATTACKS, **HARMLESS}
    write_notebook(page.server.folder / "wall" / "attacks.ipynb", KERNEL, cells)
    page.open_notebook("wall/attacks.ipynb")
    run_all(page, len(cells))
    wait_for_text(page, OUTPUT, "green")
    check(page, "in Firefox")
    page.screenshot("wall-firefox")
    assert walled(page) > 20
    wait_for_text(page, LINE, "this browser does not keep pages and outputs from the network")
    frames = "return document.querySelectorAll('iframe').length"
    page.wait_until(lambda: page.driver.execute_script(frames) == 0, "frames are left")
