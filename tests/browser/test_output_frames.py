"""Outputs of cells in their frames: messages and heights, what is drawn, and what it reaches."""

from __future__ import annotations

from typing import Any

import nbformat
import pytest
from selenium.common.exceptions import (
    JavascriptException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By

from .framing import Host, Shown, host
from .lab import LabPage
from .looking import set_theme, text_of, wait_for_text

pytestmark = pytest.mark.browser
__all__ = ["host"]

SHOW = """
const [code, sized] = arguments;
window.messages = [];
const channel = new MessageChannel();
window.port = channel.port1;
port.onmessage = ({ data }) => {
  messages.push(data);
  if (data.kind !== 'ready') return;
  port.postMessage({ kind: 'show', type: 'x', source: '', name: 'output', dark: false,
    renderers: [`window.gvisorRender = async (source, tools) => {${code}}`], sized });
  port.postMessage({ kind: 'message', data: { hello: 1 }, buffers: [new ArrayBuffer(3)] });
};
document.getElementById('frame').contentWindow.postMessage('hold', '*', [channel.port2]);
"""


@pytest.fixture
def frame(driver: Any, host: Host) -> Shown:
    driver.get(f"http://127.0.0.1:{host.port}/")
    return Shown(driver)


def draw(frame: Shown, code: str, *, sized: bool = False) -> None:
    frame.driver.execute_script(SHOW, code, sized)
    frame.wait(lambda: frame.messages("shown"))


def test_messages_pass_both_ways(frame: Shown) -> None:
    code = """tools.onMessage((data, buffers) =>
        tools.send({ got: data, bytes: buffers[0].byteLength }, [new Uint8Array([7]).buffer]));"""
    draw(frame, code)
    (message,) = frame.wait(lambda: frame.messages("message"))
    assert message["text"] == '{"got":{"hello":1},"bytes":3}'
    first = "return new Uint8Array(messages.find(it => it.kind === 'message').buffers[0])[0]"
    assert frame.driver.execute_script(first) == 7


HOSTILE_MESSAGES = {
    "a long text": "tools.send('x'.repeat(5 * 1024 * 1024));",
    "many buffers": "tools.send(1, Array(1001).fill(new ArrayBuffer(1)));",
    "a large buffer": "tools.send(1, [new ArrayBuffer(33 * 1024 * 1024)]);",
    "a sparse list": "tools.send(1, Array(4294967295));",
    "no buffer": "tools.send(1, [{}]);",
    "a growing buffer": "tools.send(1, [new ArrayBuffer(1, { maxByteLength: 1e9 })]);",
}


@pytest.mark.parametrize("code", HOSTILE_MESSAGES.values(), ids=HOSTILE_MESSAGES)
def test_messages_are_bounded(frame: Shown, code: str) -> None:
    draw(frame, f"{code} setInterval(() => tools.send('after'), 300);")
    messages = frame.wait(lambda: frame.messages("message"))
    assert {message["text"] for message in messages} == {'"after"'}


def test_height_follows_the_content(frame: Shown) -> None:
    grow = "onclick = null; tools.onMessage(() => { box.style.height = '70px' });"
    code = f"""document.body.style.margin = 0; const box = document.createElement('div');
        box.style.height = '250px'; tools.root.append(box); {grow}"""
    draw(frame, code, sized=True)
    frame.wait(lambda: frame.messages("size")[-1:] == [{"kind": "size", "height": 70}])


def test_heights_that_change_for_ever_are_told_seldom(frame: Shown) -> None:
    code = """document.body.style.margin = 0; const box = document.createElement('div');
        tools.root.append(box); let high = 0;
        const grow = () => { high += 200; box.style.height = `${high}px`;
            if (high < 40000) requestAnimationFrame(grow); else tools.send('end') };
        grow();"""
    draw(frame, code, sized=True)
    frame.wait(lambda: frame.messages("message"))
    frame.wait(lambda: frame.messages("size")[-1]["height"] == 20000)
    assert len(frame.messages("size")) < 40  # of 200


OUTPUTS: dict[str, dict[str, Any]] = {
    "setup": {
        "text/html": "<script>window.prepared = {word: 'by an earlier cell', kind: typeof $}"
        "</script>"
    },
    "library": {
        "application/vnd.bokehjs_load.v0+json": "",
        "application/javascript": "window.Stand = {embed: id => "
        "document.getElementById(id).append('embedded')};",
    },
    "html": {
        "text/html": "<p id=seen>no</p><script>var first = 'one';</script><script>"
        "document.currentScript.previousElementSibling.before(first + ' ' + prepared.word);"
        "const made = document.createElement('script');"
        "made.textContent = \"seen.textContent = 'added'\"; document.body.append(made);</script>"
    },
    "reach": {
        "text/html": "<p id=seen></p><script>try { top.document.title = 'attacked' }"
        " catch (error) { seen.textContent = error.name }</script>"
    },
    "javascript": {"application/javascript": "element.textContent = 'drawn ' + (1 + 1);"},
    "elements": {"text/html": '<div id="stand-in" data-root-id="p1"></div>'},
    "exec": {
        "application/vnd.bokehjs_exec.v0+json": "",
        "application/javascript": "Stand.embed('stand-in'); // p1",
    },
    "srcdoc": {
        "text/html": "<iframe style='height: 90px' srcdoc=\"<style>html, body { height: 100% }"
        "</style><p id=inside></p><script>inside.textContent = 'a document'</script>\"></iframe>"
    },
    "network": {"text/html": "<iframe src='https://example.com/x' height=50></iframe>"},
    "missing": {"text/html": "<b>before</b><script src='https://cdn.example/none.js'></script>"},
    "require": {
        "text/html": "<p id=seen></p><script>define = gvisorDefine;"
        "define('stand', [], () => ({ word: 'required' }));"
        "require(['stand'], found => { seen.textContent = found.word });</script>"
    },
    "formulas": {"text/html": "<style>b { color: red }</style><b>$x^2$</b> <code>$y$</code>"},
    "markdown": {"text/markdown": "<input type=checkbox>so $a*b*c$ and\n\n$$d \\\\ e$$"},
    "jquery": {"text/html": "<p></p><script>$('p').text('$: ' + prepared.kind)</script>"},
    "module": {
        "text/html": "<p id=seen></p><script type=module>import * as d3 from"
        " 'https://cdn.jsdelivr.net/npm/d3@7/+esm'; import wait from"
        " 'https://esm.sh/lodash-es@4.17.21/debounce';"
        "d3.select('#seen').text(`d3 and ${typeof wait} of ${import.meta.url}`)</script>"
    },
    "clusters": {
        "text/html": "<div id=map style='height: 90px'></div><p id=seen></p>"
        "<script src='https://cdn.example/leaflet.js'></script>"
        "<script src='https://cdn.example/leaflet.markercluster.js'></script><script>"
        "const map = L.map('map', { center: [1, 1], zoom: 3 });"
        "L.markerClusterGroup().addLayer(L.marker([1, 1])).addTo(map);"
        "L.heatLayer([[1, 1, 0.5]]).addTo(map);"
        "seen.textContent = document.querySelectorAll('.leaflet-interactive').length + ' drawn'"
        "</script>"
    },
    "vega": {
        "application/vnd.vegalite.v6+json": {
            "data": {"values": [{"a": 1}, {"a": 3}]},
            "mark": "bar",
            "encoding": {"x": {"field": "a", "type": "quantitative"}},
        }
    },
    "svg": {
        "image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg' width='40' height='30'>"
        "<text y='20'>drawing</text></svg>"
    },
    "tall": {"text/html": "<div style='height: 700px'>tall</div><script></script>"},
    "again": {"application/javascript": "element.textContent = 'drawn ' + (1 + 1);"},
    "grows": {
        "text/html": "<div id=box>grows</div><script>let high = 0; setInterval(() => {"
        "high = (high + 50) % 15000; box.style.height = high + 'px' }, 20);</script>"
    },
    "asks": {
        "text/html": "<p>asks</p><script>for (let i = 0; i < 200; i++) {"
        "const made = document.createElement('script'); made.src = 'vega?' + i;"
        "document.body.append(made); }</script>"
    },
    "sends": {
        "text/html": "<p>sends</p><script>for (let i = 0; i < 3000; i++)"
        "top.postMessage({ kind: 'size', height: 5000 }, '*');</script>"
    },
}
SHOWN = {
    "html": "one by an earlier cell",
    "reach": "SecurityError",
    "javascript": "drawn 2",
    "exec": "embedded",
    "srcdoc": "a document",
    "network": "Not loaded, as outputs have no network: https://example.com/x",
    "missing": "before",
    "require": "required",
    "jquery": "$: function",
    "module": "d3 and function of https://nothing.invalid/",
    "clusters": "2 drawn",
    "svg": "drawing",
}


def open_outputs(desk: LabPage, name: str, outputs: dict[str, dict[str, Any]]) -> None:
    """Open a notebook of these outputs, whose kernel is not there."""
    cells = [
        nbformat.v4.new_code_cell(name, outputs=[nbformat.v4.new_output("display_data", data)])
        for name, data in outputs.items()
    ]
    folder = desk.server.folder
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / name)
    if desk.has_lab():
        desk.open_here(name)
        return
    page = f"lab/workspaces/auto-test/tree/{name}?reset"  # without the notebooks of before
    desk.driver.get(f"{desk.server.url}{page}&token={desk.server.token}")
    desk.find(".jp-Notebook .jp-Cell")


