"""What a kernel prints cannot act as the person: outputs behind the wall, in each kind of page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.sign import NotebookNotary

from ..sweeps import needs_all
from .conftest import IN_SANDBOXES, KERNEL
from .lab import LabPage
from .looking import sent_requests, wait_for_text

pytestmark = IN_SANDBOXES
LOGGED = True
WITHOUT = "python3"
LINE = ".gk-wall-line"
BEACON = "/gk-beacon/"
_, *_SECTIONS = Path(__file__).with_name("wall_attacks.txt").read_text().split("\n%% ")
ATTACKS = {name: source for name, _, source in (it.partition("\n") for it in _SECTIONS)}
PREPARE = ATTACKS.pop("prepare")
HARMLESS = {
    # As pandas and matplotlib print them, without the seconds of CPU time of their imports.
    "table": """HTML('''<div><style scoped>
    .dataframe tbody tr th { vertical-align: top; }
</style><table border="1" class="dataframe"><thead><tr style="text-align: right;"><th></th>
<th>name</th></tr></thead><tbody><tr><th>0</th><td>&lt;b&gt;ann&lt;/b&gt;</td></tr></tbody>
</table></div>''')""",
    "plot": "publish({'image/png': base64.b64encode(png(9, 9)).decode(), 'text/plain': 'plot'})",
    "formula": "Latex(r'$\\frac{\\alpha}{\\sqrt{2}}$')",
    "tree": "from IPython.display import JSON; JSON({'key': [1, 2]})",
    "words": "Markdown('# Heading\\n\\n**bold** and `code`\\n\\n| a |\\n|---|\\n| 1 |')",
    "colours": "print('\\x1b[32mgreen\\x1b[0m')",
}
"""What stays in the page as it is, without a line."""
OUTPUT = ".jp-OutputArea-output"

LOOK = """
const outputs = [...document.querySelectorAll('.jp-OutputArea-output')];
const bad = outputs.flatMap(it => [...it.querySelectorAll(
  'script,style,iframe:not(.gk-frame),object,embed,link,meta,base,form,button,input,video,audio,'
  + 'template,[onerror],[onload],[onclick],[data-commandlinker-command],[id],[name]')]
  .filter(node => !node.closest(
    '.MathJax,mjx-container,.jp-RenderedJSON,.gk-shown-output,.gk-framed-output'))
  .map(node => node.outerHTML.slice(0, 120)));
const covers = outputs.flatMap(it => [...it.querySelectorAll('[style]')]).filter(
  node => ['fixed', 'absolute', 'sticky'].includes(getComputedStyle(node).position)
    && !node.closest('mjx-assistive-mml, .gk-framed-output'))
  .map(node => node.outerHTML.slice(0, 120));
const links = outputs.flatMap(it => [...it.querySelectorAll('a[href]')])
  .filter(a => !a.closest('.jp-RenderedText'))  // paths of tracebacks, see click_all
  .filter(a => !/^https?:$/.test(a.protocol) || a.host === location.host)
  .map(a => a.outerHTML.slice(0, 120));
return {attacked: window.attacked ?? null, title: document.title, bad, covers, links,
  app: typeof window.jupyterapp?.commands, hidden: !!document.querySelector('.jp-Notebook')
    && getComputedStyle(document.querySelector('.jp-Notebook')).display === 'none'};
"""


COMMAND = '<button data-commandlinker-command="terminal:create-new">of a stranger</button>'


def write_notebook(path: Path, kernel: str, cells: dict[str, str], text: str = "") -> None:
    """Write a notebook with a cell for each source, and one of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
    document = {
        "cells": [
            {
                "cell_type": "code",
                "id": name,
                "source": source,
                "metadata": {"tags": ["raises-exception"]},
                "outputs": [],
                "execution_count": None,
            }
            for name, source in cells.items()
        ]
        + [{"cell_type": "markdown", "id": "text", "source": text, "metadata": {}}] * bool(text),
        "metadata": {} if kernel == "" else metadata,
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(document))


LAB = "lab/workspaces/auto-test/tree"


