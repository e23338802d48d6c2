"""Pages in their frame: what they show, and that they reach nothing. See docs/artifacts.md."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.mouse_button import MouseButton
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from .framing import Host, Shown, embed, host, shown
from .lab import WAIT_SECONDS, browser

__all__ = ["host", "shown"]

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]


def test_a_page_reaches_nothing(host: Host, programs: tuple[str, str], tmp_path: Path) -> None:
    attacks = Path(__file__).with_name("frame_attacks.html").read_text()
    udp = host.udp.getsockname()[1]
    net_log = f"--log-net-log={tmp_path / 'net.json'}"
    with browser(*programs, tmp_path / "profile", net_log) as driver:
        shown = embed(host, driver)
        shown.show(attacks.replace("PORT", str(host.port)).replace("UDP", str(udp)))
        shown.wait(lambda: shown.messages("left"))
        heard = shown.heard()
        assert "done" in heard
        assert "RAN" not in heard, heard
        # Each attack has said what became of it: those of a line, and 16 of the loops.
        assert len(heard) == attacks.count("attack('") + attacks.count("attack(`") + 16
        assert set(host.paths) <= {"/", "/frame", "/favicon.ico"}
        assert driver.title == "host"
        assert len(driver.window_handles) == 1
        host.udp.setblocking(False)
        with pytest.raises(BlockingIOError):
            host.udp.recv(100)
        driver.quit()  # which writes the log
    log = (tmp_path / "net.json").read_text()
    assert "127.0.0.1" in log
    assert set(re.findall(r"[a-z0-9-]+\.leak\.test", log)) == set()


def test_a_page_works(shown: Shown, host: Host) -> None:
    page = """<!doctype html>
