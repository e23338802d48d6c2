"""Branches, checkpoints and saved kernels in the menus of JupyterLab, and in its notebooks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from .conftest import IN_SANDBOXES
from .lab import LabPage
from .looking import STATUS, button, press, serious_violations, text_of, wait_for_text
from .test_changes import notebook
from .test_hibernation import choose, is_idle

OPTIONS = ("--LabApp.expose_app_in_browser=True", "--GVisorServer.warm=False")
PATH, COPY, SECOND = (f"states/run{end}.ipynb" for end in ("", "-branch", "-branch-2"))
ENTRY = "Rewind to before This Cell…"
DIALOG, NOTICE = ".jp-Dialog-content", ".gk-saved"

pytestmark = IN_SANDBOXES


def value_of(lab: LabPage, path: str, code: str) -> str:
    """Return what the kernel of an open notebook says to ``code``, which is in no cell."""
    return str(
        lab.driver.execute_async_script(
            """
            const [path, code, done] = arguments;
            const main = [...jupyterapp.shell.widgets('main')];
            const panel = main.find(it => it.context?.path === path);
            const kernel = panel.sessionContext.session.kernel;
            const future = kernel.requestExecute(
              { code, user_expressions: { it: code }, store_history: false });
            future.done.then(
              it => done(it.content.user_expressions.it.data['text/plain']),
              error => done(String(error)));
            """,
            path,
            code,
        )
    )


def open_cell_menu(lab: LabPage, prompt: str) -> None:
    cell = lab.driver.find_element(
        By.XPATH,
        f"//*[contains(@class,'jp-CodeCell')][.//*[normalize-space()='{prompt}']]"
        "//*[contains(@class,'jp-InputPrompt')]",
    )
    ActionChains(lab.driver).context_click(cell).perform()


@pytest.fixture(scope="module")
def open_notebook(desk: LabPage) -> LabPage:
    (desk.server.folder / "states").mkdir()
    (desk.server.folder / PATH).write_text(json.dumps(notebook("")))
    desk.open_path(PATH)
    wait_for_text(desk, STATUS, " of 4 GB")
    desk.run("x = 41; open('/mnt/user-data/outputs/kept', 'w').write('1')")
    desk.output(1)
    return desk


def test_a_rewind_by_the_menu_brings_a_variable_back(open_notebook: LabPage) -> None:
    lab = open_notebook
    choose(lab, "Rewind Kernel…")
    assert "has no checkpoints" in lab.dialog()
    button(lab, DIALOG, "Ok").click()
    choose(lab, "Save Checkpoint of Kernel…")
    lab.find(f"{DIALOG} input").send_keys("first")
    button(lab, DIALOG, "Save").click()
    wait_for_text(lab, ".Toastify", "Checkpoint first is saved")
    lab.run("x = 0; open('/mnt/user-data/outputs/<b>new', 'w').write('2'); print('x', x)")
    assert lab.output(2).text == "x 0"
    choose(lab, "Rewind Kernel…")
    shown = wait_for_text(lab, DIALOG, "first")
    assert "after cell 1" in shown
    assert "kept as before-rewind" in shown
    lab.screenshot("rewind")
    assert serious_violations(lab, DIALOG) == []
    button(lab, DIALOG, "Rewind").click()
    told = wait_for_text(lab, DIALOG, "The kernel went back to first")
    assert "<b>new" in told
    lab.screenshot("rewound")
    assert serious_violations(lab, DIALOG) == []
    button(lab, DIALOG, "Ok").click()
    lab.wait_until(lambda: is_idle(lab), "the page does not say that the kernel is idle")
    assert value_of(lab, PATH, "x") == "41"
    assert lab.output(2).text == "x 0"


def test_the_menu_of_a_cell_goes_back_to_before_it(open_notebook: LabPage) -> None:
    lab = open_notebook
    (kernel,) = lab.server.request("GET", "api/kernels")
    states = f"gvisor-kernel/api/kernels/{kernel['id']}/checkpoints"
    lab.server.request("DELETE", f"{states}/first")
    open_cell_menu(lab, "[2]:")
    lab.find_menu("Copy Cell")
    lab.wait_until(lambda: ENTRY not in text_of(lab, ".lm-Menu"), "the menu has what is gone")
    press(lab, Keys.ESCAPE)
    lab.server.request("POST", states, {})
    height = lab.driver.get_window_size()["height"]
    lab.driver.set_window_size(1280, 870)  # the menu has no room for further entries
    open_cell_menu(lab, "[2]:")
    lab.find_menu("Branch from Here")
    lab.wait_until(
        lambda: lab.driver.execute_script(
            "const menu = document.querySelector('.lm-Menu').getBoundingClientRect();"
            "return menu.bottom <= window.innerHeight"
        ),
        "the menu is not in the window",
    )
    lab.screenshot("cell-menu")
    lab.find_menu(ENTRY).click()
    lab.driver.set_window_size(1280, height)
    shown = wait_for_text(lab, DIALOG, "state-1")
    assert "before-rewind," not in shown
    button(lab, DIALOG, "Cancel").click()
    open_cell_menu(lab, "[1]:")
    lab.find_menu("Copy Cell")
    assert ENTRY not in text_of(lab, ".lm-Menu")
    press(lab, Keys.ESCAPE)


def wait_for_copy(lab: LabPage, path: str) -> None:
    script = (
        "const it = jupyterapp.shell.currentWidget;"
        "return it?.context?.path === arguments[0] && it.sessionContext.session?.kernel != null"
    )
    lab.wait_until(lambda: lab.driver.execute_script(script, path), f"{path} never had a kernel")


def test_a_branch_is_a_copy_with_the_same_state(open_notebook: LabPage) -> None:
    lab = open_notebook
    lab.driver.execute_script(
        "jupyterapp.shell.currentWidget.content.model.sharedModel.insertCell("
        "0, {cell_type: 'code', source: 'x + 1', metadata: {}})"
    )
    choose(lab, "Branch Notebook…")
    wait_for_copy(lab, COPY)
    saved: Any = json.loads((lab.server.folder / COPY).read_text())
    assert "x + 1" in ["".join(cell["source"]) for cell in saved["cells"]]
    lab.screenshot("branched")
    assert not lab.driver.find_elements(By.CSS_SELECTOR, NOTICE)
    assert value_of(lab, COPY, "x") == "41"
    value_of(lab, COPY, "globals().update(x=1)")
    assert value_of(lab, PATH, "x") == "41"
    value_of(lab, PATH, "globals().update(x=2)")
    lab.open_tab(PATH)
    wait_for_text(lab, STATUS, " of 4 GB")
    open_cell_menu(lab, "[2]:")
    lab.find_menu("Branch from Here").click()
    wait_for_copy(lab, SECOND)
    assert value_of(lab, SECOND, "x") == "41"


def test_a_branch_that_is_refused_leaves_no_copy(open_notebook: LabPage) -> None:
    lab = open_notebook
    lab.open_tab(PATH)
    wait_for_text(lab, STATUS, " of 4 GB")
    value_of(lab, PATH, "globals().update(file=open('/mnt/user-data/outputs/kept'))")
    choose(lab, "Branch Notebook…")
    assert "kept" in wait_for_text(lab, DIALOG, "The kernel was not branched")
    assert serious_violations(lab, DIALOG) == []
    button(lab, DIALOG, "Close").click()
    found = {path.name for path in (lab.server.folder / "states").glob("*.ipynb")}
    assert found == {path.rpartition("/")[2] for path in (PATH, COPY, SECOND)}
    value_of(lab, PATH, "file.close()")


def test_a_notice_says_what_is_saved_and_resumes_it(open_notebook: LabPage) -> None:
    lab = open_notebook
    lab.open_tab(PATH)
    wait_for_text(lab, STATUS, " of 4 GB")
    choose(lab, "Hibernate Kernel")
    wait_for_text(lab, STATUS, "hibernated")
    lab.open_path(PATH)
    wait_for_text(lab, NOTICE, "Saved state of ")
    lab.screenshot("saved-notice")
    assert serious_violations(lab, NOTICE) == []
    button(lab, NOTICE, "Start anew").click()
    assert "are lost" in lab.dialog()
    button(lab, DIALOG, "Cancel").click()
    button(lab, NOTICE, "Resume").click()
    lab.wait_until(
        lambda: not lab.driver.find_elements(By.CSS_SELECTOR, NOTICE), "the notice never went"
    )
    assert value_of(lab, PATH, "x") == "2"