def open_notebook(desk: LabPage, name: str, page: str = LAB, *, anew: bool = False) -> None:
    """Open a notebook; ``anew`` in a page that is loaded for it."""
    if page == LAB and desk.has_lab() and not anew:
        desk.open_here(name)
    else:
        desk.driver.get("about:blank")  # an address that differs in its query alone does not load
        desk.driver.get(f"{desk.server.url}{page}/{name}?reset&token={desk.server.token}")
        desk.find(".jp-Notebook .jp-Cell")
    # JupyterLab makes the cells one by one, when it is idle.
    desk.wait_until(
        lambda: desk.driver.execute_script(
            "const it = window.jupyterapp?.shell.currentWidget;"
            "return !!it?.context?.isReady"
            " && it.content.widgets.every(cell => !cell.isPlaceholder())"
        ),
        "the page never showed all of its notebook",
    )


def run_all(desk: LabPage, count: int) -> None:
    """Run all cells, and wait until each has a number."""
    desk.wait_until(
        lambda: desk.driver.execute_script(
            "const k = jupyterapp.shell.currentWidget.sessionContext.session?.kernel;"
            "return k && k.status === 'idle'"
        ),
        "the kernel never became idle",
    )
    desk.driver.execute_script("void jupyterapp.commands.execute('notebook:run-all-cells')")
    wait_for_cells(desk, count)


def wait_for_cells(desk: LabPage, count: int) -> None:
    desk.wait_until(
        lambda: desk.driver.execute_script(
            "return [...jupyterapp.shell.currentWidget.content.widgets]"
            ".filter(it => it.model.executionCount !== null).length >= arguments[0]"
            " && jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'",
            count,
        ),
        f"not all of {count} cells were run",
    )


def click_all(desk: LabPage) -> None:
    """Click, as a person would, on whatever a kernel has put there."""
    desk.driver.execute_script(
        """
        for (const node of document.querySelectorAll(
            '.jp-OutputArea-output :is(a, button, summary, input)')) {
          if (node.closest('.jp-RenderedJSON, .gk-framed-output')) continue;
          if (node.protocol !== undefined && /^https?:$/.test(node.protocol)) continue;
          const click = new MouseEvent('click', {bubbles: true, cancelable: true, ctrlKey: true});
          if (node.dispatchEvent(click) && node.protocol === 'javascript:')
            (window.attacked ??= []).push('a link');
          node.click();
        }
        """
    )


def check(desk: LabPage, title: str) -> None:
    """Check that nothing of the kernel's acted in the page, or left it."""
    click_all(desk)
    # What was asked for before this answer has been asked for.
    desk.driver.execute_script(
        "window.answered = 0; fetch(jupyterapp.serviceManager.serverSettings.baseUrl + 'api')"
        ".then(it => { window.answered = it.status; })"
    )
    desk.wait_until(
        lambda: desk.driver.execute_script("return window.answered === 200"),
        "the server never answered",
    )
    seen: dict[str, Any] = desk.driver.execute_script(LOOK)
    beacons = [it["url"] for it in sent_requests(desk) if BEACON in it["url"]]
    assert seen["attacked"] is None
    assert "attacked" not in seen["title"], title
    assert seen["bad"] == []
    assert seen["covers"] == []
    assert seen["links"] == []
    assert seen["app"] == "object"
    assert not seen["hidden"]
    assert beacons == []
    assert desk.server.request("GET", "api/terminals") == []
    assert desk.driver.execute_script("return document.cookie").count("attacked") == 0


def walled(desk: LabPage, within: str = "body") -> int:
    """Return how many outputs are not drawn as JupyterLab would."""
    return int(
        desk.driver.execute_script(
            "return document.querySelectorAll(arguments[0] + ' .gk-walled').length", within
        )
    )


def trust(path: Path) -> None:
    """Sign a notebook, as ``jupyter trust`` does."""
    notary = NotebookNotary()
    notary.sign(nbformat.read(path, as_version=4))
    notary.store.close()


def end_kernels(desk: LabPage) -> None:
    for session in desk.server.request("GET", "api/sessions"):
        desk.server.request("DELETE", f"api/sessions/{session['id']}")


