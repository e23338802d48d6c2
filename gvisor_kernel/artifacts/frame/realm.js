// Takes from a page's realm what would reach the network in spite of the headers of frame.py.
//
// A Content-Security-Policy stops requests. It does not stop the lookup of a name, which tells a
// name server what the page wants to tell: `<link rel=dns-prefetch>`, `preconnect` and WebRTC do
// one. So elements that do so, and those that would give a realm in which this script has not run,
// cannot be made here. Text becomes elements in a document that is not shown, where nothing loads,
// and passes only without them. Trusted Types make every other way from text to elements an error.
//
// The page's own code runs later in this realm; see natives.js.
const FORBIDDEN = Object.freeze({
  __proto__: null,
  applet: true,
  base: true,
  embed: true,
  fencedframe: true,
  frame: true,
  frameset: true,
  iframe: true,
  link: true,
  meta: true,
  object: true,
  portal: true,
  webview: true
});
const SUBSTITUTE = 'gvisor-removed';

const createElement = Document.prototype.createElement;
const createElementNS = Document.prototype.createElementNS;
const adoptNode = Document.prototype.adoptNode;
const createFragment = Document.prototype.createDocumentFragment;
const getInner = getter(Element, 'innerHTML');
const setInner = setter(Element, 'innerHTML');
const getOuter = getter(Element, 'outerHTML');
const getShadowInner = getter(ShadowRoot, 'innerHTML');
const parseFromString = DOMParser.prototype.parseFromString;
const createDocument = DOMImplementation.prototype.createDocument;
const defineElement = CustomElementRegistry.prototype.define;

// Policies have the names that the headers allow, each once: the page cannot make one.
const policy = trustedTypes.createPolicy('gvisor', { createHTML: text => text });
const createHTML = TrustedTypePolicy.prototype.createHTML;
// What the page evaluates is as little trusted as the page. Its HTML has no default policy.
trustedTypes.createPolicy('default', { createScript: text => text });

// The headers allow this script by its hash, and so any script that names the hash as its integrity,
// from anywhere. This script has begun: from now on no script element may run.
const narrower = document.createElement('meta');
narrower.httpEquiv = 'Content-Security-Policy';
narrower.content = "script-src 'unsafe-eval'";
document.head.append(narrower);
narrower.remove();

const inert = document.implementation.createHTMLDocument('');

const isForbidden = node => FORBIDDEN[natives.localName(node)] === true;

// Remove all forbidden elements below a node.
function clean(node) {
  let child = natives.firstChild(node);
  while (child !== null) {
    const next = natives.nextSibling(child);
    if (natives.nodeType(child) === ELEMENT) {
      if (isForbidden(child)) natives.removeChild(node, child);
      else {
        if (natives.localName(child) === 'template') cleanTemplate(child);
        clean(child);
      }
    }
    child = next;
  }
}

function cleanTemplate(node) {
  let content;
  try {
    content = natives.template(node);
  } catch {
    return; // an element of this name in SVG: it has no content of its own
  }
  clean(content);
}

// Return a fragment with what a text means as the content of an element of this name.
function parse(text, namespace, name) {
  const holder = apply(createElementNS, inert, [namespace, name]);
  apply(setInner, holder, [apply(createHTML, policy, [`${text}`])]);
  let from = holder;
  try {
    from = natives.template(holder);
  } catch {
    // no template
  }
  clean(from);
  const fragment = apply(createFragment, inert, []);
  move(from, fragment);
  // Nobody gets at the document in which texts are parsed.
  return apply(adoptNode, document, [fragment]);
}

function move(from, to) {
  let child = natives.firstChild(from);
  while (child !== null) {
    natives.appendChild(to, child);
    child = natives.firstChild(from);
  }
}

function empty(node) {
  let child = natives.firstChild(node);
  while (child !== null) {
    natives.removeChild(node, child);
    child = natives.firstChild(node);
  }
}

const parseFor = (text, element) =>
  parse(text, natives.namespace(element), natives.localName(element));

const lock = (object, name, value) =>
  define(object, name, { value, writable: false, enumerable: true, configurable: false });
const lockProperty = (object, name, get, set) =>
  define(object, name, { get, set, enumerable: true, configurable: false });

