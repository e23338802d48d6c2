"""Pictures, films and tables of a sandbox: drawn in frames, whose processes end with them.

What a few kB become when they are decoded is in the frame's process. JupyterLab answers meanwhile,
so does every other frame, and closing the view ends the work.
"""

from __future__ import annotations

import json
import os
import shutil
import wave
import zipfile
from pathlib import Path

import psutil
import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By

from ..sweeps import ALL
from .conftest import IN_SANDBOXES
from .lab import LabPage
from .looking import wait_for_text

pytestmark = IN_SANDBOXES
DATA = Path(__file__).parents[1] / "data" / "media"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="500" height="500">'
ENDLESS = (
    SVG
    + '<path id="a0" d="M0 0L9 9L3 7Z"/>'
    + "".join(
        f'<g id="a{level}">' + f'<use href="#a{level - 1}"/>' * 10 + "</g>"
        for level in range(1, 10)
    )
    + "</svg>"
)
"""A drawing of a few kB with a billion parts."""
MIB = 1024 * 1024
MOST_MEMORY = 400 * MIB
"""What JupyterLab's process may take for what frames show: the largest take more than 1 GB."""


@pytest.fixture(scope="module")
def media(desk: LabPage) -> LabPage:
    """JupyterLab at a folder of such files."""
    folder = desk.server.folder / "media"
    shutil.copytree(DATA, folder)
    (folder / "other.html").write_text(f"<h1>Other</h1>{LOADS}")
    (folder / "endless.svg").write_text(ENDLESS)
    (folder / "plain.svg").write_text(f'{SVG}<circle r="300" fill="red"/></svg>')
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setparams((1, 1, 8000, 8000, "NONE", ""))
        sound.writeframes(bytes(8000))
    write_table(folder / "large.csv")
    write_workbook(folder / "large.xlsx")
    desk.driver.get(
        f"{desk.server.url}lab/workspaces/auto-test/tree/media?reset&token={desk.server.token}"
    )
    desk.find('.jp-DirListing-item[data-isdir="false"]')
    return desk


def write_table(path: Path) -> None:
    with path.open("w") as file:
        file.write("number,text\n")
        file.writelines(f"{number},{os.urandom(50).hex()}\n" for number in range(50_000))