@pytest.fixture(scope="module")
def attacked(desk: LabPage) -> Iterator[LabPage]:
    """A page with a notebook whose cells have tried everything, saved and trusted."""
    cells = {"prepare": PREPARE, **ATTACKS}
    write_notebook(desk.server.folder / "wall" / "attacks.ipynb", KERNEL, cells, COMMAND)
    open_notebook(desk, "wall/attacks.ipynb")
    run_all(desk, len(cells))
    desk.driver.execute_script("void jupyterapp.commands.execute('docmanager:save')")
    path = desk.server.folder / "wall" / "attacks.ipynb"
    desk.wait_until(lambda: '"output_type": "error"' in path.read_text(), "it was never saved")
    yield desk
    end_kernels(desk)


def test_a_kernel_prints_and_nothing_acts(attacked: LabPage) -> None:
    check(attacked, "as they were printed")
    attacked.screenshot("wall-attacks")
    assert walled(attacked) > 20
    wait_for_text(attacked, ".jp-MarkdownOutput button", "of a stranger")
    attacked.find(".jp-MarkdownOutput button").click()
    assert attacked.server.request("GET", "api/terminals") == []


SEND = """
kernel = get_ipython().kernel
kernel.session.send(kernel.iopub_socket, 'display_data', parent={},
    content={'data': {'text/html': img('log')}, 'metadata': {}})
kernel.session.send(kernel.iopub_socket, 'stream', parent={},
    content={'name': 'stdout', 'text': 'logged'})
"""


def test_views_consoles_and_logs_are_behind_the_wall(desk: LabPage) -> None:
    end_kernels(desk)
    cells = {"prepare": PREPARE, "image": "display(HTML(img('image'))); print('seen')", "log": SEND}
    write_notebook(desk.server.folder / "wall" / "views.ipynb", KERNEL, cells)
    open_notebook(desk, "wall/views.ipynb")
    desk.driver.execute_script("void jupyterapp.commands.execute('logconsole:open')")
    desk.find(".jp-LogConsole")
    desk.driver.execute_script(
        "void jupyterapp.commands.execute('logconsole:set-level', {level: 'debug'})"
    )
    desk.driver.execute_script(
        "for (const it of jupyterapp.shell.widgets('main')) jupyterapp.shell.activateById(it.id)"
    )
    run_all(desk, len(cells))
    wait_for_text(desk, f".jp-LogConsole {OUTPUT}", "logged")
    desk.driver.execute_script(
        "jupyterapp.shell.currentWidget.content.activeCellIndex = 1;"
        "void jupyterapp.commands.execute('notebook:create-output-view')"
    )
    wait_for_text(desk, f".jp-LinkedOutputView {OUTPUT}", "seen")
    path = "wall/views.ipynb"
    desk.driver.execute_script(
        """
        void jupyterapp.commands.execute('console:create', {
          path: arguments[0], kernelPreference: {name: arguments[1]}, activate: true
        }).then(async panel => {
          await panel.sessionContext.ready;
          for (const source of arguments[2]) await panel.console.inject(source);
        })
        """,
        path,
        KERNEL,
        [PREPARE, "display(HTML(img('console'))); print('console')"],
    )
    wait_for_text(desk, f".jp-CodeConsole {OUTPUT}", "console")
    check(desk, "views")
    desk.screenshot("wall-views")
    for place in (".jp-CodeConsole", ".jp-LogConsole", ".jp-LinkedOutputView"):
        assert walled(desk, place) > 0, place


LOCAL = {
    "script": "HTML('<b id=own>b</b><script>window.ran = (window.ran || 0) + 1</script>')",
    "update": "it = display('first', display_id=True); it.update(HTML("
    "'<img src=x onerror=\"window.updated = 1\">'))",
    "javascript": "Javascript('window.scripted = 1')",
    "widget": "import ipywidgets; ipywidgets.IntSlider(description='slide')",
    "other": "it.update(HTML('<img src=x onerror=\"window.other = 1\">'))",
}


