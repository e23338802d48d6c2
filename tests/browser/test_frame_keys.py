"""Keys go where the person types: a page gets them once the person has entered it, not before."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from .framing import Shown, host, shown

__all__ = ["host", "shown"]

pytestmark = pytest.mark.browser

THIEVES = """<!doctype html><input id="i" value="abc"><textarea id="t">abc</textarea>
<label id="l" for="i">label</label><form id="f">
<input id="r" required><button id="s"></button></form>
<dialog id="d"><input autofocus></dialog><dialog id="n"><input></dialog>
<div id="p" popover><input autofocus></div><button id="b" popovertarget="p"></button>
<button id="c" commandfor="d" command="show-modal"></button>
<div id="e" contenteditable>abc</div><details><summary id="u">x</summary>y</details>
<svg id="v" tabindex="0"></svg><div id="shadows"></div>
<script>
const $ = id => document.getElementById(id);
const say = (name, what) => top.postMessage([name, `${what}`], '*');
const shadow = html => {
  const holder = document.createElement('div');
  document.body.append(holder);
  const root = holder.attachShadow({ mode: 'closed', delegatesFocus: true });
  root.innerHTML = html;
  return [holder, root];
};
const flat = () => new MouseEvent('click', { composed: false });
class Field extends HTMLElement {
  static formAssociated = true;
  constructor() {
    super();
    this.internals = this.attachInternals();
    this.tabIndex = 0;
    this.internals.setValidity({ customError: true }, 'x', this);
  }
}
customElements.define('x-field', Field);
const ways = {
  focus: () => $('i').focus(),
  svg: () => SVGElement.prototype.focus.call($('v')),
  window: () => window.focus(),
  select: () => $('i').select(),
  selectText: () => HTMLTextAreaElement.prototype.select.call($('t')),
  range: () => $('i').setSelectionRange(0, 1, 'forward'),
  text: () => $('i').setRangeText('x', 0, 1, 'select'),
  label: () => $('l').click(),
  labelEvent: () => $('l').dispatchEvent(new MouseEvent('click', { bubbles: true })),
  labelFlat: () => $('l').dispatchEvent(flat()),
  labelInShadow: () => shadow('<label>x<input></label>')[1].firstChild.dispatchEvent(flat()),
  buttonInShadow: () => shadow('<form><input required><button></form>')[1]
    .querySelector('button').dispatchEvent(flat()),
  show: () => $('n').show(),
  showModal: () => $('d').showModal(),
  openAttribute: () => { $('d').open = true; },
  showPopover: () => $('p').showPopover(),
  togglePopover: () => $('p').togglePopover(true),
  popoverButton: () => $('b').click(),
  command: () => $('c').click(),
  validity: () => $('r').reportValidity(),
  validityOfAll: () => $('f').reportValidity(),
  validityOfOwn: () => {
    const field = new Field();
    document.body.append(field);
    field.internals.reportValidity();
  },
  request: () => $('f').requestSubmit(),
  submit: () => $('s').click(),
  selection: () => getSelection().selectAllChildren($('e')),
  collapse: () => getSelection().collapse($('e').firstChild, 1),
  base: () => getSelection().setBaseAndExtent($('e').firstChild, 0, $('e').firstChild, 2),
  all: () => document.execCommand('selectAll'),
  insert: () => document.execCommand('insertText', false, 'x'),
  summary: () => $('u').click(),
  design: () => { document.designMode = 'on'; document.designMode = 'off'; },
  autofocus: () => document.body.append(
    Object.assign(document.createElement('input'), { autofocus: true })),
  delegates: () => shadow('<input>')[0].focus(),
  edit: () => {
    const made = document.createElement('div');
    made.editContext = new EditContext();
    document.body.append(made);
    made.focus();
  },
  pressed: () => {
    for (const kind of ['pointerdown', 'mousedown', 'mouseup', 'click']) {
      $('i').dispatchEvent(new MouseEvent(kind, { bubbles: true }));
    }
  },
  tab: () => $('i').dispatchEvent(new KeyboardEvent('keydown', { key: 'Tab', bubbles: true })),
  otherRealm: () => {
    const frame = document.createElement('iframe');
    document.body.append(frame);
    frame.contentWindow.HTMLElement.prototype.focus.call($('i'));
  },
  otherDocument: () =>
    document.implementation.createHTMLDocument('').createElement('input').focus.call($('i')),
  pointer: () => document.body.requestPointerLock(),
  screen: () => document.body.requestFullscreen().catch(() => {}),
  ask: () => [alert('x'), confirm('x'), prompt('x')],
  print: () => print(),
};
addEventListener('keydown', event => event.isTrusted && say('keys', event.key));
addEventListener('focus', event => say(`focus ${now}`, event.target === window), true);
let now = '';
(async () => {
  for (const [name, way] of Object.entries(ways)) {
    now = name;
    try {
      await way();
    } catch (error) {
      say(name, error);
    }
    await new Promise(resolve => setTimeout(resolve, 20));
  }
  say('done', document.hasFocus());
})();
</script>"""

HOST_NOTES = """
window.lost = 0;
addEventListener('blur', () => lost++);
document.getElementById('cell').focus();
"""


def test_a_page_that_nobody_has_entered_gets_no_key(shown: Shown) -> None:
    driver = shown.driver
    driver.execute_script(HOST_NOTES)
    shown.show(THIEVES)
    shown.wait(lambda: "done" in shown.heard())
    ActionChains(driver).send_keys("secret").perform()
    heard = shown.heard()
    assert [name for name in heard if name.startswith(("focus", "keys"))] == [], heard
    assert driver.execute_script("return document.getElementById('cell').value") == "secret"
    assert [name for name in heard if name.startswith(("focus", "keys"))] == [], heard
    assert heard["done"] == "false"
    assert driver.execute_script("return [lost, document.activeElement.id]") == [0, "cell"]


WORKS = """<!doctype html><input id="i"><label id="l" for="i">label</label><script>
const say = (name, what) => top.postMessage([name, `${what}`], '*');
addEventListener('blur', () => document.getElementById('i').focus()); // as a dialog keeps the focus
addEventListener('keydown', event => say('key', event.key));
setInterval(() => document.hasFocus() || document.getElementById('i').focus(), 20);
document.getElementById('i').oninput = event => say('typed', event.target.value);
document.getElementById('l').onclick = () => say('clicked', 1);
</script>"""


def test_a_page_has_the_keyboard_until_escape(shown: Shown) -> None:
    driver = shown.driver
    shown.show(WORKS)
    shown.wait(lambda: shown.messages("shown"))
    driver.execute_script(HOST_NOTES)
    shown.enter()
    for what in ("down", "up", "click"):
        driver.execute_script("tell({kind: 'point', what: arguments[0], x: 30, y: 15})", what)
    shown.wait(lambda: driver.execute_script("return document.activeElement.id") == "frame")

    def typed() -> bool:
        ActionChains(driver).send_keys("x").perform()
        return "x" in shown.heard().get("typed", "")

    shown.wait(typed)
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()
    shown.wait(lambda: shown.messages("leave"))
    driver.execute_script(HOST_NOTES + "tell({kind: 'use', allowed: false})")
    ActionChains(driver).send_keys("secret").perform()
    assert driver.execute_script("return document.getElementById('cell').value") == "secret"
    assert shown.heard()["key"] == "Escape"


COPIES = """<!doctype html><h1>Seen</h1>
<p id="hidden" style="position: absolute; left: -999px">unseen</p><script>
const say = (name, what) => top.postMessage([name, `${what}`], '*');
addEventListener('copy', event => say('copy', event.clipboardData));
addEventListener('paste', event => say('paste', event.clipboardData.getData('text/plain')));
addEventListener('keydown', event => {
  if (event.ctrlKey) getSelection().selectAllChildren(document.getElementById('hidden'));
  say('key', event.key);
});
</script>"""


def test_what_a_page_has_selected_is_copied(shown: Shown) -> None:
    """docs/artifacts.md says so; here that it is still true."""
    driver = shown.driver

    def press(letter: str) -> None:
        ActionChains(driver).key_down(Keys.CONTROL).send_keys(letter).key_up(Keys.CONTROL).perform()

    shown.show(COPIES)
    shown.wait(lambda: shown.messages("shown"))
    shown.enter()
    shown.wait(lambda: press("c") or "copy" in shown.heard())
    shown.wait(lambda: press("v") or "paste" in shown.heard())
    heard = shown.heard()
    assert (heard["copy"], heard["paste"]) == ("null", "unseen")
