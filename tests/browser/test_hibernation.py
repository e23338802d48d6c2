"""A kernel that hibernates, in JupyterLab: by the menu, over a reload and the server's restart."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By

from .conftest import IN_SANDBOXES
from .lab import EXPOSED, LabPage
from .looking import POPUP, STATUS, button, press, serious_violations, wait_for_text
from .test_changes import notebook

OPTIONS = (
    *EXPOSED,
    *("--GVisorServer.warm=False", "--KernelRestarter.time_to_dead=0.3"),
    "--GVisorServer.hibernate_on_shutdown=True",
)
PATH = "asleep/run.ipynb"

pytestmark = IN_SANDBOXES


def find(lab: LabPage) -> dict[str, Any]:
    """Return the document of the only kernel."""
    (found,) = lab.server.request("GET", "gvisor-kernel/api/sandboxes")["sandboxes"]
    assert isinstance(found, dict)
    return found


def choose(lab: LabPage, label: str) -> None:
    lab.find_menu("Kernel").click()
    lab.find_menu(label).click()


def is_idle(lab: LabPage) -> bool:
    """Whether the page has the kernel's status from the kernel, and it is idle."""
    return bool(
        lab.driver.execute_script(
            "const it = jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel;"
            "return it?.connectionStatus === 'connected' && it.status === 'idle'"
        )
    )


def has_no_dialog(lab: LabPage) -> bool:
    """Dismiss JupyterLab's own dialogs: the server could not be reached."""
    found = lab.driver.find_elements(By.CSS_SELECTOR, ".jp-Dialog")
    for it in found:
        with contextlib.suppress(WebDriverException):  # it goes, or another one lies over it
            it.find_element(By.CSS_SELECTOR, ".jp-Dialog-footer button").click()
    return not found


@pytest.fixture(scope="module")
def open_notebook(desk: LabPage) -> LabPage:
    folder = desk.server.folder / "asleep"
    folder.mkdir()
    (desk.server.folder / PATH).write_text(json.dumps(notebook("")))
    desk.open_path(PATH)
    wait_for_text(desk, STATUS, " of 4 GB")
    desk.run("x = 41; print('begun')")
    assert "begun" in desk.output(1).text
    return desk


def test_it_hibernates_by_the_menu_and_a_reload_does_not_wake_it(open_notebook: LabPage) -> None:
    lab = open_notebook
    choose(lab, "Hibernate Kernel")
    assert "☾" in wait_for_text(lab, STATUS, "hibernated")
    lab.find(STATUS).click()
    assert "on the disk" in wait_for_text(lab, POPUP, "Hibernated")
    lab.screenshot("card-hibernated")
    assert serious_violations(lab, STATUS, POPUP) == []
    press(lab, "\ue00c")
    before = find(lab)["hibernated"]
    lab.open_path(PATH)
    lab.wait_until(lambda: is_idle(lab), "the page never had the kernel")
    wait_for_text(lab, STATUS, "hibernated")
    lab.run("x += 1; print(x)")
    assert lab.output(2).text == "42"
    wait_for_text(lab, STATUS, " of 4 GB")
    assert before is not None
    choose(lab, "Hibernate Kernel")
    wait_for_text(lab, STATUS, "hibernated")
    lab.find(STATUS).click()
    button(lab, POPUP, "Resume").click()
    wait_for_text(lab, STATUS, " of 4 GB")


def test_a_page_goes_on_over_the_servers_restart(open_notebook: LabPage) -> None:
    lab = open_notebook
    kernel = find(lab)["kernel_id"]
    lab.server.terminate()
    lab.server.start()
    assert find(lab)["kernel_id"] == kernel
    lab.wait_until(lambda: is_idle(lab), "the page never came back", 120)
    wait_for_text(lab, STATUS, "hibernated")
    assert find(lab)["hibernated"]
    lab.wait_until(lambda: has_no_dialog(lab), "JupyterLab said again and again what it missed")
    lab.run("x += 1; print(x)")
    assert lab.output(3).text == "43"
