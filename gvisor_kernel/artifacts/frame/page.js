// Shows a page: its elements, then its scripts in their order, then its events.
//
// The headers let no script element and no `onclick="…"` run, since each realm that a page could
// make would run them, too. So this script evaluates their texts, which is allowed here alone.
const SCRIPT_TYPES = /^(|text\/javascript|application\/javascript|application\/ecmascript|module)$/i;
const MAX_TEXT = 2000;

const cut = text => natives.slice(`${text}`, 0, MAX_TEXT);

function reportError(message, file, line, column) {
  tell({ kind: 'error', message: cut(message), file: cut(file ?? ''), line: line || 0, column: column || 0 });
}

addEventListener('error', event => {
  if (event instanceof ErrorEvent) {
    reportError(event.message, event.filename, event.lineno, event.colno);
  }
});
addEventListener('unhandledrejection', event => {
  reportError(event.reason?.message ?? event.reason, '', 0, 0);
});
const here = new URL('.', document.baseURI).href;
document.addEventListener('securitypolicyviolation', event => {
  const wanted = event.blockedURI;
  if (natives.startsWith(wanted, here)) return; // see loadFiles
  if (!test(/^(inline|eval|trusted-types-)/, wanted)) tell({ kind: 'blocked', url: cut(wanted) });
});

// A frame that is led elsewhere shows nothing any more, and a link that is clicked with another
// button, or with a key held, opens a window. So no link has an address by the time that the browser
// looks for one: an observer is called before that. The person decides whether one opens.
const targets = new WeakMap();

function isLink(node) {
  if (!isElement(node)) return false;
  const name = natives.localName(node);
  if (name === 'a' || name === 'area') return true;
  return natives.namespace(node) === MATHML && natives.hasAttribute(node, 'href');
}

function takeAddress(link) {
  // Whatever the prefix is called.
  const target = natives.getAttribute(link, 'href') ?? natives.getAttributeNS(link, XLINK, 'href');
  if (target === null || natives.startsWith(target, '#')) return;
  natives.set(targets, link, target);
  natives.removeAttribute(link, 'href');
  natives.removeAttributeNS(link, XLINK, 'href');
  natives.setAttribute(link, 'role', 'link');
  natives.setAttribute(link, 'tabindex', '0');
  const style = natives.getAttribute(link, 'style') ?? '';
  natives.setAttribute(link, 'style', `${style}; cursor: pointer; text-decoration: underline`);
}

// An animation could give an address back.
function stopAnimation(node) {
  const name = natives.getAttribute(node, 'attributeName');
  if (name !== null && test(/href\s*$/i, name)) natives.removeAttribute(node, 'attributeName');
}

function linkOf(event) {
  const path = natives.path(event);
  for (let place = 0; place < path.length; place++) if (isLink(path[place])) return path[place];
  return null;
}

function follow(event) {
  const link = linkOf(event);
  if (link === null) return;
  takeAddress(link);
  natives.prevent(event);
  const target = natives.get(targets, link);
  if (target !== undefined) tell({ kind: 'link', url: cut(target) });
  // A fragment would be one of the address of the outer frame.
  else scrollTo(natives.slice(natives.getAttribute(link, 'href') ?? '#', 1));
}

// What a click of the page's own does beside its handlers may take the focus.
function holdClick(event) {
  if (event.isTrusted || mayFocus()) return;
  const path = natives.path(event);
  for (let place = 0; place < path.length; place++) {
    if (!isElement(path[place])) continue;
    const name = natives.localName(path[place]);
    const type = name === 'input' ? natives.getAttribute(path[place], 'type') ?? '' : '';
    if (name === 'label' || name === 'button' || test(/^(submit|image)$/i, type)) natives.prevent(event);
  }
}

