"""Widgets of our kernels: they work in frames, and what they do stays there.

One browser for all. Kernels run in notebooks that are written beforehand; what a person does with
a widget is done by its own events, in its frame.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By

from .conftest import IN_SANDBOXES, KERNEL
from .lab import LabPage
from .looking import button, text_of
from .test_hibernation import choose

pytestmark = IN_SANDBOXES
IMPORTS = "import ipywidgets as w\nfrom IPython.display import HTML, Javascript, Math, display\n"
HIT = (
    "window.gkHit = 1; for (const it of [top, parent, parent.parent])"
    " try { it.gkHit = 1; it.document.body.className += ' gk-hit' } catch (error) {}"
    " try { fetch('/api/terminals', {method: 'POST'}) } catch (error) {}"
)


def write_notebook(path: Path, cells: list[str], metadata: dict[str, Any] | None = None) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(it) for it in cells])
    notebook.metadata.update(metadata or {})
    notebook.metadata.kernelspec = {"name": KERNEL, "display_name": KERNEL, "language": "python"}
    nbformat.write(notebook, path)


VIEW = """
const { node } = jupyterapp.shell.currentWidget;
const view = [...node.querySelectorAll('.gk-widget-output')][arguments[0]];
view?.scrollIntoView({ block: 'center' });  // only what is near to the window has a frame
return view?.querySelector('.gk-page') ?? null;
"""


class Widgets:
    """The notebook that is open, and the frames of its widgets."""

    def __init__(self, page: LabPage) -> None:
        self.page = page
        self.driver = page.driver

    def open(self, name: str, *, anew: bool = False, keep: bool = False) -> None:
        """Open a notebook; ``anew`` in a page that is loaded for it, as a reload does."""
        server = self.page.server
        if anew or not self.page.has_lab():
            query = f"{'' if anew else 'reset&'}token={server.token}"
            self.driver.get(f"{server.url}lab/workspaces/auto-test/tree/{name}?{query}")
            self.page.find(".jp-Notebook .jp-Cell")
        else:
            self.page.open_here(name, keep=keep)
        self.page.wait_until(lambda: self.kernel("status") == "idle", "the kernel is not idle")

    def kernel(self, what: str) -> Any:
        return self.driver.execute_script(
            "const { currentWidget } = window.jupyterapp.shell;"
            "return currentWidget?.sessionContext?.session?.kernel?.[arguments[0]]",
            what,
        )

    def change_kernel(self, name: str) -> None:
        """Change to a kernel that the person would be warned of in an unknown notebook."""
        self.driver.execute_async_script(
            "const done = arguments[1]; const { sessionContext } ="
            " window.jupyterapp.shell.currentWidget;"
            "sessionContext.changeKernel({ name: arguments[0] }).then(() => done(), () => done())",
            name,
        )
        self.page.wait_until(
            lambda: (self.kernel("name"), self.kernel("status")) == (name, "idle"),
            "the kernel has not changed",
        )

    def command(self, name: str) -> None:
        self.driver.switch_to.default_content()
        done = self.driver.execute_async_script(
            "const done = arguments[1]; window.jupyterapp.commands.execute(arguments[0])"
            ".then(() => done(true), error => done(String(error)))",
            name,
        )
        assert done is True, done

    def run_all(self) -> None:
        self.command("notebook:run-all-cells")

    def frame(self, number: int) -> bool:
        """Go into the frame of a widget, counted in the notebook; whether it is there."""
        self.driver.switch_to.default_content()
        try:
            view = self.driver.execute_script(VIEW, number)
            if view is None:
                return False
            self.driver.switch_to.frame(view)
            self.driver.switch_to.frame(self.driver.find_element(By.TAG_NAME, "iframe"))
        except (NoSuchElementException, StaleElementReferenceException):
            return False
        return True

    def ask(self, number: int, script: str, *values: Any) -> Any:
        """Evaluate a script in a frame; None if it is not there."""
        try:
            if not self.frame(number):
                return None
            return self.driver.execute_script(script, *values)
        finally:
            self.driver.switch_to.default_content()

    def text(self, number: int) -> str:
        return str(self.ask(number, "return document.body.textContent") or "")

    def has(self, number: int, text: str) -> None:
        self.page.wait_until(
            lambda: text in self.text(number), f"the frame {number} never had {text!r}"
        )

    def set_slider(self, number: int, value: int) -> None:
        # Its frame may have been given to others meanwhile.
        self.page.wait_until(
            lambda: self.ask(number, "return document.querySelector('.widget-readout') !== null"),
            f"the frame {number} has no slider",
        )
        self.ask(
            number,
            "const node = document.querySelector('.widget-readout');"
            "node.textContent = arguments[0];"
            "node.dispatchEvent(new KeyboardEvent('keydown', {keyCode: 13, bubbles: true}));",
            str(value),
        )

    def outputs(self) -> str:
        return text_of(self.page, ".jp-OutputArea")

    def run_code(self, code: str) -> str:
        """Return what code prints in the kernel."""
        return str(
            self.driver.execute_async_script(
                "const done = arguments[1]; let text = '';"
                "const { sessionContext } = window.jupyterapp.shell.currentWidget;"
                "const { kernel } = sessionContext.session;"
                "const future = kernel.requestExecute({code: arguments[0], store_history: false});"
                "future.onIOPub = it => { text += it.content.text ?? it.content.evalue ?? ''; };"
                "future.done.then(() => done(text), error => done(String(error)));",
                code,
            )
        )


@pytest.fixture(scope="module")
def widgets(desk: LabPage) -> Iterator[Widgets]:
    yield Widgets(desk)
    for session in desk.server.request("GET", "api/sessions"):
        desk.server.request("DELETE", f"api/sessions/{session['id']}")


CELLS = [
    f"{IMPORTS}s = w.IntSlider(description='speed', value=3)\ns",
    "b = w.Button(description='press')\nb.on_click(lambda _: setattr(s, 'value', 77))\n"
    "w.HBox([s, b])",
    "def f(x=10):\n    print('twice', 2 * x)\n    display(HTML(f'<i>it {x}</i>'))\n"
    "_ = w.interact(f)",
    "image = w.Image(value=bytes.fromhex('89504e470d0a1a0a'), format='png')\n"
    "bars = [w.IntProgress(description='bar'), w.Label('0')]\ndisplay(w.HBox([*bars, image]))\n"
    "for i in range(20):\n    bars[0].value = i\n    bars[1].value = f'at {i + 1}'",
    "a, c = w.IntSlider(value=1), w.IntText()\nlink = w.jslink((a, 'value'), (c, 'value'))"
    "\ndisplay(a)\nc",
    "import traitlets\n"
    "class Counter(w.DOMWidget):\n"
    "    _view_module = traitlets.Unicode('anywidget').tag(sync=True)\n"
    "    _model_module = traitlets.Unicode('anywidget').tag(sync=True)\n"
    "    _view_name = traitlets.Unicode('AnyView').tag(sync=True)\n"
    "    _model_name = traitlets.Unicode('AnyModel').tag(sync=True)\n"
    "    _css = traitlets.Unicode('.it { color: rgb(1, 2, 3) }').tag(sync=True)\n"
    "    _esm = traitlets.Unicode('''\n"
    "export default { render({ model, el }) {\n"
    "  const show = () => { el.textContent = `count ${model.get('count')}`; };\n"
    "  el.className += ' it';\n"
    "  el.onclick = () => { model.set('count', model.get('count') + 1);"
    " model.save_changes(); };\n"
    "  model.on('change:count', show); show(); } }''').tag(sync=True)\n"
    "    count = traitlets.Int(5).tag(sync=True)\n"
    "counter = Counter()\ncounter",
    "class Far(Counter):\n"
    '    _esm = traitlets.Unicode(\'import x from "https://esm.sh/x";'
    "export default {}').tag(sync=True)\nFar()",
    "class Unknown(Counter):\n"
    "    _view_module = traitlets.Unicode('some-package').tag(sync=True)\n"
    "    _model_module = traitlets.Unicode('some-package').tag(sync=True)\nUnknown()",
    "def g(x=2):\n    print('\\x1b[31mred\\x1b[0m')\n"
    "    display(HTML('<b id=it></b><script>it.textContent = \"by a script'"
    " f' {x}\"</script>'))\n"
    "    display({'application/vnd.vegalite.v6+json': {'mark': 'bar', 'width': 50 * x,"
    " 'data': {'values': [{'a': 1}]}, 'encoding': {'x': {'field': 'a'}}},"
    " 'text/plain': 'a plot'}, raw=True)\n_ = w.interact(g, x=(1, 9))",
    "shown = w.Output()\nwith shown:\n    display(Math('y^2'))\n"
    "    display(HTML('<table><td>cell</table>'))\n"
    "w.VBox([w.Button(button_style='success'), shown, w.HTMLMath('so $x^2$ is'), w.Controller()])",
]


@pytest.fixture(scope="module")
def used(widgets: Widgets) -> Widgets:
    """A notebook whose cells have run."""
    write_notebook(widgets.page.server.folder / "widgets.ipynb", CELLS)
    widgets.open("widgets.ipynb")
    widgets.run_all()
    widgets.has(0, "speed")
    return widgets


def test_a_widget_in_two_cells_is_one_widget(used: Widgets) -> None:
    used.has(1, "3")
    used.set_slider(0, 42)
    used.has(1, "42")
    assert used.run_code("print(s.value)").strip() == "42"
    used.has(1, "press")
    used.ask(1, "document.querySelector('button').click()")
    used.has(0, "77")
    used.has(1, "77")


def test_interact_and_output_widgets_show_what_is_printed(used: Widgets) -> None:
    used.has(2, "twice 20")
    used.set_slider(2, 21)
    used.has(2, "twice 42")
    used.has(2, "it 21")
    assert "twice" not in used.outputs()


def test_output_widgets_draw_what_outputs_of_cells_draw(used: Widgets) -> None:
    seen = """
        const red = document.querySelector('pre span[style*=color]');
        const chart = document.querySelector('.vega-embed canvas, .vega-embed svg');
        return [red?.textContent, document.getElementById('it')?.textContent, chart !== null,
            document.body.textContent.includes('a plot')]"""
    for value in (2, 6):
        if value != 2:
            used.set_slider(9, value)
        used.page.wait_until(
            lambda value=value: used.ask(9, seen) == ["red", f"by a script {value}", True, False],
            f"not drawn for {value}",
        )
    used.page.screenshot("widget-outputs")


def test_progress_and_pictures(used: Widgets) -> None:
    used.has(3, "at 20")
    used.page.wait_until(
        lambda: str(used.ask(3, "return document.querySelector('img')?.src")).startswith("blob:"),
        "there is no picture",
    )


def test_a_link_between_frames_takes_back_nothing_that_is_entered(used: Widgets) -> None:
    used.set_slider(4, 8)
    used.page.wait_until(
        lambda: used.ask(5, "return document.querySelector('input')?.value") == "8",
        "the link does not work",
    )
    assert used.frame(4)
    try:
        back = used.driver.execute_async_script(
            "const done = arguments[0]; const back = []; let value = 10;"
            "const node = document.querySelector('.widget-readout');"
            "const next = () => {"
            "  if (node.textContent !== String(value)) back.push([value, node.textContent]);"
            "  if (++value > 35) return done(back);"
            "  node.textContent = String(value);"
            "  node.dispatchEvent(new KeyboardEvent('keydown', {keyCode: 13, bubbles: true}));"
            "  setTimeout(next, 20); };"
            "node.textContent = '10'; next();"
        )
    finally:
        used.driver.switch_to.default_content()
    assert back == []


def test_a_frame_has_no_gamepad(used: Widgets) -> None:
    used.page.screenshot("widgets")
    used.has(10, "Connect gamepad and press any button.")


def test_a_frame_looks_like_jupyterlab(used: Widgets) -> None:
    used.has(10, "cell")
    colour = used.driver.execute_script(
        "return getComputedStyle(document.body).getPropertyValue('--jp-success-color1')"
    )
    look = "getComputedStyle(document.querySelector(arguments[0])).getPropertyValue(arguments[1])"
    variable = used.ask(10, f"return {look}", ":root", "--jp-success-color1")
    assert variable.strip() == colour.strip()
    assert used.ask(10, f"return {look}", "table", "border-collapse") == "collapse"
    assert used.ask(10, f"return {look}", "table", "margin-left") == "0px"
    used.page.wait_until(
        lambda: used.ask(10, "return document.querySelectorAll('.katex').length") == 2,
        "formulas are shown as their text",
    )


def test_modules_of_widgets_run_in_the_frame_or_say_why_not(used: Widgets) -> None:
    used.has(6, "count 5")
    used.ask(6, "document.querySelector('.it').click()")
    used.has(6, "count 6")
    used.page.wait_until(
        lambda: used.run_code("print(counter.count)").strip() == "6", "the kernel has not heard it"
    )
    for name in ("no network: https://esm.sh/x", "some-package"):
        used.page.wait_until(
            lambda name=name: name in used.outputs(), f"nobody says that {name} is not there"
        )


def rewind_by_menu(widgets: Widgets, path: str, change: Callable[[], None]) -> None:
    """Let the kernel of the notebook go back to before ``change`` of its first widget."""
    server, before = widgets.page.server, widgets.text(1)
    sessions = server.request("GET", "api/sessions")
    kernel = next(it["kernel"]["id"] for it in sessions if it["path"] == path)
    server.request("POST", f"gvisor-kernel/api/kernels/{kernel}/checkpoints", {})
    change()
    widgets.page.wait_until(lambda: widgets.text(1) != before, "nothing has changed")
    choose(widgets.page, "Rewind Kernel…")
    button(widgets.page, ".jp-Dialog-content", "Rewind").click()


def test_widgets_survive_a_reload_and_end_with_their_kernel(widgets: Widgets) -> None:
    slider, _, interact, *_ = CELLS
    both = f"{interact}\n{CELLS[5].removesuffix('counter')}"
    both = both.replace("_ = w.interact(f)", "shown = w.interactive(f)\nshown.update()")
    cells = [slider, "s", f"{both}w.VBox([shown, counter])"]
    write_notebook(widgets.page.server.folder / "reload.ipynb", cells)
    widgets.open("reload.ipynb")
    widgets.run_all()
    widgets.has(2, "count")
    widgets.set_slider(0, 55)
    widgets.has(1, "55")
    widgets.command("docmanager:save")
    widgets.open("reload.ipynb", anew=True)
    widgets.has(1, "55")
    widgets.has(2, "twice")
    widgets.has(2, "count")
    widgets.set_slider(1, 56)
    widgets.has(0, "56")
    rewind_by_menu(widgets, "reload.ipynb", lambda: widgets.set_slider(0, 57))
    widgets.has(1, "56")
    widgets.driver.execute_async_script(
        "const done = arguments[0];"
        "window.jupyterapp.shell.currentWidget.sessionContext.restartKernel().then(() => done())"
    )
    widgets.has(0, "The kernel of this widget is gone: run the cell again.")
    widgets.command("docmanager:save")
    widgets.open("reload.ipynb")
    widgets.has(0, "The kernel does not have this widget any more")


ATTACKS = [
    f'{IMPORTS}HIT = """{HIT}"""\ntag = \'<img src=x onerror="\' + HIT + \'">\'\nw.HTML(tag)',
    "w.IntText(description=tag, description_allow_html=True)",
    "out = w.Output()\ndisplay(out)\n"
    "with out:\n    display(HTML(f'<script>{HIT}</script>'), Javascript(HIT))",
    "import traitlets\n"
    "class Far(w.DOMWidget):\n"
    "    _view_module = traitlets.Unicode('https://evil.example/x.js').tag(sync=True)\n"
    "    _model_module = traitlets.Unicode('https://evil.example/x.js').tag(sync=True)\n"
    "    _view_name = traitlets.Unicode('V').tag(sync=True)\n"
    "    _model_name = traitlets.Unicode('M').tag(sync=True)\nFar()",
    "class Any(Far):\n"
    "    _view_module = traitlets.Unicode('anywidget').tag(sync=True)\n"
    "    _model_module = traitlets.Unicode('anywidget').tag(sync=True)\n"
    "    _view_name = traitlets.Unicode('AnyView').tag(sync=True)\n"
    "    _model_name = traitlets.Unicode('AnyModel').tag(sync=True)\n"
    "    _esm = traitlets.Unicode(HIT + '; export default {}').tag(sync=True)\nAny()",
    "class Asks(Any):\n"
    "    _css = traitlets.Unicode('body, .gk-page { position: fixed; inset: 0 }').tag(sync=True)\n"
    "    _esm = traitlets.Unicode('''\n"
    "export default { async render({ model, el }) {\n"
    "  el.innerHTML = '<div class=gk-planted style=\"position: fixed; inset: 0\">x</div>';\n"
    "  const manager = model.widget_manager;\n"
    "  manager.get_model('other-kernels').then(it => {\n"
    "    it.set('value', 66); it.save_changes(); });\n"
    "  manager.new_widget({ model_name: 'M', model_module: 'm', model_module_version: '1',\n"
    "    view_name: 'V', view_module: 'm', view_module_version: '1' });\n"
    "  for (let n = 0; n < 1000; n++) model.send({ n });\n"
    "  window.gkHit = 1; } }''').tag(sync=True)\nAsks()",
    "cover = w.Button(description='cover', layout=w.Layout(width='3000px', height='3000px'))\n"
    "cover.add_class('jp-Dialog').add_class('gk-planted')\n"
    "display(HTML('<style class=gk-planted>body { display: none }</style>'))\ncover",
    "w.HTML('<style>.gk-page, body { position: fixed; inset: 0 }</style><div class=gk-planted "
    'data-commandlinker-command="terminal:create-new" style="position: fixed; inset: 0">x</div>\')',
    "mine = w.IntSlider(value=1, model_id='not-shown')\n"
    "shown = w.IntSlider(value=3)\n"
    "class Link(w.Widget):\n"
    "    _model_module = traitlets.Unicode('@jupyter-widgets/controls').tag(sync=True)\n"
    "    _model_name = traitlets.Unicode('LinkModel').tag(sync=True)\n"
    "    source = traitlets.List(['IPY_MODEL_' + shown.model_id, 'value']).tag(sync=True)\n"
    "    target = traitlets.List(['IPY_MODEL_other-kernels', 'value']).tag(sync=True)\n"
    "link = Link()\nshown",
    # The port of the frame is taken from a message of the manager, and everything is asked of it.
    "forge = '''const send = MessagePort.prototype.postMessage;\n"
    "MessagePort.prototype.postMessage = function (...values) {\n"
    "  send.apply(this, values);\n"
    "  let n = 1000;\n"
    "  for (const id of ['other-kernels', 'not-shown', '__proto__'])\n"
    "    for (const kind of ['update', 'custom', 'request_state', 'comm_open', 'open'])\n"
    "      send.call(this, {kind: 'message', buffers: [], text: JSON.stringify({kind,\n"
    "        n: n++, id, state: {value: 66}, paths: [], content: 1, comm_id: id,\n"
    "        target_name: 'jupyter.widget', kernel: '*'})});\n"
    "  send.call(this, {kind: 'message', buffers: [], text: JSON.stringify({kind: 'want',\n"
    "    ids: ['other-kernels', '__proto__']})});\n"
    "  window.gkForged = 1;\n"
    "};'''\n"
    "display(w.HTML(f'<img src=x onerror=\"{forge}\">'))\n"
    "text = w.Text()\ntext",
    "from ipykernel.comm import Comm\n"
    "for target in ('jupyter.widget', 'jupyter.widget.control'):\n"
    "    for data in ({}, {'state': None}, {'state': {'_model_name': 7}}, {'state': []},\n"
    "                 {'state': {'_model_name': 'M', '_model_module': HIT},\n"
    "                  'buffer_paths': [[{}]]}):\n"
    "        state = {'__proto__': {'gkHit': 1}}\n"
    "        Comm(target, data=data).send({'method': 'update', 'state': state})\n"
    "w.FileUpload(description='done')",
]


def is_untouched(widgets: Widgets) -> bool:
    found = widgets.driver.execute_script(
        "return [window.gkHit, {}.gkHit,"
        "document.querySelector('.gk-hit, .gk-planted, .jp-Dialog'),"
        "getComputedStyle(document.body).display === 'none']"
    )
    terminals = widgets.page.server.request("GET", "api/terminals")
    return found == [None, None, None, False] and terminals == []


def test_what_widgets_attack_stays_in_their_frames(widgets: Widgets) -> None:
    folder = widgets.page.server.folder
    other = "other = w.IntSlider(value=7, model_id='other-kernels')\nother"
    write_notebook(folder / "other.ipynb", [IMPORTS + other])
    widgets.open("other.ipynb")
    widgets.run_all()
    widgets.has(0, "7")
    write_notebook(folder / "attacks.ipynb", ATTACKS)
    # In one page: what JupyterLab and the extension have of the other kernel is there, too.
    widgets.open("attacks.ipynb", keep=True)
    widgets.run_all()
    widgets.page.wait_until(
        lambda: widgets.run_code("print('target' in globals())").strip() == "True", "cells wait"
    )
    # They run, each in its frame.
    for number in (0, 2, 4, 5):
        widgets.page.wait_until(
            lambda number=number: widgets.ask(number, "return window.gkHit") == 1,
            f"the attack {number} does not even run",
        )
    assert is_untouched(widgets)
    assert widgets.run_code("print(mine.value)").strip() == "1"
    rects = widgets.driver.execute_script(
        "const area = jupyterapp.shell.currentWidget.content.node.getBoundingClientRect();"
        "return [...document.querySelectorAll('.gk-page')].map(it => it.getBoundingClientRect())"
        ".filter(it => it.width > 0 && (it.left < area.left || it.right > area.right)).length"
    )
    assert rects == 0
    widgets.page.screenshot("widget-attacks")
    widgets.page.open_tab("other.ipynb")
    assert widgets.run_code("print(other.value)").strip() == "7"
    widgets.has(0, "7")


def test_kept_widgets_are_shown_in_frames_for_every_kernel(widgets: Widgets) -> None:
    names = {"_view_module": "@jupyter-widgets/controls", "_view_name": "HTMLView"}
    model = {
        "model_name": "HTMLModel",
        "model_module": "@jupyter-widgets/controls",
        "model_module_version": "2.0.0",
        "state": {**names, "value": f'kept <img src=x onerror="{HIT}">'},
    }
    state = {"version_major": 2, "version_minor": 0, "state": {"kept": model}}
    kept = {"widgets": {"application/vnd.jupyter.widget-state+json": state}}
    path = widgets.page.server.folder / "kept.ipynb"
    write_notebook(path, ["1"], metadata=kept)
    notebook = json.loads(path.read_text())
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "kept"}}
    notebook["cells"][0]["outputs"] = [
        {"output_type": "display_data", "data": view, "metadata": {}}
    ]
    path.write_text(json.dumps(notebook))
    widgets.open("kept.ipynb")
    widgets.has(0, "kept")
    assert is_untouched(widgets)
    widgets.change_kernel("python3")
    widgets.command("docmanager:save")
    widgets.open("kept.ipynb")
    assert widgets.kernel("name") == "python3"
    widgets.has(0, "kept")
    assert is_untouched(widgets)


def test_widgets_of_other_kernels_are_shown_by_jupyterlab(widgets: Widgets) -> None:
    path = widgets.page.server.folder / "local.ipynb"
    write_notebook(path, [f"{IMPORTS}s = w.IntSlider(value=4)\ns", ATTACKS[0]])
    widgets.open("local.ipynb")
    widgets.change_kernel("python3")
    widgets.run_all()
    slider = ".jp-OutputArea .jupyter-widgets .widget-readout"
    assert widgets.page.find(slider).text == "4"
    # The same attack as above, from a kernel that may do it: so the attack is one.
    widgets.page.wait_until(
        lambda: widgets.driver.execute_script("return window.gkHit") == 1, "it is no attack"
    )
    widgets.command("docmanager:save")
    widgets.open("local.ipynb", anew=True)
    assert widgets.page.find(slider).text == "4"
