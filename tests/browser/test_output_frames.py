"""Outputs of cells in their frames: messages and heights, what is drawn, and what it reaches."""

from __future__ import annotations

from typing import Any

import pytest

from .test_frame import Host, Shown, driver, host

pytestmark = pytest.mark.browser
__all__ = ["driver", "host"]

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
document.getElementById('frame').contentWindow.postMessage(null, '*', [channel.port2]);
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
    draw(frame, f"{code} setTimeout(() => tools.send('after'), 1100);")
    (message,) = frame.wait(lambda: frame.messages("message"))
    assert message["text"] == '"after"'


def test_height_follows_the_content(frame: Shown) -> None:
    grow = "onclick = null; tools.onMessage(() => { box.style.height = '70px' });"
    code = f"""document.body.style.margin = 0; const box = document.createElement('div');
        box.style.height = '250px'; tools.root.append(box); {grow}"""
    draw(frame, code, sized=True)
    frame.wait(lambda: frame.messages("size")[-1:] == [{"kind": "size", "height": 70}])


def test_heights_that_change_for_ever_are_told_seldom(frame: Shown) -> None:
    code = """document.body.style.margin = 0; const box = document.createElement('div');
        tools.root.append(box); let high = 0;
        const grow = () => { high += 100; box.style.height = `${high}px`;
            if (high < 40000) requestAnimationFrame(grow); else tools.send('end') };
        grow();"""
    draw(frame, code, sized=True)
    frame.wait(lambda: frame.messages("message"))
    frame.wait(lambda: frame.messages("size")[-1]["height"] == 20000)
    assert len(frame.messages("size")) < 40  # of 400