lock(Document.prototype, 'createElement', function (name, options) {
  const element = apply(createElement, this, [name]);
  return isForbidden(element) ? apply(createElement, this, [SUBSTITUTE]) : element;
});
lock(Document.prototype, 'createElementNS', function (namespace, name, options) {
  const element = apply(createElementNS, this, [namespace, name]);
  return isForbidden(element) ? apply(createElement, this, [SUBSTITUTE]) : element;
});
lock(DOMImplementation.prototype, 'createDocument', function (namespace, name, type) {
  const made = apply(createDocument, this, [namespace, name, type ?? null]);
  clean(made);
  return made;
});
lock(DOMParser.prototype, 'parseFromString', function (text, type) {
  const made = apply(parseFromString, this, [apply(createHTML, policy, [`${text}`]), type]);
  clean(made);
  return made;
});
lock(CustomElementRegistry.prototype, 'define', function (name, type, options) {
  if (options !== undefined && options !== null && options.extends !== undefined) {
    throw new TypeError('Elements that extend built-in elements cannot be defined here.');
  }
  apply(defineElement, this, [name, type]);
});
lockProperty(
  Element.prototype,
  'innerHTML',
  function () {
    return apply(getInner, this, []);
  },
  function (text) {
    const fragment = parseFor(text === null ? '' : text, this);
    let target = this;
    try {
      target = natives.template(this);
    } catch {
      // no template
    }
    empty(target);
    natives.appendChild(target, fragment);
  }
);
lockProperty(
  ShadowRoot.prototype,
  'innerHTML',
  function () {
    return apply(getShadowInner, this, []);
  },
  function (text) {
    const fragment = parse(text === null ? '' : text, HTML, 'div');
    empty(this);
    natives.appendChild(this, fragment);
  }
);
lockProperty(
  Element.prototype,
  'outerHTML',
  function () {
    return apply(getOuter, this, []);
  },
  function (text) {
    const parent = natives.parentNode(this);
    if (parent === null) return;
    const context = natives.nodeType(parent) === ELEMENT ? parent : this;
    natives.insertBefore(parent, parseFor(text === null ? '' : text, context), this);
    natives.removeChild(parent, this);
  }
);
lock(Element.prototype, 'insertAdjacentHTML', function (place, text) {
  const where = `${place}`;
  const parent = natives.parentNode(this);
  if (where === 'afterbegin') {
    natives.insertBefore(this, parseFor(text, this), natives.firstChild(this));
  } else if (where === 'beforeend') {
    natives.appendChild(this, parseFor(text, this));
  } else if (parent !== null && where === 'beforebegin') {
    natives.insertBefore(parent, parseFor(text, this), this);
  } else if (parent !== null && where === 'afterend') {
    natives.insertBefore(parent, parseFor(text, this), natives.nextSibling(this));
  }
});
lock(Range.prototype, 'createContextualFragment', function (text) {
  return parse(text, HTML, 'body');
});
// Scripts of a page run one after the other, long after it was parsed: what they write is added.
lock(Document.prototype, 'write', function (...texts) {
  const body = document.body;
  natives.appendChild(body, parse(`${texts}`, HTML, 'body'));
});
lock(Document.prototype, 'writeln', Document.prototype.write);
lock(Document.prototype, 'open', function () {
  return this;
});
lock(Document.prototype, 'close', function () {});

// A page that takes the focus gets what the person types elsewhere. JupyterLab says when it may, and
// ends a page that finds another way to take it, so what honest pages do must not: it does the rest
// of its work, or nothing. A page that the person leaves is told so too late: it must see for itself.
let isEntered = false;
let hasWindow = false;
const mayFocus = () => isEntered && hasWindow;
for (const type of ['focus', 'blur']) {
  natives.listen(
    window,
    type,
    event => {
      if (event.isTrusted && natives.target(event) === window) hasWindow = type === 'focus';
    },
    true
  );
}

const focusWindow = window.focus;

function enter(allowed) {
  isEntered = allowed;
  hasWindow = allowed;
  if (allowed) apply(focusWindow, window, []);
}