@pytest.fixture(scope="module")
def notebook(desk: LabPage) -> LabPage:
    open_outputs(desk, "frames.ipynb", OUTPUTS)
    return desk


CELL = """
const cells = [...document.querySelectorAll('.jp-CodeCell')];
const cell = cells.find(it => it.querySelector('.cm-content')?.textContent === arguments[0]);
cell?.scrollIntoView({ block: 'center' });
return cell?.querySelector('.gk-framed-output') ?? null;
"""


def text_in(lab: LabPage, name: str) -> str:
    """Return what the frame of a cell's output shows; nothing while it is not there."""
    return run_in(lab, name, "return document.getElementById('gvisor-root')?.innerText ?? ''")


def run_in(lab: LabPage, name: str, script: str) -> str:
    """Run a script in the frame of a cell's output; an empty text while it is not there."""
    lab.driver.switch_to.default_content()
    output = lab.driver.execute_script(CELL, name)
    if output is None:
        return ""
    try:
        lab.driver.switch_to.frame(output.find_element(By.CSS_SELECTOR, ".gk-page"))
        lab.driver.switch_to.frame(lab.driver.find_element(By.TAG_NAME, "iframe"))
        return str(lab.driver.execute_script(script))
    except (NoSuchElementException, StaleElementReferenceException, JavascriptException):
        return ""
    finally:
        lab.driver.switch_to.default_content()


