"""A page replaces every function of its realm: the guards hold, and hand nothing of theirs out."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.by import By

from .framing import Shown, host, shown

__all__ = ["host", "shown"]

pytestmark = pytest.mark.browser

REPLACED = """<!doctype html><body><a id="link" href="https://first.example/">first</a>
<input id="box"><div id="out"></div><script>
const { apply, ownKeys } = Reflect;
const { getOwnPropertyDescriptor: describe, defineProperty: define, getPrototypeOf } = Object;
const { postMessage } = window;
const send = top.postMessage.bind(top);
const secrets = [];
const policyType = TrustedTypePolicy;
const portType = MessagePort;
const names = Function.prototype.call.bind(Array.prototype.push);
const isA = Function.prototype.call.bind(Object.prototype.isPrototypeOf);
const policyProto = policyType.prototype;
const portProto = portType.prototype;
const documentProto = Document.prototype;
const page = document;
const frameElements = [HTMLIFrameElement, HTMLLinkElement, HTMLMetaElement, HTMLObjectElement];
// What nobody but the guards has: a policy, the port, and the document in which texts are parsed.
let own = false;
function look(value, where) {
  if (value === null || (typeof value !== 'object' && typeof value !== 'function')) return;
  if (isA(policyProto, value)) names(secrets, `policy in ${where}`);
  else if (isA(portProto, value)) names(secrets, `port in ${where}`);
  else if (isA(documentProto, value) && value !== page && !own) {
    names(secrets, `document in ${where}`);
  }
}
let count = 0;
function replace(owner, label) {
  for (const key of ownKeys(owner)) {
    if (key === 'constructor') continue;
    const found = describe(owner, key);
    if (found === undefined || !found.configurable) continue;
    const where = `${label}.${String(key)}`;
    const wrap = original => function (...args) {
      look(this, where);
      for (let place = 0; place < args.length; place++) look(args[place], where);
      return apply(original, this, args);
    };
    if (typeof key === 'string' && !/^[a-z]/.test(key)) continue; // a constant, or a type
    const next = { ...found };
    if (typeof found.value === 'function') next.value = wrap(found.value);
    if (found.get) next.get = wrap(found.get);
    if (found.set) next.set = wrap(found.set);
    define(owner, key, next);
    count += 1;
  }
}
const owners = [];
for (const name of ownKeys(window)) {
  if (typeof name !== 'string' || name === 'Function') continue;
  const found = describe(window, name)?.value;
  if (typeof found === 'function' && found.prototype) owners.push([found.prototype, name]);
  const spaces = ['Reflect', 'JSON', 'Math', 'URL', 'Promise'];
  if (spaces.includes(name)) owners.push([found, `static ${name}`]);
}
owners.push([getPrototypeOf([][Symbol.iterator]()), 'iterator'], [Object, 'static Object']);
for (const [owner, label] of owners) if (owner) replace(owner, label);
for (const key of ['call', 'apply', 'bind']) {
  const original = Function.prototype[key];
  Function.prototype[key] = function (...args) {
    return Reflect.apply(original, this, args);
  };
}
const attempt = (name, action) => {
  try {
    send([name, `${action()}`], '*');
  } catch (error) {
    send([name, `refused: ${error.message}`], '*');
  }
};
const box = document.getElementById('box');
const out = document.getElementById('out');
const kept = holder => holder.querySelectorAll('iframe, link, meta, object, embed').length;
attempt('count', () => count);
attempt('create', () => {
  const made = document.createElement('iframe');
  return frameElements.some(Type => made instanceof Type);
});
const XHTML = 'http://www.w3.org/1999/xhtml';
attempt('createNS', () => document.createElementNS(XHTML, 'x:link').localName);
attempt('inner', () => {
  out.innerHTML = '<iframe></iframe><template><link></template><b>kept</b>';
  const { content } = out.querySelector('template');
  return kept(out) + kept(content) + out.querySelector('b').textContent;
});
attempt('adjacent', () => (out.insertAdjacentHTML('beforeend', '<iframe>'), kept(out)));
attempt('write', () => (document.write('<iframe></iframe>'), kept(document.body)));
attempt('parse', () => {
  own = true;
  return kept(new DOMParser().parseFromString('<iframe></iframe>', 'text/html'));
});
own = false;
attempt('fragment', () =>
  kept(document.createRange().createContextualFragment('<iframe></iframe>')));
attempt('shadow', () => {
  const root = document.createElement('div').attachShadow({ mode: 'closed' });
  root.innerHTML = '<iframe></iframe>';
  return kept(root);
});
attempt('focus', () => (box.focus(), box.select(), document.hasFocus()));
const made = document.createElement('a');
made.id = 'made';
made.href = 'https://second.example/';
made.textContent = 'second';
made.style = 'display: block; font-size: 60px';
document.body.append(made);
storage.set('k', { a: [1] }).catch(() => {});
storage.get('k').catch(() => {});
fetch('beside.txt').then(answer => answer.text(), () => {});
fetch('https://api.example/').catch(() => {});
setTimeout(() => {
  attempt('link', () => made.getAttribute('href'));
  send(['secrets', secrets.join('; ')], '*');
}, 300);
addEventListener('click', () => setTimeout(() => send(['secrets', secrets.join('; ')], '*'), 50));
</script>"""


def test_guards_hold_when_every_function_is_replaced(shown: Shown) -> None:
    driver = shown.driver
    shown.show(REPLACED, {"storage.set": [{"value": None}], "file": [{"error": "none"}]})
    shown.wait(lambda: "secrets" in shown.heard())
    heard = shown.heard()
    assert heard["secrets"] == ""
    assert int(heard.pop("count")) > 3000
    assert {name: what for name, what in heard.items() if name != "secrets"} == {
        "create": "false",
        "createNS": "gvisor-removed",
        "inner": "0kept",
        "adjacent": "0",
        "write": "0",
        "parse": "0",
        "fragment": "0",
        "shadow": "0",
        "focus": "false",
        "link": "null",
    }
    shown.enter()
    shown.go_inside()
    driver.find_element(By.ID, "made").click()
    driver.switch_to.default_content()
    assert shown.wait(lambda: shown.messages("link"))[0]["url"] == "https://second.example/"
    assert shown.heard()["secrets"] == ""
    assert [call["method"] for call in shown.messages("call")] == [
        "storage.set",
        "storage.get",
        "file",
        "fetch",
    ]