// Call `otherwise` in place of a method while the page may not take the focus.
function guard(type, name, otherwise = () => undefined) {
  const original = type?.prototype[name];
  if (original === undefined) return;
  lock(type.prototype, name, function (...args) {
    return mayFocus() ? apply(original, this, args) : otherwise(this, args, original);
  });
}
for (const type of [HTMLElement, SVGElement, MathMLElement]) guard(type, 'focus');
for (const type of [HTMLInputElement, HTMLTextAreaElement]) guard(type, 'select');
guard(Element, 'requestPointerLock');
for (const name of ['show', 'showModal']) {
  guard(HTMLDialogElement, name, dialog => natives.setAttribute(dialog, 'open', ''));
}
const takesFocus = popover =>
  natives.localName(popover) === 'dialog' ||
  natives.hasAttribute(popover, 'autofocus') ||
  natives.querySelector(popover, '[autofocus]') !== null;
for (const name of ['showPopover', 'togglePopover']) {
  guard(HTMLElement, name, (popover, args, original) => {
    if (!takesFocus(popover)) return apply(original, popover, args);
  });
}
const FIELDS = [HTMLInputElement, HTMLSelectElement, HTMLTextAreaElement, HTMLButtonElement, HTMLOutputElement];
for (const type of [...FIELDS, HTMLFieldSetElement, HTMLFormElement, ElementInternals]) {
  const { checkValidity } = type.prototype;
  guard(type, 'reportValidity', field => apply(checkValidity, field, []));
}
const isValid = HTMLFormElement.prototype.checkValidity;
guard(HTMLFormElement, 'requestSubmit', (form, args, original) => {
  if (apply(isValid, form, [])) apply(original, form, args);
});
// A click of the page's own that cannot be held (see page.js) would do what one of the person does.
lock(EventTarget.prototype, 'dispatchEvent', function (event) {
  if (!mayFocus() && natives.type(event) === 'click' && !natives.cancelable(event)) return true;
  return natives.dispatch(this, event);
});
lock(HTMLFormElement.prototype, 'submit', function () {});
lock(window, 'focus', function () {});

// A page that scrolls to an element would scroll the notebook around it, too.
for (const name of ['scrollIntoView', 'scrollIntoViewIfNeeded']) guard(Element, name);
delete window.find;

// What a page adds to its history is in that of the tab: the person would go back through all of it.
const { replaceState } = History.prototype;
lock(History.prototype, 'pushState', function (...args) {
  apply(replaceState, this, args);
});

// What a person pastes elsewhere, as into a terminal, is what they saw and copied.
const execCommand = Document.prototype.execCommand;
lock(Document.prototype, 'execCommand', function (command, shown, value) {
  const name = `${command}`;
  return test(/^(copy|cut)$/i, name) ? false : apply(execCommand, this, [name, shown, value]);
});
lockProperty(ClipboardEvent.prototype, 'clipboardData', function () {
  return natives.type(this) === 'paste' ? natives.pasted(this) : null;
});

// Other pages lie in windows of the same tab, and a window cannot be kept from sending. What another
// one sends is not heard here: this listener is before any of the page.
const outer = parent;
for (const type of ['message', 'messageerror']) {
  natives.listen(
    window,
    type,
    event => {
      if (!event.isTrusted) return; // the page has made it
      const source = natives.source(event);
      if (source !== window && source !== outer) natives.stop(event);
    },
    true
  );
}

// With a registry of its own a document would run constructors while a text is parsed.
delete CustomElementRegistry.prototype.initialize;

// What is not replaced is removed, and so are newer ways from text to elements.
const KEPT = ['innerHTML', 'outerHTML', 'insertAdjacentHTML', 'getHTML'];
for (const holder of [
  Element.prototype,
  ShadowRoot.prototype,
  Document,
  Document.prototype,
  Range.prototype
]) {
  for (const name of Object.getOwnPropertyNames(holder)) {
    if (/HTML/i.test(name) && !KEPT.includes(name)) delete holder[name];
  }
}
// Voices may be those of a service, and the picture of what is played is loaded by the browser itself.
delete Navigator.prototype.mediaSession;
const MISSING = /RTC|^XSLT|^XMLHttp|^EyeDropper|^MediaMetadata|^MediaSession|[sS]peech/;
const EMPTY = /^HTML(Applet|Base|Embed|FencedFrame|Frame|FrameSet|IFrame|Link|Meta|Object|Portal)Element$/;
for (const name of Object.getOwnPropertyNames(window)) {
  if (MISSING.test(name)) delete window[name];
  // Libraries ask whether something is an instance of these.
  else if (EMPTY.test(name)) define(window, name, { value: class {}, writable: false });
}