<html><head><title>Sales</title><style>h1 { color: rgb(1, 2, 3) }</style></head>
<body class="wide"><h1 onclick="document.title = 'clicked'">Hello</h1><img src="plot.png">
<script>var first = 1;</script>
<script>
addEventListener('load', async () => {
  const answer = {
    first, module: window.second, ready: document.readyState, body: document.body.className,
    colour: getComputedStyle(document.querySelector('h1')).color,
    file: await (await fetch('data/table.csv')).text(),
    data: await (await fetch('data:text/plain;base64,aGk=')).text(),
  };
  await storage.set('k', { a: [1] }, true);
  answer.stored = await storage.get('k');
  const stream = await fetch('https://api.example.com/v1', { method: 'POST', body: 'x' });
  answer.status = stream.status;
  answer.type = stream.headers.get('content-type');
  answer.text = await stream.text();
  document.querySelector('h1').click();
  answer.title = document.title;
  const image = document.querySelector('img');
  await image.decode();
  answer.width = image.naturalWidth;
  document.body.append(Object.assign(document.createElement('a'), { href: 'https://x.example/' }));
  document.querySelector('a').click();
  top.postMessage(['answer', JSON.stringify(answer)], '*');
  notDefined();
});
</script>
<script type="module">window.second = await 2;</script>
<script src="https://cdn.example.com/library.js"></script>
</body></html>"""
    shown.driver.execute_script(
        """
        const canvas = document.createElement('canvas');
        canvas.width = 7;
        const png = Uint8Array.from(atob(canvas.toDataURL().split(',')[1]), c => c.charCodeAt(0));
        const text = new TextEncoder();
        const bytes = text.encode('a,b').buffer;
        const file = { bytes: png.buffer, type: 'image/png' };
        show('html', arguments[0], {
          file: [{ value: file }],
          'storage.set': [{ value: true }],
          'storage.get': [{ value: text.encode('{"key":"k","value":{"a":[1]}}').buffer }],
          library: [{ error: 'no such library' }],
          fetch: [
            { more: true, value: { status: 201, headers: [['content-type', 'text/x']] } },
            { more: true, value: { chunk: text.encode('two ').buffer } },
            { more: true, value: { chunk: text.encode('parts').buffer } },
            { value: null },
          ],
        });
        """,
        page,
    )
    heard = shown.wait(lambda: shown.heard().get("answer"))
    answer = json.loads(heard)
    assert answer.pop("file").startswith("\ufffdPNG")
    assert answer == {
        "first": 1,
        "module": 2,
        "ready": "complete",
        "body": "wide",
        "colour": "rgb(1, 2, 3)",
        "data": "hi",
        "stored": {"key": "k", "value": {"a": [1]}},
        "status": 201,
        "type": "text/x",
        "text": "two parts",
        "title": "clicked",
        "width": 7,
    }
    calls = {call["method"]: call["args"] for call in shown.messages("call")}
    assert calls["storage.set"] == {"key": "k", "json": '{"a":[1]}', "shared": True}
    assert calls["fetch"]["url"] == "https://api.example.com/v1"
    assert calls["fetch"]["method"] == "POST"
    # It comes by another way than the answer, and may be later.
    assert shown.wait(lambda: shown.messages("link"))[0]["url"] == "https://x.example/"
    errors = shown.wait(lambda: len(shown.messages("error")) >= 2 and shown.messages("error"))
    assert errors[0]["message"] == "https://cdn.example.com/library.js: no such library"
    assert errors[1]["message"] == "notDefined is not defined"
    assert set(host.paths) <= {"/", "/frame", "/favicon.ico"}


def test_an_error_names_its_line(shown: Shown) -> None:
    shown.show("<p>one</p>\n<script>\nlet a = 1;\n  nope();\n</script>")
    (error,) = shown.wait(lambda: shown.messages("error"))
    assert (error["file"], error["line"]) == ("page.html", 4)
    assert error["message"] == "nope is not defined"


@pytest.mark.parametrize("button", [MouseButton.LEFT, MouseButton.MIDDLE])
def test_a_link_opens_nothing_by_itself(shown: Shown, host: Host, button: int) -> None:
    url = f"http://127.0.0.1:{host.port}/opened"
    shown.show(f'<a id="a" href="{url}" style="display: block; font-size: 80px">Link</a>')
    shown.wait(lambda: shown.messages("shown"))
    driver = shown.driver
    shown.go_inside()
    action = ActionBuilder(driver)
    action.pointer_action.move_to(driver.find_element(By.ID, "a"))
    action.pointer_action.pointer_down(button=button)
    action.pointer_action.pointer_up(button=button)
    action.perform()
    driver.switch_to.default_content()
    assert shown.wait(lambda: shown.messages("link"))[0]["url"] == url
    assert len(driver.window_handles) == 1
    assert "/opened" not in host.paths


FLOOD = """<script>
const seen = new Set();
const note = error => {
  seen.add(error.message);
  top.postMessage(['errors', [...seen].sort().join(' ')], '*');
};
for (let round = 0; round < 2000; round++) storage.get('k' + round).catch(note);
fetch('https://x.example/', {method: 'POST', body: 'x'.repeat(40e6)}).catch(note);
const loop = [];
loop.push(loop);
storage.set('l', loop).catch(note);
</script>"""


def test_a_flood_ends_in_the_outer_frame(shown: Shown) -> None:
    shown.show(FLOOD)
    shown.wait(lambda: "asks too much" in shown.heard().get("errors", ""))
    shown.wait(lambda: "circular" in shown.heard().get("errors", ""))
    shown.wait(lambda: shown.messages("flood"))
    assert len(shown.messages("call")) <= 500


SHOW_TABLE = """
const [bytes, renderer, name] = arguments;
const source = Uint8Array.from(atob(bytes), c => c.charCodeAt(0)).buffer;
show('table', source, {}, name, [renderer]);
"""


def show_table(shown: Shown, name: str, table: bytes) -> list[list[str]]:
    """Show a table; return the texts of its cells, with the page's frame chosen."""
    renderer = (ROOT / "labextension" / "dist" / "static" / "frame" / "table.js").read_text()
    driver = shown.driver
    driver.execute_script(SHOW_TABLE, base64.b64encode(table).decode(), renderer, name)
    shown.wait(lambda: shown.messages("shown"))
    assert shown.messages("error") == []
    shown.go_inside()
    lines: list[list[str]] = driver.execute_script(
        "const texts = row => [...row.cells].map(cell => cell.innerText);"
        "return [...document.querySelectorAll('tr')].map(texts)"
    )
    return lines


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_a_csv_is_shown_in_the_encodings_of_spreadsheets(shown: Shown, encoding: str) -> None:
    table = ("city;price €\n" + "Köln;1,5\n" * 1001).encode(encoding)
    lines = show_table(shown, "a.csv", table)
    assert lines[:2] == [["city", "price €"], ["Köln", "1,5"]]
    assert len(lines) == 1001
    assert "The first 1000 rows" in shown.driver.find_element(By.TAG_NAME, "body").text