const GUARDS = [
  ['click', follow],
  ['click', holdClick],
  ['auxclick', follow],
  [
    'keydown',
    event => {
      const key = natives.key(event);
      if (key === 'Escape' && event.isTrusted) {
        isEntered = false;
        tell({ kind: 'leave' });
      } else if (key === 'Enter' && isLink(natives.target(event))) follow(event);
    }
  ],
  ['dragstart', event => linkOf(event) !== null && natives.prevent(event)],
  ['submit', natives.prevent],
  // Markup that is pasted or dropped would bring elements that a page cannot make.
  ['paste', event => holdMarkup(event, natives.pasted(event))],
  ['drop', event => holdMarkup(event, natives.dropped(event))]
];

function holdMarkup(event, from) {
  const types = from === null ? [] : natives.typesOf(from);
  for (let place = 0; place < types.length; place++) if (types[place] === 'text/html') natives.prevent(event);
}

const observer = new MutationObserver(records => {
  for (let place = 0; place < records.length; place++) noteChange(records[place]);
});
const WATCHED = freeze({ __proto__: null, subtree: true, childList: true, attributes: true });

// Events and changes inside a shadow root are not seen outside, so each is looked at for itself; a
// closed one would hide its links.
function watch(root) {
  for (let place = 0; place < GUARDS.length; place++) {
    natives.listen(root, GUARDS[place][0], GUARDS[place][1], true);
  }
  natives.observe(observer, root === window ? document : root, WATCHED);
}
watch(window);
lock(Element.prototype, 'attachShadow', function (options) {
  // A clone of it would not come by here.
  const { delegatesFocus, slotAssignment, serializable, customElementRegistry } = options;
  const open = { __proto__: null, mode: 'open', delegatesFocus, slotAssignment, serializable };
  if (customElementRegistry !== undefined) open.customElementRegistry = customElementRegistry;
  const root = natives.attachShadow(this, open);
  watch(root);
  return root;
});

function noteChange(record) {
  const target = natives.recordTarget(record);
  if (natives.recordType(record) === 'attributes') {
    const name = natives.recordName(record);
    if (natives.startsWith(name, 'on')) bindHandlers(target);
    if (isLink(target)) takeAddress(target);
    if (name === 'attributeName') stopAnimation(target);
    return;
  }
  const added = natives.addedNodes(record);
  const count = natives.countNodes(added);
  for (let place = 0; place < count; place++) if (isElement(added[place])) adopt(added[place]);
}

function scrollTo(fragment) {
  let name = fragment;
  try {
    name = natives.decodeURIComponent(fragment);
  } catch {
    // as it is written
  }
  if (name === '') window.scrollTo(0, 0);
  else {
    const found = natives.getById(document, name) ?? natives.getByName(document, name)[0];
    if (found !== undefined) natives.scrollIntoView(found);
  }
}

// Handlers that are written as attributes.
function bindHandlers(element) {
  const attributes = natives.attributes(element);
  for (let place = natives.countAttributes(attributes) - 1; place >= 0; place--) {
    const name = natives.attributeName(attributes[place]);
    if (!natives.startsWith(name, 'on') || !(name in element)) continue;
    try {
      element[name] = new natives.Function('event', natives.attributeValue(attributes[place]));
    } catch (error) {
      reportError(`${name}: ${error.message}`);
    }
  }
}

function adopt(root) {
  adoptOne(root);
  const below = natives.querySelectorAll(root, '*');
  const count = natives.countNodes(below);
  for (let place = 0; place < count; place++) adoptOne(below[place]);
}

function adoptOne(element) {
  bindHandlers(element);
  if (isLink(element)) takeAddress(element);
  stopAnimation(element);
  loadFile(element);
}

// Pictures, sounds and films that lie beside the page.
const SOURCES = freeze({
  __proto__: null,
  img: natives.setImageSource,
  audio: natives.setSource,
  video: natives.setSource,
  source: natives.setSourceSource
});

function loadFile(element) {
  const setSource = SOURCES[natives.localName(element)];
  if (setSource === undefined || natives.namespace(element) !== HTML) return;
  const path = natives.getAttribute(element, 'src');
  if (path === null || path === '' || !isRelative(path) || natives.startsWith(path, '#')) return;
  natives.then(
    readFile(path),
    file => setSource(element, URL.createObjectURL(new Blob([file.bytes], { type: file.type }))),
    error => reportError(`${path}: ${error.message}`)
  );
}