def output_of(lab: LabPage, name: str, script: str) -> Any:
    """Run a script of a cell's output in JupyterLab's page."""
    output = lab.driver.execute_script(CELL, name)
    return lab.driver.execute_script(f"const output = arguments[0]; {script}", output)


@pytest.mark.parametrize("name", SHOWN)
def test_outputs_are_drawn_in_frames(notebook: LabPage, name: str) -> None:
    notebook.wait_until(
        lambda: SHOWN[name] in text_in(notebook, name), f"{name}: {text_in(notebook, name)!r}"
    )
    assert "attacked" not in notebook.driver.title


def test_what_is_missing_is_named(notebook: LabPage) -> None:
    line = "return output?.querySelector('.gk-notes')?.textContent ?? ''"
    notebook.wait_until(
        lambda: "cdn.example/none.js" in output_of(notebook, "missing", line), "nothing was said"
    )


FORMULAS = {"formulas": "x^2", "markdown": "a*b*c; d \\\\ e"}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_are_set(notebook: LabPage, name: str) -> None:
    seen = """return [...document.querySelectorAll('.katex annotation')].map(it => it.textContent)
        .join('; ')"""
    notebook.wait_until(lambda: run_in(notebook, name, seen) == FORMULAS[name], name)


def test_vega_is_in_the_extension(notebook: LabPage) -> None:
    def drawn() -> bool:
        height = output_of(notebook, "vega", "return output?.offsetHeight ?? 0")
        return bool(height > 60)

    notebook.wait_until(drawn, "no chart was drawn")


