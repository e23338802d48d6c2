"""What is shown of a sandbox through its life: states, routes, deaths, logs, leftovers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ..sweeps import needs_all
from ..world import World
from .conftest import IN_SANDBOXES, KERNEL
from .lab import EXPOSED, LabPage, LabServer
from .looking import (
    POPUP,
    SIDEBAR,
    STATUS,
    has_focus,
    press,
    serious_violations,
    set_theme,
    tab_to,
    text_of,
    wait_for_text,
)
from .test_changes import notebook

OPTIONS = (
    *EXPOSED,
    "--GVisorServer.warm=False",
    "--GVisorEgress.routes={'local': {'url': 'http://127.0.0.1:9', 'allow_private': True},"
    " 'web': {'hosts': ['<i>data.example:443']}}".replace("<i>", ""),
    "--KernelRestarter.time_to_dead=0.3",
    "--KernelRestarter.random_ports_until_alive=False",
)

pytestmark = [*IN_SANDBOXES, needs_all]

SMALL = "gvisor-browser-small"
SMALL_NAME = "Python 3 (gVisor, 512 MB)"
RESTORED = "gvisor-python-restored"
NEAR = "hold = bytearray(b'x') * (380 * 2**20)\nprint('held')"
WATCH = """
window.said = [];
new MutationObserver(() => {
  for (const it of document.querySelectorAll('.gk-status')) {
    const text = it.innerText.trim();
    if (text && window.said.at(-1) !== text) window.said.push(text);
  }
}).observe(document, {subtree: true, childList: true, characterData: true, attributes: true});
"""


@pytest.fixture(scope="module", autouse=True)
def small_kernelspec(world: World) -> Iterator[None]:
    spec = json.loads((world.kernelspecs / "gvisor-python" / "kernel.json").read_text())
    spec["display_name"] = SMALL_NAME
    spec["metadata"]["kernel_provisioner"]["config"] |= {
        "memory_limit": "512M",
        "egress": ["local", "web"],
    }
    folder = world.add_kernelspec(SMALL, spec)
    yield
    shutil.rmtree(folder)  # other tests expect to be offered the usual one


def write_notebook(lab: LabPage, name: str, kernel: str) -> None:
    one: dict[str, Any] = notebook("")
    one["metadata"]["kernelspec"]["name"] = kernel
    lab.server.folder.joinpath(name).parent.mkdir(exist_ok=True)
    lab.server.folder.joinpath(name).write_text(json.dumps(one))


def open_notebook(lab: LabPage, name: str, kernel: str) -> None:
    write_notebook(lab, name, kernel)
    lab.open_path(name)


@pytest.fixture(scope="module")
def small(desk: LabPage, small_kernelspec: None) -> LabPage:
    open_notebook(desk, "small/run.ipynb", SMALL)
    wait_for_text(desk, STATUS, " of 512 MB")
    return desk


def test_open_routes_are_named(small: LabPage) -> None:
    assert "⇄ local, web" in wait_for_text(small, STATUS, "⇄")
    small.screenshot("status-routes")
    name = str(small.find(STATUS).get_attribute("aria-label"))
    assert name.endswith("; routes: local, web")
    small.find(STATUS).click()
    card = wait_for_text(small, POPUP, "data.example:443")
    small.screenshot("card-routes")
    assert "web (hosts): data.example:443" in card
    assert "local (url): " in card
    press(small, Keys.ESCAPE)


def test_an_idle_kernel_is_idle(small: LabPage) -> None:
    """Also while its sandbox is paused."""
    small.find(STATUS).click()
    wait_for_text(small, f"{POPUP} .gk-badge", "idle")
    small.screenshot("card-idle")
    assert serious_violations(small, STATUS, POPUP) == []
    press(small, Keys.ESCAPE)


def test_the_bar_turns_when_memory_is_nearly_full(small: LabPage) -> None:
    before = small.driver.execute_script(
        "return getComputedStyle(document.querySelector('.gk-bar-fill')).backgroundColor"
    )
    small.run(NEAR)
    small.find(f"{STATUS}.gk-full")
    assert ", nearly full;" in str(small.find(STATUS).get_attribute("aria-label"))
    after = small.driver.execute_script(
        "return getComputedStyle(document.querySelector('.gk-bar-fill')).backgroundColor"
    )
    assert after != before
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        set_theme(small, theme)
        small.screenshot(f"status-full-{theme.split()[-1].lower()}")
        assert serious_violations(small, STATUS) == []


def test_the_last_death_is_told_with_its_reason(small: LabPage) -> None:
    small.run("more = bytearray(b'x') * (900 * 2**20)")
    small.find(".jp-Dialog")
    small.screenshot("death-dialog")
    press(small, Keys.ENTER)
    small.wait_until(
        lambda: not small.driver.find_elements(By.CSS_SELECTOR, ".jp-Dialog"), "it stayed open"
    )
    small.find(STATUS).click()
    card = wait_for_text(small, POPUP, "Not kept")
    assert "Last death" not in card
    for word in ("Memory", "Network", "Folder", "run.ipynb", str(small.server.folder / "small")):
        assert word in card, word
    tab_to(small, f"{POPUP} summary", "Details")
    press(small, Keys.ENTER)
    card = wait_for_text(small, POPUP, "Last death")
    small.screenshot("card-death")
    assert "memory_limit" in card
    assert serious_violations(small, POPUP) == []
    for word in (
        *("Sandbox", "Kernel", "CPU", "Image", "Mounts", "Age", "Start", "Last death"),
        *("Versions", "gvisor-kernel", "runsc", "/workspace"),
    ):
        assert word in card, word
    press(small, Keys.ESCAPE)
    assert has_focus(small, STATUS)


def test_log_and_transcript_are_read_by_keys(small: LabPage) -> None:
    small.run("import os; os.write(2, b'<img src=x onerror=document.title=1>\\n'); print('out')")
    for label, word in (("Log", "<img src=x"), ("Transcript", "import os")):
        small.to_notebook()
        small.find(STATUS).click()
        tab_to(small, f"{POPUP} button", label)
        press(small, Keys.ENTER)
        text = wait_for_text(small, ".gk-panel:not(.lm-mod-hidden) .gk-lines", word)
        assert text
        small.screenshot(f"lines-{label.lower()}")
        assert has_focus(small, ".gk-panel")
        tab_to(small, ".gk-panel:not(.lm-mod-hidden) button", "Refresh")
        tab_to(small, ".gk-lines")
        assert serious_violations(small, ".gk-panel:not(.lm-mod-hidden):has(.gk-lines)") == []
    assert small.driver.execute_script("return document.title") != "1"


def test_the_sidebar_is_used_by_keys(small: LabPage) -> None:
    """Open it, restart, stop and kill, and doctor: each with Tab and Enter."""
    small.to_notebook()
    small.find('.jp-SideBar [data-id="gvisor-kernel-sandboxes"]').click()
    wait_for_text(small, f"{SIDEBAR} .gk-row", "Died last: ")
    small.screenshot("sidebar-death")
    small.run("x = 5")
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        set_theme(small, theme)
        assert serious_violations(small, SIDEBAR) == [], theme
    small.driver.execute_script("jupyterapp.commands.execute('gvisor-kernel:show-sandboxes')")
    small.wait_until(lambda: has_focus(small, SIDEBAR), "the sidebar never had the focus")
    for label in ("Changes", "Log", "Restart Kernel", "End Sandbox", "End at Once"):
        tab_to(small, f"{SIDEBAR} button", label)
    tab_to(small, f"{SIDEBAR} button", "Run doctor")
    press(small, Keys.ENTER)
    text = wait_for_text(small, SIDEBAR, "checks are fine")
    small.screenshot("sidebar-doctor")
    assert text
    assert has_focus(small, f"{SIDEBAR} *"), "the focus was lost"
    assert serious_violations(small, SIDEBAR) == []

    tab_to(small, f"{SIDEBAR} button", "Restart", shift=True)
    press(small, Keys.ENTER)
    small.find(".jp-Dialog")
    small.screenshot("dialog-restart")
    press(small, Keys.ESCAPE)
    small.wait_until(
        lambda: has_focus(small, f"{SIDEBAR} button", "Restart"), "the focus never came back"
    )
    press(small, Keys.ENTER)
    small.find(".jp-Dialog")
    press(small, Keys.ENTER)
    wait_for_text(small, STATUS, " of 512 MB")
    small.to_notebook()
    small.run("print('x' in globals())")
    small.wait_until(
        lambda: "False" in text_of(small, ".jp-OutputArea-output"), "the kernel kept its variables"
    )


def test_kill_from_the_sidebar_ends_the_sandbox(small: LabPage) -> None:
    small.driver.execute_script("jupyterapp.commands.execute('gvisor-kernel:show-sandboxes')")
    small.wait_until(lambda: has_focus(small, SIDEBAR), "the sidebar never had the focus")
    tab_to(small, f"{SIDEBAR} button", "End at Once")
    press(small, Keys.ENTER)
    assert "End the sandbox at once?" in small.find(".jp-Dialog").text
    small.screenshot("dialog-kill")
    press(small, Keys.ENTER)
    wait_for_text(small, SIDEBAR, "No kernel of this server")
    small.screenshot("sidebar-killed")
    small.wait_until(lambda: text_of(small, STATUS) == "", "the item in the status bar stayed")
    assert small.server.request("GET", "gvisor-kernel/api/sandboxes")["sandboxes"] == []


def test_stop_from_the_card_ends_the_sandbox(desk: LabPage) -> None:
    open_notebook(desk, "stop/run.ipynb", KERNEL)
    wait_for_text(desk, STATUS, " of 4 GB")
    desk.find(STATUS).click()
    tab_to(desk, f"{POPUP} button", "End Sandbox")
    press(desk, Keys.ENTER)
    desk.find(".jp-Dialog")
    desk.screenshot("dialog-stop")
    press(desk, Keys.ENTER)
    desk.wait_until(lambda: text_of(desk, STATUS) == "", "the item in the status bar stayed")
    desk.screenshot("card-stopped")
    assert desk.server.request("GET", "gvisor-kernel/api/sandboxes")["sandboxes"] == []


def test_a_start_from_a_snapshot_says_so(desk: LabPage, shared_snapshot: str) -> None:
    desk.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    open_notebook(desk, "restored/run.ipynb", RESTORED)
    wait_for_text(desk, STATUS, " of 4 GB")
    desk.find(STATUS).click()
    tab_to(desk, f"{POPUP} summary", "Details")
    press(desk, Keys.ENTER)
    assert "from a snapshot, " in wait_for_text(desk, POPUP, "Start")
    desk.screenshot("card-snapshot")
    said = desk.driver.execute_script("return window.said")
    assert "starting from snapshot" in said, said


def test_a_console_has_its_item_and_other_kernels_have_none(desk: LabPage) -> None:
    desk.open()
    desk.find(f'.jp-LauncherCard[data-category="Console"][title^="{SMALL_NAME}"]').click()
    wait_for_text(desk, STATUS, " of 512 MB")
    desk.screenshot("status-console")
    path = "local/run.ipynb"
    write_notebook(desk, path, "python3")
    trust = [sys.executable, "-m", "jupyter", "trust", desk.server.folder / path]
    subprocess.run(trust, check=True)  # or ours would be offered first
    desk.open_path(path)
    desk.wait_for_kernel("Python 3 (ipykernel)")
    desk.run("print('local')")
    assert "local" in desk.output(1).text
    desk.screenshot("status-other-kernel")
    assert text_of(desk, STATUS) == ""


@pytest.fixture(scope="module", autouse=True)
def no_sessions_left(server: LabServer) -> Iterator[None]:
    yield
    for session in server.request("GET", "api/sessions"):
        server.request("DELETE", f"api/sessions/{session['id']}")


def test_a_leftover_is_seen_in_the_next_server(
    desk: LabPage, server: LabServer, tmp_path: Path
) -> None:
    """The last test here: the server is killed, and its page is open."""
    open_notebook(desk, "left/run.ipynb", KERNEL)
    wait_for_text(desk, STATUS, " of 4 GB")
    (one,) = [
        it
        for it in server.request("GET", "gvisor-kernel/api/sandboxes")["sandboxes"]
        if it["folder"].endswith("left")
    ]
    server.kill(with_children=True)
    assert wait_for_text(desk, STATUS, "no answer")
    desk.screenshot("status-no-answer")
    server.start()
    desk.open()
    desk.find('.jp-SideBar [data-id="gvisor-kernel-sandboxes"]').click()
    wait_for_text(desk, SIDEBAR, one["id"])
    desk.screenshot("sidebar-leftovers")
    assert serious_violations(desk, SIDEBAR) == []
    desk.pick_kernel(SMALL_NAME)  # which removes what was left
    desk.wait_until(lambda: one["id"] not in text_of(desk, SIDEBAR), "the leftover stayed")