const lineOf = (source, text, from) => {
  const place = source.indexOf(text, from);
  return place < 0 ? 0 : source.slice(0, place).split('\n').length - 1;
};

const decoder = new TextDecoder();
const decode = bytes => natives.decode(decoder, bytes);

// The text of a script or style of its own file: beside the page, or of a library that is bundled.
async function readText(url, kind) {
  if (isRelative(url)) return decode((await readFile(url)).bytes);
  return await call('library', { url, kind });
}

async function showHtml(source, name) {
  const parsed = apply(parseFromString, new DOMParser(), [apply(createHTML, policy, [source]), 'text/html']);
  const sheets = [...parsed.querySelectorAll('link[rel~="stylesheet"][href]')].map(link => link.getAttribute('href'));
  const scripts = [...parsed.querySelectorAll('script')].filter(script => SCRIPT_TYPES.test(script.type));
  clean(parsed);
  for (const { name: attribute, value } of parsed.documentElement.attributes) {
    document.documentElement.setAttribute(attribute, value);
  }
  document.title = parsed.title;
  for (const { name: attribute, value } of parsed.body.attributes) document.body.setAttribute(attribute, value);
  move(parsed.head, document.head);
  move(parsed.body, document.body);
  adoptOne(document.body);
  for (const url of sheets) {
    try {
      const style = document.createElement('style');
      style.textContent = await readText(url, 'style');
      document.head.append(style);
    } catch (error) {
      reportError(`${url}: ${error.message}`, name);
    }
  }
  const modules = scripts.filter(script => script.type === 'module');
  for (const script of [...scripts.filter(script => script.type !== 'module'), ...modules]) {
    await runScript(script, source, name);
  }
  document.dispatchEvent(new Event('DOMContentLoaded', { bubbles: true }));
  window.dispatchEvent(new Event('load'));
}

let running = null;
define(Document.prototype, 'currentScript', { get: () => running, configurable: true });

async function runScript(script, source, name) {
  const url = script.getAttribute('src');
  let text = script.textContent;
  let file = name;
  let line = 0;
  try {
    if (url === null) line = lineOf(source, text, 0);
    else {
      text = await readText(url, 'script');
      file = url;
    }
  } catch (error) {
    reportError(`${url}: ${error.message}`, name);
    return;
  }
  const isModule = script.type === 'module';
  if (isModule && test(/^\s*(import|export)\b/m, text)) {
    reportError('A module with import or export cannot run here.', file, line + 1);
    return;
  }
  // Empty lines before it, so that an error names the line in the file.
  const place = '\n'.repeat(line);
  const code = isModule ? `${place}(async () => {'use strict';${text}\n})()` : `${place}${text}`;
  running = script;
  try {
    const ended = natives.evaluate(`${code}\n//# sourceURL=${encodeURI(file)}`);
    running = null;
    if (isModule) await ended;
  } catch (error) {
    const found = /:(\d+):(\d+)\)?\s*$/m.exec(error?.stack ?? '');
    reportError(error?.message ?? error, file, Number(found?.[1] ?? 0), Number(found?.[2] ?? 0));
  } finally {
    running = null;
  }
}

// Messages between a bundle and the extension: JSON, and buffers beside it. The page itself can send
// such messages, too, once it has replaced what is used here: the extension trusts none.
const sendMessage = (data, buffers = []) => tell({ kind: 'message', text: natives.stringify(data), buffers });
const waiting = []; // messages that came before the bundle listened
let listener = null;

function receiveMessage({ data, buffers }) {
  if (listener === null) waiting.push({ data, buffers });
  else listener(data, buffers);
}

function listen(handler) {
  listener = handler;
  for (const message of waiting.splice(0)) receiveMessage(message);
}

