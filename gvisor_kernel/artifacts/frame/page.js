// Shows a page: its elements, then its scripts in their order, then its events.
//
// The headers let no script element and no `onclick="…"` run, since each realm that a page could
// make would run them, too. So this script evaluates their texts, which is allowed here alone.
const evaluate = eval; // called by another name it evaluates in the global scope
const SCRIPT_TYPES = /^(|text\/javascript|application\/javascript|application\/ecmascript|module)$/i;
const MAX_TEXT = 2000;

const cut = text => `${text}`.slice(0, MAX_TEXT);

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
document.addEventListener('securitypolicyviolation', event => {
  const wanted = event.blockedURI;
  if (wanted.startsWith(new URL('.', document.baseURI))) return; // see loadFiles
  if (!/^(inline|eval|trusted-types-)/.test(wanted)) tell({ kind: 'blocked', url: cut(wanted) });
});

// A frame that is led elsewhere shows nothing any more, and a link that is clicked with another
// button opens a window. So links have no address; the person decides whether one opens.
const targets = new WeakMap();
const LINKS = 'a, area';

function takeAddress(link) {
  const target = link.getAttribute('href') ?? link.getAttribute('xlink:href');
  if (target === null || target.startsWith('#')) return;
  targets.set(link, target);
  link.removeAttribute('href');
  link.removeAttribute('xlink:href');
  link.setAttribute('role', 'link');
  link.setAttribute('tabindex', '0');
  if (link.style !== undefined) link.style.cssText += '; cursor: pointer; text-decoration: underline';
}

function follow(event) {
  const link = event.composedPath().find(node => node instanceof Element && node.matches(LINKS));
  if (link === undefined) return;
  takeAddress(link);
  event.preventDefault();
  const target = targets.get(link);
  if (target !== undefined) tell({ kind: 'link', url: cut(target) });
  // A fragment would be one of the address of the outer frame.
  else scrollTo(decodeURIComponent((link.getAttribute('href') ?? '#').slice(1)));
}

for (const kind of ['click', 'auxclick']) addEventListener(kind, follow, true);
addEventListener(
  'keydown',
  event => {
    if (event.key === 'Enter' && event.target instanceof Element && event.target.matches(LINKS)) {
      follow(event);
    }
  },
  true
);
addEventListener('submit', event => event.preventDefault());
HTMLFormElement.prototype.submit = () => {};
// Markup that is pasted or dropped would bring elements that a page cannot make.
for (const kind of ['paste', 'drop']) {
  addEventListener(
    kind,
    event => {
      const from = event.clipboardData ?? event.dataTransfer;
      if (from?.types.includes('text/html')) event.preventDefault();
    },
    true
  );
}

function scrollTo(name) {
  if (name === '') window.scrollTo(0, 0);
  else (document.getElementById(name) ?? document.getElementsByName(name)[0])?.scrollIntoView();
}

// Handlers that are written as attributes.
function bindHandlers(root) {
  const elements = root instanceof Element ? [root, ...root.querySelectorAll('*')] : root.querySelectorAll('*');
  for (const element of elements) {
    for (const { name, value } of element.attributes) {
      if (!name.startsWith('on') || !(name in element)) continue;
      try {
        element[name] = new Function('event', value);
      } catch (error) {
        reportError(`${name}: ${error.message}`);
      }
    }
  }
}

new MutationObserver(records => {
  for (const record of records) {
    if (record.type === 'attributes') {
      if (record.attributeName.startsWith('on')) bindHandlers(record.target);
      if (record.attributeName === 'href' && record.target.matches(LINKS)) takeAddress(record.target);
    } else for (const node of record.addedNodes) if (node instanceof Element) adopt(node);
  }
}).observe(document, { subtree: true, childList: true, attributes: true });

function adopt(root) {
  bindHandlers(root);
  if (root.matches(LINKS)) takeAddress(root);
  root.querySelectorAll(LINKS).forEach(takeAddress);
  loadFiles(root);
}

// Pictures, sounds and films that lie beside the page.
function loadFiles(root) {
  const wanted = 'img[src], audio[src], video[src], source[src]';
  const elements = [...root.querySelectorAll(wanted), ...(root.matches?.(wanted) ? [root] : [])];
  for (const element of elements) {
    const path = element.getAttribute('src');
    if (path === '' || !isRelative(path) || path.startsWith('#')) continue;
    readFile(path).then(
      file => {
        element.src = URL.createObjectURL(new Blob([file.bytes], { type: file.type }));
      },
      error => reportError(`${path}: ${error.message}`)
    );
  }
}

const lineOf = (source, text, from) => {
  const place = source.indexOf(text, from);
  return place < 0 ? 0 : source.slice(0, place).split('\n').length - 1;
};

const decode = bytes => new TextDecoder().decode(bytes);

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
  bindHandlers(document.body);
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
  if (isModule && /^\s*(import|export)\b/m.test(text)) {
    reportError('A module with import or export cannot run here.', file, line + 1);
    return;
  }
  // Empty lines before it, so that an error names the line in the file.
  const place = '\n'.repeat(line);
  const code = isModule ? `${place}(async () => {'use strict';${text}\n})()` : `${place}${text}`;
  running = script;
  try {
    const ended = evaluate(`${code}\n//# sourceURL=${encodeURI(file)}`);
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
const sendMessage = (data, buffers = []) => tell({ kind: 'message', text: JSON.stringify(data), buffers });
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
  let asked = false;
  measured = element;
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
  for (const text of renderers) evaluate(text);
  const render = window.gvisorRender;
  delete window.gvisorRender;
  const tools = { name, dark, root: document.body, reportError, readFile, evaluate };
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

addEventListener('message', function begin(event) {
  if (event.source !== parent || event.ports.length !== 1) return;
  removeEventListener('message', begin);
  port = event.ports[0];
  let shown = false;
  port.onmessage = ({ data }) => {
    // Once: afterwards the page's code may have replaced what showing uses.
    if (data.kind === 'show' && !shown) {
      shown = true;
      void show(data);
    } else if (data.kind === 'answer') receiveAnswer(data);
    else if (data.kind === 'message') receiveMessage(data);
    else if (data.kind === 'use') mayFocus = data.allowed === true;
  };
  tell({ kind: 'ready' });
});