def test_what_needs_no_wall_is_as_before(desk: LabPage) -> None:
    end_kernels(desk)
    cells = {"prepare": PREPARE, **HARMLESS}
    write_notebook(desk.server.folder / "wall" / "harmless.ipynb", KERNEL, cells)
    open_notebook(desk, "wall/harmless.ipynb")
    run_all(desk, len(cells))
    wait_for_text(desk, OUTPUT, "green")
    desk.find(".jp-RenderedImage img")
    desk.find(".jp-RenderedHTML table.dataframe td")
    desk.find(".jp-RenderedMarkdown h1")
    desk.find(".jp-RenderedJSON")
    desk.find(".jp-RenderedLatex mjx-container")
    desk.screenshot("wall-harmless")
    assert (
        desk.driver.execute_script("return document.querySelectorAll(arguments[0]).length", LINE)
        == 0
    )

    # A kernel without a sandbox, whose outputs were just made; and then the same from the file.
    end_kernels(desk)
    path = desk.server.folder / "wall" / "local.ipynb"
    cells = {"prepare": PREPARE, **LOCAL}
    write_notebook(path, WITHOUT, cells)
    trust(path)
    open_notebook(desk, "wall/local.ipynb")
    run_all(desk, len(cells))
    wait_for_text(desk, ".widget-slider", "slide")
    ran = "return [window.ran, window.updated, window.scripted, window.other]"
    desk.wait_until(
        lambda: desk.driver.execute_script(ran) == [1, 1, 1, 1],
        "a local kernel's output is missing",
    )
    desk.screenshot("wall-local")
    assert desk.driver.execute_script("return document.querySelector('.gk-walled')") is None
    desk.driver.execute_script("void jupyterapp.commands.execute('docmanager:save')")
    desk.wait_until(lambda: '"display_data"' in path.read_text(), "it was never saved")
    assert "gvisor-kernel:origin" not in path.read_text()
    open_notebook(desk, "wall/local.ipynb", anew=True)
    desk.wait_until(lambda: walled(desk) > 2, "the outputs were never drawn")
    assert desk.driver.execute_script(ran) == [None] * 4


def saved(desk: LabPage, name: str, kernel: str | None) -> None:
    """Write the notebook with its outputs under another name, trusted, with another kernel."""
    document = json.loads((desk.server.folder / "wall" / "attacks.ipynb").read_text())
    assert any("onerror" in json.dumps(it.get("outputs")) for it in document["cells"]), (
        "nothing saved"
    )
    if kernel is None:
        del document["metadata"]["kernelspec"]
    else:
        document["metadata"]["kernelspec"] = {"name": kernel, "display_name": kernel}
    path = desk.server.folder / "wall" / f"{name}.ipynb"
    path.write_text(json.dumps(document))
    trust(path)


@pytest.mark.parametrize(
    ("page", "kernel"),
    [
        (LAB, WITHOUT),
        ("notebooks", KERNEL),
        pytest.param(LAB, KERNEL, marks=needs_all),
        pytest.param(LAB, None, marks=needs_all),
        pytest.param("notebooks", WITHOUT, marks=needs_all),
    ],
)
def test_saved_and_trusted_outputs_do_not_act(
    attacked: LabPage, page: str, kernel: str | None
) -> None:
    end_kernels(attacked)
    name = f"saved-{kernel}-{page[:3]}"
    saved(attacked, name, kernel)
    open_notebook(attacked, f"wall/{name}.ipynb", page)
    attacked.wait_until(lambda: walled(attacked) > 20, "the outputs were never drawn")
    check(attacked, name)
    attacked.screenshot(f"wall-{name}")


SHOWN = "<b>drawn</b><script>document.querySelector('b').textContent += ' by a script'</script>"


def test_an_extension_that_is_disabled_changes_nothing(desk: LabPage) -> None:
    """Its code is loaded nevertheless."""
    output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": SHOWN}}
    path = desk.server.folder / "wall" / "disabled.ipynb"
    write_notebook(path, "", {"local": "1"})
    document = json.loads(path.read_text())
    document["cells"][0]["outputs"] = [output]
    path.write_text(json.dumps(document))
    trust(path)
    config = desk.server.base / "config" / "labconfig" / "page_config.json"
    before = config.read_text()
    config.write_text(json.dumps({"disabledExtensions": {"gvisor-kernel": True}}))
    try:
        open_notebook(desk, "wall/disabled.ipynb", anew=True)
        wait_for_text(desk, OUTPUT, "drawn by a script")
        assert walled(desk) == 0
    finally:
        config.write_text(before)