let measured = null;
const tellHeight = () => tell({ kind: 'size', height: Math.ceil(measured.getBoundingClientRect().height) });

// Tells how high the content is, at most once for each time that it is drawn.
function watchHeight(element) {
  if (measured === element) {
    tellHeight();
    return;
  }
  let asked = false;
  measured = element;
  tellHeight(); // a frame that is not in view is not drawn, and observes nothing
  new ResizeObserver(() => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      tellHeight();
    });
  }).observe(element);
}

// A bundle of the extension defines `gvisorRender`, which shows a source of its type.
async function showBy(renderers, source, name, dark) {
  for (const text of renderers) natives.evaluate(text);
  const render = window.gvisorRender;
  delete window.gvisorRender;
  const tools = { name, dark, root: document.body, reportError, readFile, evaluate: natives.evaluate };
  await render(source, { ...tools, call, watchHeight, send: sendMessage, onMessage: listen });
}

async function show({ type, source, name, dark, renderers, sized }) {
  document.documentElement.style.colorScheme = dark ? 'dark' : 'light';
  if (sized) watchHeight(document.documentElement);
  try {
    if (type === 'html') await showHtml(source, name);
    else await showBy(renderers, source, name, dark);
  } catch (error) {
    reportError(error?.message ?? error, name, error?.line, error?.column);
  }
  if (measured !== null) tellHeight(); // a frame that is not in view is not drawn, and observes nothing
  tell({ kind: 'shown', title: cut(document.title) });
}

// What the person's pointer does on the layer above the page, before and as they enter it, as events
// that the page could make itself. At the click they have entered it: what lies there gets the focus.
let above = null;
let pressed = null;
let buttons = 0;
function point(what, x, y) {
  const under = what === 'leave' ? null : natives.elementFromPoint(document, x, y);
  if (what === 'down') pressed = under;
  if (what === 'click') {
    for (let node = under; node !== null && isElement(node); node = natives.parentNode(node)) {
      focusOn(node);
      if (natives.activeElement(document) === node) break;
    }
    if (under === pressed) pointAt(under, 'click', x, y);
    return;
  }
  buttons = what === 'down' || (what === 'move' && buttons === 1) ? 1 : 0;
  if (under !== above) {
    pointAt(above, 'out', x, y);
    pointAt(above, 'leave', x, y);
    pointAt(under, 'over', x, y);
    pointAt(under, 'enter', x, y);
    above = under;
  }
  // A drag goes on beside the frame.
  if (what !== 'leave') pointAt(under ?? (buttons === 1 ? pressed : null), what, x, y);
}

function pointAt(target, what, x, y) {
  if (target === null) return;
  const init = {
    __proto__: null,
    ...{ bubbles: what !== 'enter' && what !== 'leave', cancelable: true, composed: true, view: window },
    ...{ clientX: x, clientY: y, buttons, detail: 1, isPrimary: true, pointerId: 1, pointerType: 'mouse' }
  };
  if (what === 'click') natives.dispatch(target, new natives.PointerEvent('click', init));
  else {
    natives.dispatch(target, new natives.PointerEvent(`pointer${what}`, init));
    natives.dispatch(target, new natives.MouseEvent(`mouse${what}`, init));
  }
}

addEventListener('message', function begin(event) {
  if (event.source !== parent || event.ports.length !== 1) return;
  removeEventListener('message', begin);
  port = event.ports[0];
  let shown = false;
  port.onmessage = event => {
    const message = natives.data(event);
    // Once: afterwards the page's code may have replaced what showing uses.
    if (message.kind === 'show' && !shown) {
      shown = true;
      void show(message);
    } else if (message.kind === 'answer') receiveAnswer(message);
    else if (message.kind === 'message') receiveMessage(message);
    else if (message.kind === 'use') enter(message.allowed === true);
    else if (message.kind === 'point' && (isEntered || message.what !== 'click')) {
      point(message.what, message.x, message.y);
    }
  };
  tell({ kind: 'ready' });
});