def test_an_output_is_as_high_as_its_content(notebook: LabPage) -> None:
    height = "return output?.querySelector('.gk-framed-content').offsetHeight ?? 0"
    notebook.wait_until(lambda: 700 <= output_of(notebook, "tall", height) < 720, "not 700 pixels")


def test_an_output_that_changes_keeps_its_frame(notebook: LabPage) -> None:
    notebook.wait_until(lambda: "drawn 2" in text_in(notebook, "again"), "not drawn")
    page = "return output?.querySelector('.gk-page')"
    before = output_of(notebook, "again", page)
    change = """const { model } = jupyterapp.shell.currentWidget.content;
      const cell = [...model.cells].find(it => it.sharedModel.getSource() === 'again');
      cell.outputs.set(0, { output_type: 'display_data', metadata: {},
        data: { 'application/javascript': "element.textContent = 'drawn again'" } });"""
    notebook.driver.execute_script(change)
    notebook.wait_until(lambda: text_in(notebook, "again") == "drawn again", "not again")
    assert output_of(notebook, "again", page) == before


def test_one_that_grows_for_ever_changes_the_notebook_seldom(notebook: LabPage) -> None:
    watch = """if (output === null) return 0; window.changes ??= 0; window.watched ??= new
      MutationObserver(() => { changes += 1 }).observe(output, {subtree: true, attributes: true,
      attributeFilter: ['style']}) ?? true; return changes"""
    notebook.wait_until(lambda: output_of(notebook, "grows", watch) > 2, "it did not grow")
    seconds = "return performance.now() / 1000"
    begin = notebook.driver.execute_script(seconds)
    notebook.wait_until(lambda: notebook.driver.execute_script(seconds) > begin + 2, "no time")
    # 50 changes in each second, of which 20 are told at once and one in a second.
    assert output_of(notebook, "grows", watch) < 50


def test_one_that_sends_messages_is_ended(notebook: LabPage) -> None:
    line = "return output?.querySelector('.gk-notes')?.textContent ?? ''"
    notebook.wait_until(
        lambda: "sends messages to JupyterLab" in output_of(notebook, "sends", line), "it goes on"
    )


def test_one_that_asks_for_libraries_for_ever_gets_no_more(notebook: LabPage) -> None:
    line = "return output?.querySelector('.gk-notes')?.textContent ?? ''"
    notebook.wait_until(
        lambda: "too many libraries" in output_of(notebook, "asks", line), "it gets all"
    )


def test_an_output_has_the_colours_of_the_theme(notebook: LabPage) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        set_theme(notebook, theme)
        around = "getComputedStyle(document.body).getPropertyValue('--jp-layout-color0')"
        wanted = notebook.driver.execute_script(
            f"const it = document.createElement('i'); it.style.color = {around};"
            "document.body.append(it); return getComputedStyle(it).color"
        )
        notebook.wait_until(
            lambda wanted=wanted: run_in(notebook, "svg", f"return {colour}") == wanted, theme
        )


def test_few_frames_are_alive(notebook: LabPage) -> None:
    for name in OUTPUTS:
        output_of(notebook, name, "return null")
    count = "return document.querySelectorAll('iframe.gk-page').length"
    notebook.wait_until(lambda: 0 < notebook.driver.execute_script(count) <= 24, "too many frames")