def test_a_parquet_file_is_shown(shown: Shown) -> None:
    # 1200 rows that pyarrow 26 has written, by a codec of its own for nearly each column.
    table = (ROOT / "tests" / "data" / "table.parquet").read_bytes()
    lines = show_table(shown, "a.parquet", table)
    assert "1000 of 1200 rows" in shown.driver.find_element(By.TAG_NAME, "body").text
    assert len(lines) == 1001
    head, row = lines[:2]
    assert dict(zip(head, row, strict=True)) == {
        "name": "<b>ann</b>",
        "count": "1152921504606846977",
        "share": "0.5",
        "day": "2026-05-02",
        "moment": "2026-05-02T12:30:00Z",
        "price": "12.5",
        "parts": "[1,2]",
        "place": '{"city":"Ulm"}',
        "yes": "true",
    }
    assert [line[0] for line in lines[2:4]] == ["bob", ""]


HEARS = """<script>
const heard = [];
addEventListener('message', event => {
  heard.push(event.data);
  top.postMessage(['heard', JSON.stringify(heard)], '*');
});
setInterval(() => postMessage('own', '*'), 20);
</script>"""


def test_a_page_hears_no_other_window(shown: Shown) -> None:
    shown.show(HEARS)
    shown.wait(lambda: shown.heard().get("heard"))
    send = "frames[0][0].postMessage('other', '*'); return heard.length"
    count = shown.driver.execute_script(send)
    # Its own messages come after that one.
    shown.wait(lambda: shown.driver.execute_script("return heard.length") > count + 5)
    assert set(json.loads(shown.heard()["heard"])) == {"own"}


POWERS = """<div style="height: 3000px"></div><p id="low">low</p><button id="b">Press</button>
<script>
const say = (name, what) => top.postMessage([name, `${what}`], '*');
const attempt = async (name, action) => {
  try {
    say(name, await action());
  } catch (error) {
    say(name, error.name);
  }
};
const before = history.length;
for (const state of [1, 2]) history.pushState(state, '');
say('places in the history', `${history.length - before}, ${history.state}`);
const low = document.getElementById('low');
let rounds = 0;
setInterval(() => {
  low.scrollIntoView();
  low.scrollIntoViewIfNeeded();
  say('rounds', ++rounds);
}, 20);
addEventListener('copy', event => say('copy event', event.clipboardData));
document.getElementById('b').onclick = async () => {
  const canvas = document.createElement('canvas');
  canvas.getContext('2d').fillRect(0, 0, 9, 9);
  const video = document.createElement('video');
  Object.assign(video, { muted: true, srcObject: canvas.captureStream() });
  await video.play();
  await attempt('window above all', () => video.requestPictureInPicture());
  await attempt('gamepads', () => navigator.getGamepads());
  await attempt('clipboard', () => navigator.clipboard.writeText('x'));
  getSelection().selectAllChildren(low);
  await attempt('copy', () => ['copy', 'CUT'].map(name => document.execCommand(name)));
  const names = ['speechSynthesis', 'SpeechSynthesis', 'EyeDropper', 'MediaMetadata', 'find'];
  await attempt('left', () => names.filter(name => name in window));
  await attempt('media session', () => navigator.mediaSession);
  await attempt('kept', () => typeof AbortController);
  await attempt('features', () => document.featurePolicy.allowedFeatures());
  say('done', '');
};
</script>"""