def write_workbook(path: Path) -> None:
    """Write 60,000 rows, of which no compression makes less than 5 MB, and a second sheet."""
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    relations = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"

    def row(number: int, *texts: str) -> str:
        cells = "".join(
            f'<c t="inlineStr" r="{column}{number}"><is><t>{text}</t></is></c>'
            for column, text in zip("ABC", texts, strict=False)
        )
        return f'<row r="{number}">{cells}</row>'

    def sheet(rows: list[str]) -> str:
        return f"<worksheet {space}><sheetData>{''.join(rows)}</sheetData></worksheet>"

    def links(*targets: str) -> str:
        parts = "".join(
            f'<Relationship Id="r{number}" Type="{relations}/{kind}" Target="{target}"/>'
            for number, (kind, target) in enumerate(target.split("|") for target in targets)
        )
        return f'<Relationships xmlns="{package}">{parts}</Relationships>'

    rows = [row(n + 2, f"name {n}", os.urandom(90).hex()) for n in range(60_000)]
    parts = {
        "_rels/.rels": links("officeDocument|xl/workbook.xml"),
        "xl/_rels/workbook.xml.rels": links(
            "worksheet|worksheets/sheet1.xml", "worksheet|worksheets/sheet2.xml"
        ),
        "xl/workbook.xml": f'<workbook {space} xmlns:r="{relations}"><sheets>'
        '<sheet name="many" sheetId="1" r:id="r0"/><sheet name="few" sheetId="2" r:id="r1"/>'
        "</sheets></workbook>",
        "xl/worksheets/sheet1.xml": sheet([row(1, "name", "value"), *rows]),
        "xl/worksheets/sheet2.xml": sheet([row(1, "a", "b", "c"), row(2, "x", "&lt;b&gt;", "z")]),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    assert path.stat().st_size > 5_000_000


def renderers(lab: LabPage) -> dict[int, psutil.Process]:
    """Return the processes of the browser in which pages run."""
    driver = psutil.Process(lab.driver.service.process.pid)
    found = {}
    for process in driver.children(recursive=True):
        try:
            if "--type=renderer" in " ".join(process.cmdline()):
                found[process.pid] = process
        except psutil.NoSuchProcess:
            continue
    return found


def busy_time(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def page_process(lab: LabPage) -> psutil.Process:
    """Return JupyterLab's own process: the one that works while its page does."""
    before = {pid: busy_time(it) for pid, it in renderers(lab).items()}
    lab.driver.execute_script(
        "for (const end = performance.now() + 300; performance.now() < end;);"
    )
    return max(renderers(lab).values(), key=lambda it: busy_time(it) - before.get(it.pid, 0))


def open_file(lab: LabPage, name: str) -> None:
    """Open a file by the command of the file browser's menu."""
    lab.driver.execute_async_script(
        """
        const [name, done] = arguments;
        const item = [...document.querySelectorAll('.jp-DirListing-item')]
          .find(it => it.querySelector('.jp-DirListing-itemText').textContent === name);
        for (const kind of ['mousedown', 'mouseup', 'click']) {
          item.dispatchEvent(new MouseEvent(kind, { bubbles: true, button: 0 }));
        }
        requestAnimationFrame(() => {
          jupyterapp.commands.execute('gvisor-kernel:open-page').then(() => done());
        });
        """,
        name,
    )


def close_all(lab: LabPage) -> None:
    lab.driver.execute_script(
        "[...jupyterapp.shell.widgets('main')].filter(it => it.node.querySelector('.gk-page'))"
        ".forEach(it => it.close())"
    )


def in_frame(lab: LabPage, script: str, place: int = -1) -> object:
    """Return a script's value in a page, the one that was opened last; None if it is not there."""
    try:
        outer = lab.driver.find_elements(By.CSS_SELECTOR, ".gk-page")[place]
        lab.driver.switch_to.frame(outer)
        lab.driver.switch_to.frame(lab.driver.find_element(By.TAG_NAME, "iframe"))
        return lab.driver.execute_script(script)
    except (IndexError, WebDriverException):
        return None
    finally:
        lab.driver.switch_to.default_content()


def wait_in_frame(lab: LabPage, script: str, place: int = -1) -> None:
    lab.wait_until(lambda: in_frame(lab, script, place), f"never in the frame: {script}")


DRAWN = "const it = document.querySelector('img'); return it?.complete && it.naturalWidth > 8000"
PLAYABLE = "return document.querySelector('audio, video')?.duration > 0"
ROWS = "return document.body.innerText.includes('The first 1000 rows')"
CIRCLE = """
const it = document.querySelector('canvas[aria-label="plain.svg"]');
return it?.getContext('2d').getImageData(10, 10, 1, 1).data.join() === '255,0,0,255';
"""


def test_each_kind_is_drawn_in_its_frame_and_not_in_jupyterlab(media: LabPage) -> None:
    own = page_process(media)
    Path(f"/proc/{own.pid}/clear_refs").write_text("5")  # its peak is that of other tests
    before = own.memory_info().rss
    for name, script in {
        "plain.svg": CIRCLE,
        "large.avif": DRAWN,
        "large.webm": PLAYABLE,
        "large.csv": ROWS,
        "large.xlsx": ROWS,
        "sound.mp3": PLAYABLE,
        **(
            dict.fromkeys(("film.mp4", "film.webm", "sound.ogg", "sound.wav"), PLAYABLE)
            if ALL
            else {}
        ),
    }.items():
        open_file(media, name)
        wait_in_frame(media, script)
        media.screenshot(f"media-{name}")
        assert media.driver.find_elements(By.CSS_SELECTOR, ".gk-panel :is(img, video, audio)") == []
        if name == "large.xlsx":
            few = "return [...document.querySelectorAll('table')].at(-1).innerText"
            assert in_frame(media, few) == "a\tb\tc\nx\t<b>\tz"
        close_all(media)
    peak = peak_memory(own)
    assert peak - before < MOST_MEMORY, f"{(peak - before) // MIB} MiB"


def peak_memory(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_a_drawing_without_end_ends_with_its_view(media: LabPage) -> None:
    own = page_process(media)
    open_file(media, "endless.svg")
    busy: list[psutil.Process] = []

    def find_busy() -> bool:
        ticks = "requestAnimationFrame(() => setTimeout(arguments[0]))"
        media.driver.execute_async_script(
            ticks
        )  # JupyterLab's page is drawn, and its clock goes on
        busy[:] = [
            it for it in renderers(media).values() if it.pid != own.pid and busy_time(it) > 2
        ]
        return bool(busy)

    media.wait_until(find_busy, "no process worked on the drawing")
    worker = max(busy, key=busy_time)  # on a busy machine others have started for so long
    # A page beside it is not stopped.
    open_file(media, "other.html")
    media.find('.gk-page[title="other.html"]')  # the last one; the drawing's never answers
    wait_in_frame(media, "return document.querySelector('h1')?.textContent === 'Other'")
    assert worker.is_running()
    close_all(media)
    media.wait_until(lambda: not worker.is_running(), "the drawing outlives its view")
    assert own.is_running()


LOADS = "<script>new Image().src = `http://r${Math.random()}.example/`</script>"
"""A page whose every run is told: what it asks for is not loaded."""


def runs(lab: LabPage) -> int:
    """Return how often such pages have run. A frame whose process is gone cannot be entered."""
    lines = lab.driver.find_elements(By.CSS_SELECTOR, ".gk-notes li")
    return sum(line.text.count(".example") for line in lines)  # a line names all addresses


def crash(lab: LabPage, own: psutil.Process) -> None:
    """Kill the processes of all frames."""
    for process in renderers(lab).values():
        if process.pid != own.pid:
            process.kill()


def test_a_page_whose_process_dies_is_loaded_anew_once(media: LabPage) -> None:
    own = page_process(media)
    open_file(media, "other.html")
    for count in (1, 2):
        media.wait_until(lambda count=count: runs(media) == count, f"it never ran {count} times")
        crash(media, own)
    wait_for_text(media, ".gk-notes", "Its frame has ended, twice")
    media.screenshot("frame-crashed")
    assert media.driver.find_elements(By.CSS_SELECTOR, ".gk-page") == []
    media.driver.execute_script("jupyterapp.shell.currentWidget.close()")


def test_outputs_whose_process_dies_are_drawn_anew_once(media: LabPage) -> None:
    own = page_process(media)
    data = {"data": {"text/html": LOADS}, "output_type": "display_data", "metadata": {}}
    cell = {"cell_type": "code", "source": "", "metadata": {}, "execution_count": 1}
    cells = [{**cell, "id": f"cell{number}", "outputs": [data]} for number in range(2)]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (media.server.folder / "media" / "crash.ipynb").write_text(json.dumps(notebook))
    media.driver.execute_script(
        "void jupyterapp.commands.execute('docmanager:open', {path: 'media/crash.ipynb'})"
    )
    for count in (2, 4):
        media.wait_until(lambda count=count: runs(media) == count, f"{count} runs never came")
        crash(media, own)
    wait_for_text(media, ".gk-framed-output", "Its frame has ended, twice")
    media.screenshot("output-crashed")
    lost = "return [...document.querySelectorAll('.gk-notes .gk-button')].length"
    media.wait_until(lambda: media.driver.execute_script(lost) == 2, "no button in each")
    # JupyterLab asks for a kernel meanwhile, above it.
    media.driver.execute_script("document.querySelector('.gk-notes .gk-button').click()")
    shown = ".gk-framed-content:not(.gk-waiting) .gk-page"
    drawn = f"return document.querySelectorAll('{shown}').length"
    media.wait_until(lambda: media.driver.execute_script(drawn) == 1, "not shown again")