WATCH_BEGUN = """
const { setTimeout } = window;
const outer = document.querySelector('.jp-Notebook .jp-WindowedPanel-outer');
window.begun = [];
new MutationObserver(() => {
  for (const it of document.querySelectorAll('.gk-page')) {
    const name = it.closest('.jp-CodeCell')?.querySelector('.cm-content').textContent;
    if (name !== undefined && !begun.includes(name)) begun.push(name);
  }
}).observe(document.body, { subtree: true, childList: true });
let left = 12;
window.setTimeout = (call, milliseconds, ...args) => setTimeout(() => {
  if (milliseconds === 100 && left > 0) {
    left -= 1;
    outer.scrollTop += 600;
  }
  call();
}, milliseconds, ...args);
outer.scrollTop += 600;
"""
"""Notes the cells whose frames begin, and scrolls on before each look of the pool, twelve times."""


def test_what_goes_by_begins_no_frame_and_where_it_stops_one_begins(desk: LabPage) -> None:
    box = "<div style='height: 400px'>{}</div><script></script>"
    names = [f"cell {number}" for number in range(40)]
    open_outputs(desk, "long.ipynb", {it: {"text/html": box.format(it)} for it in names})
    desk.wait_until(lambda: "cell 0" in text_in(desk, "cell 0"), "the first was not drawn")
    desk.driver.execute_script(WATCH_BEGUN)
    in_sight = """return [...document.querySelectorAll('.jp-CodeCell')].filter(it => {
      const { top, bottom } = it.getBoundingClientRect();
      return bottom > 150 && top < innerHeight - 50;
    }).map(it => it.querySelector('.cm-content').textContent)"""
    seen: list[str] = []

    def drawn() -> bool:
        seen[:] = desk.driver.execute_script(in_sight)
        begun = desk.driver.execute_script("return begun")
        return names.index(seen[0]) > 10 and set(seen) <= set(begun)

    desk.wait_until(drawn, "none began where it stopped")
    begun = [names.index(it) for it in desk.driver.execute_script("return begun")]
    by_the_way = [it for it in begun if 4 < it < names.index(seen[0]) - 2]
    assert by_the_way == [], (begun, seen)


UNFIT = """
const { setAttribute } = Element.prototype;
Element.prototype.setAttribute = function (name, value) {
  const unheld = name === 'src' && /gvisor-kernel[/]frame([?]alone=1)?$/.test(value);
  setAttribute.call(this, name, unheld ? `${value.split('?')[0]}?control=1` : value);
};
Object.defineProperty(HTMLIFrameElement.prototype, 'src', {
  set(value) { this.setAttribute('src', value) } });
"""
"""Each frame is one without the header that the browser obeys: as in a browser that does not. Also
one that is loaded anew, as when the first was ten seconds late."""


def test_a_browser_that_holds_no_frame_shows_what_is_harmless(desk: LabPage) -> None:
    outputs: dict[str, dict[str, Any]] = {
        "html": {"text/html": "<b>harmless</b><script>top.attacked = 1</script>"},
        "plot": {"application/vnd.plotly.v1+json": {}, "text/plain": "a figure"},
        "markdown": {"text/markdown": "**strong**<script>top.attacked = 1</script>"},
        "out of sight" + "\n" * 150: {"text/html": "<i>far</i><script></script>"},
    }
    desk.driver.execute_script(UNFIT)  # the last test of this page
    open_outputs(desk, "unfit.ipynb", outputs)
    for text in ("harmless", "a figure", "strong", "far"):
        wait_for_text(desk, ".gk-walled", text)
    refusal = "does not keep pages and outputs from the network"
    desk.wait_until(
        lambda: text_of(desk, ".gk-wall-line").count(refusal) == len(outputs), "not all said so"
    )
    desk.screenshot("frames-unfit")
    left = "return [document.querySelectorAll('.gk-page').length, window.attacked ?? null]"
    assert desk.driver.execute_script(left) == [0, None]