def test_a_page_has_no_powers_beyond_its_frame(shown: Shown) -> None:
    driver = shown.driver
    driver.execute_script("document.body.style.padding = '2000px 0'")
    shown.show(POWERS)
    shown.wait(lambda: int(shown.heard().get("rounds", 0)) > 5)
    assert driver.execute_script("return scrollY") == 0
    shown.go_inside()
    driver.find_element(By.ID, "b").click()
    # The person copies.
    ActionChains(driver).key_down(Keys.CONTROL).send_keys("c").key_up(Keys.CONTROL).perform()
    driver.switch_to.default_content()
    shown.wait(lambda: {"done", "copy event"} <= set(shown.heard()))
    heard = shown.heard()
    del heard["rounds"], heard["done"]
    assert heard == {
        "places in the history": "0, 2",
        "window above all": "SecurityError",
        "gamepads": "SecurityError",
        "clipboard": "NotAllowedError",
        "copy": "false,false",
        "copy event": "null",
        "left": "",
        "media session": "undefined",
        "kept": "function",
        "features": "",
    }


SCRIPTED_PDF = b"""%PDF-1.7
1 0 obj << /Type /Catalog /Pages 2 0 R /OpenAction 5 0 R
 /Names << /JavaScript << /Names [(a) 5 0 R] >> >> /AA << /WC 5 0 R >> >> endobj
2 0 obj << /Type /Pages /Kids [3 0 R] /Count 1 >> endobj
3 0 obj << /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /AA << /O 5 0 R >>
 /Annots [4 0 R 6 0 R] /Resources << >> >> endobj
4 0 obj << /Type /Annot /Subtype /Link /Rect [0 0 200 200]
 /A << /S /URI /URI (https://links.example/) >> >> endobj
5 0 obj << /S /JavaScript
 /JS (app.alert\\('attacked'\\); top.postMessage\\('attacked', '*'\\)) >> endobj
6 0 obj << /Type /Annot /Subtype /Widget /FT /Tx /T (box) /Rect [0 0 50 50] /AA << /K 5 0 R >> >>
endobj
trailer << /Root 1 0 R >>
"""


def test_scripts_of_a_pdf_do_not_run(shown: Shown) -> None:
    """Its page is drawn; neither its scripts nor its links nor its forms are there."""
    renderer = (ROOT / "labextension" / "dist" / "static" / "frame" / "pdf.js").read_text()
    show = SHOW_TABLE.replace("'table'", "'pdf'")
    shown.driver.execute_script(show, base64.b64encode(SCRIPTED_PDF).decode(), renderer, "a.pdf")
    shown.wait(lambda: shown.messages("shown"))
    driver = shown.driver
    shown.go_inside()
    drawn = (By.CSS_SELECTOR, "canvas[data-drawn]")
    WebDriverWait(driver, WAIT_SECONDS, 0.05).until(lambda _: driver.find_elements(*drawn))
    assert driver.find_elements(By.CSS_SELECTOR, "a, input, textarea, script") == []
    driver.switch_to.default_content()
    assert "attacked" not in str(shown.driver.execute_script("return [messages, heard]"))
    assert shown.messages("error") == []


HEAVY = """<script>
// What its functions would not send, a page sends by replacing what they use.
const holes = Array(4294967295);
const note = (name, made) => made.then(() => 'kept', error => error.message)
  .then(what => top.postMessage([name, what], '*'));
note('holes', storage.set('k', Array(2e7)));
note('key', storage.get('k'.repeat(1e6)));
note('method', fetch('https://x.example/', { method: 'A'.repeat(1e5) }));
note('headers', fetch('https://x.example/', {
  headers: Array.from({ length: 1000 }, (_, place) => [`h${place}`, 'x'])
}));
Headers.prototype[Symbol.iterator] = function* () {
  for (let place = 0; place < 1000; place++) yield ['a', 'b'];
};
note('many', fetch('https://x.example/'));
Headers.prototype[Symbol.iterator] = function* () { yield holes; };
note('pair', fetch('https://x.example/'));
Headers.prototype[Symbol.iterator] = function* () { yield ['a'.repeat(1e6), 'b']; };
note('long', fetch('https://x.example/'));
</script>"""


def test_what_a_call_carries_is_counted_before_it_is_walked(shown: Shown) -> None:
    shown.show(HEAVY, {"storage.set": [{"value": None}]})
    names = {"key", "method", "headers", "many", "pair", "long"}
    shown.wait(lambda: names | {"holes"} <= set(shown.heard()))
    heard = shown.heard()
    for name in names:
        assert heard[name].startswith("The page cannot ask for this"), (name, heard[name])
    assert heard["holes"] == "A value is below 5 MiB."
    assert shown.messages("call") == []
