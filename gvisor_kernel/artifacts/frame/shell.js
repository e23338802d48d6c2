// The outer frame. It holds the page's frame, which it can neither be read by nor be led away by,
// and passes messages between the page and JupyterLab, each checked and counted.
//
// JupyterLab sends one message with a port, and says whether to hold a page or to try the browser.
// Nothing else that a window sends is heard.
'use strict';

const SANDBOX = 'allow-scripts allow-forms';
const policy = self.trustedTypes?.createPolicy('gvisor', { createHTML: text => text }) ?? null;
const MAX_TEXT = 2000;
const MAX_CALLS = 64;
const MAX_BYTES_OF_CALLS = 32 * 1024 * 1024;
const MAX_MESSAGES_PER_SECOND = 500;
// What a renderer of ours tells the extension: its text is parsed there, its buffers are only kept.
const MAX_MESSAGE_TEXT_PER_SECOND = 4 * 1024 * 1024;
const MAX_BUFFERS = 1000;
const MAX_BUFFER_BYTES_PER_SECOND = 32 * 1024 * 1024;
// Heights of a page move what is around it: so many at once, then one in a second.
const MAX_HEIGHT = 20000;
const HEIGHTS_AT_ONCE = 20;
const MAX_VALUE = 32 * 1024 * 1024;
const MAX_URL = 64 * 1024;
const MAX_HEADERS = 200;
const MAX_HEADER_TEXT = 64 * 1024;

const isText = value => typeof value === 'string' && value.length <= MAX_TEXT;
const isCount = value => Number.isSafeInteger(value) && value >= 0;
const asNumber = value => (isCount(value) ? value : 0);

const isLong = (value, most) => typeof value === 'string' && value.length <= most;
const isBytes = value => value instanceof ArrayBuffer && value.resizable !== true;

// What a page may hand over with a call: each field is made anew here, and its length is looked at
// before anything else of it. Null is what no call may have.
const ARGUMENTS = {
  'storage.set': ({ key, json, shared }) =>
    isText(key) && isLong(json, MAX_VALUE) ? { key, json, shared: shared === true } : null,
  'storage.get': ({ key, shared }) => (isText(key) ? { key, shared: shared === true } : null),
  'storage.delete': ({ key, shared }) => (isText(key) ? { key, shared: shared === true } : null),
  'storage.list': ({ prefix, shared }) => (isText(prefix) ? { prefix, shared: shared === true } : null),
  file: ({ path }) => (isText(path) ? { path } : null),
  library: ({ url, kind }) => (isText(url) && isText(kind) ? { url, kind } : null),
  fetch: ({ url, method, headers, body }) => {
    const list = readHeaders(headers);
    if (!isLong(url, MAX_URL) || !isText(method) || list === null) return null;
    return { url, method, headers: list, body: isBytes(body) ? body : null };
  }
};

function readHeaders(value) {
  if (!Array.isArray(value) || value.length > MAX_HEADERS) return null;
  const list = [];
  let left = MAX_HEADER_TEXT;
  for (let place = 0; place < value.length; place++) {
    const pair = value[place];
    if (!Array.isArray(pair) || pair.length !== 2 || !isLong(pair[0], left) || !isLong(pair[1], left)) return null;
    left -= pair[0].length + pair[1].length;
    list.push([pair[0], pair[1]]);
  }
  return left < 0 ? null : list;
}

// Return about how many bytes the arguments of a call take.
const sizeOf = ({ json = '', url = '', body = null }) => 2 * (json.length + url.length) + (body?.byteLength ?? 0);

// Sends the newest height, as often as the notebook's layout may change by a page.
function makeHeights(outer) {
  let left = HEIGHTS_AT_ONCE;
  let last = null;
  let next = null;
  let timer = null;
  const send = () => {
    if (next === null || next === last || left === 0) return;
    left -= 1;
    last = next;
    outer.postMessage({ kind: 'size', height: last });
  };
  return height => {
    timer ??= setInterval(() => {
      left = Math.min(left + 1, HEIGHTS_AT_ONCE);
      send();
    }, 1000);
    next = Math.min(height, MAX_HEIGHT);
    send();
  };
}

// Whether a frame of a page's kind reaches the server by a request, and by going there. Both must
// fail in a browser that obeys the header Connection-Allowlist, and succeed in another one: the
// Content-Security-Policy allows them until `close`.
function tryOut() {
  return new Promise(resolve => {
    const frame = document.createElement('iframe');
    let request = null;
    let navigation = null;
    const end = () => {
      if (request === null || navigation === null) return;
      removeEventListener('message', hear);
      frame.remove();
      resolve(request + navigation); // in how many ways
    };
    const hear = event => {
      if (event.source !== frame.contentWindow || typeof event.data?.request !== 'boolean') return;
      request = event.data.request;
      end();
    };
    addEventListener('message', hear);
    let loads = 0;
    frame.onload = () => {
      loads += 1;
      if (loads !== 2) return; // the first is that of the script
      navigation = frame.contentWindow.length > 0; // the document there has a frame, an error has none
      end();
    };
    frame.hidden = true;
    frame.setAttribute('sandbox', SANDBOX);
    frame.srcdoc = policy.createHTML(PROBE);
    document.body.append(frame);
  });
}

// From now on the policy allows no request and no other document, whatever the browser makes of the
// other header.
function close() {
  const narrower = document.createElement('meta');
  narrower.httpEquiv = 'Content-Security-Policy';
  narrower.content = "connect-src 'none'; frame-src 'none'";
  document.head.append(narrower);
  narrower.remove();
}

function open(outer) {
  const sendHeight = makeHeights(outer);
  const frame = document.createElement('iframe');
  const channel = new MessageChannel();
  const inner = channel.port1;
  const open = new Map(); // calls without an answer: their bytes
  let bytes = 0;
  let second = 0;
  let count = 0;
  let texts = 0; // of messages in this second
  let buffers = 0;
  let loads = 0;
  let allowed = false;

  // The focus would stay on this document, which is nothing to type into.
  const enter = () => allowed && inner.postMessage({ kind: 'use', allowed });
  const refuse = (id, error) => inner.postMessage({ kind: 'answer', id, error });

  function receive(message) {
    const now = Math.floor(performance.now() / 1000);
    count = now === second ? count + 1 : 1;
    if (now !== second) texts = buffers = 0;
    second = now;
    if (typeof message !== 'object' || message === null) return;
    const { kind, id } = message;
    if (count > MAX_MESSAGES_PER_SECOND) {
      if (kind === 'call' && isCount(id)) refuse(id, 'The page asks too much at a time.');
      if (count === MAX_MESSAGES_PER_SECOND + 1) outer.postMessage({ kind: 'flood' });
      return;
    }
    if (kind === 'call') receiveCall(id, message.method, message.args);
    else if (kind === 'ready' || kind === 'leave') {
      outer.postMessage({ kind });
      if (kind === 'ready') enter();
    }
    else if (kind === 'shown' && isText(message.title)) outer.postMessage({ kind, title: message.title });
    else if (kind === 'message') receiveMessage(message.text, message.buffers);
    else if (kind === 'size' && isCount(message.height)) sendHeight(message.height);
    else if ((kind === 'link' || kind === 'blocked') && isText(message.url)) {
      outer.postMessage({ kind, url: message.url });
    } else if ((kind === 'cancel' || kind === 'pull') && open.has(id)) outer.postMessage({ kind, id });
    else if (kind === 'error' && isText(message.message) && isText(message.file)) {
      const { file, line, column } = message;
      outer.postMessage({ kind, message: message.message, file, line: asNumber(line), column: asNumber(column) });
    }
  }

  // A text of JSON and buffers: their sizes are known before anything of them is looked at.
  function receiveMessage(text, list) {
    if (typeof text !== 'string' || !Array.isArray(list) || list.length > MAX_BUFFERS) return;
    const passed = [];
    for (let index = 0; index < list.length; index++) {
      const buffer = list[index];
      if (!(buffer instanceof ArrayBuffer) || buffer.resizable === true) return;
      buffers += buffer.byteLength;
      passed.push(buffer);
    }
    texts += text.length;
    if (texts > MAX_MESSAGE_TEXT_PER_SECOND || buffers > MAX_BUFFER_BYTES_PER_SECOND) {
      outer.postMessage({ kind: 'flood' });
    } else outer.postMessage({ kind: 'message', text, buffers: passed }, passed);
  }

  function receiveCall(id, method, given) {
    if (!isCount(id) || open.has(id) || typeof method !== 'string' || !Object.hasOwn(ARGUMENTS, method)) return;
    const args = typeof given === 'object' && given !== null ? ARGUMENTS[method](given) : null;
    const size = args === null ? 0 : sizeOf(args);
    if (args === null) refuse(id, 'The page cannot ask for this: a text is too long, or is none.');
    else if (open.size >= MAX_CALLS || bytes + size > MAX_BYTES_OF_CALLS) {
      refuse(id, `The page waits for ${open.size} answers already.`);
    } else {
      open.set(id, size);
      bytes += size;
      outer.postMessage({ kind: 'call', id, method, args }, isBytes(args.body) ? [args.body] : []);
    }
  }

  inner.onmessage = ({ data }) => receive(data);
  outer.onmessage = ({ data }) => {
    if (data.kind === 'answer' && data.more !== true) {
      bytes -= open.get(data.id) ?? 0;
      open.delete(data.id);
    }
    if (data.kind === 'use') allowed = data.allowed;
    const whole = data.value instanceof ArrayBuffer ? data.value : (data.value?.bytes ?? data.value?.chunk);
    inner.postMessage(data, whole instanceof ArrayBuffer ? [whole] : []);
  };
  frame.onload = () => {
    loads += 1;
    // The headers let the page go nowhere. It has tried, and shows an error of the browser now.
    if (loads > 1) outer.postMessage({ kind: 'left' });
    else frame.contentWindow.postMessage(null, '*', [channel.port2]);
  };
  // The focus comes when it comes: before or after the word that it may.
  addEventListener('focus', enter);
  addEventListener('keydown', event => event.key === 'Escape' && outer.postMessage({ kind: 'leave' }));
  frame.title = 'Page';
  frame.setAttribute('sandbox', SANDBOX);
  frame.srcdoc = policy.createHTML(INNER);
  document.body.append(frame);
}

addEventListener('message', function begin(event) {
  if (event.source !== parent || event.ports.length !== 1) return;
  removeEventListener('message', begin);
  const [outer] = event.ports;
  const unfit = () => outer.postMessage({ kind: 'unfit' });
  if (policy === null) unfit();
  else if (event.data === 'try') void tryOut().then(reached => outer.postMessage({ kind: 'tried', reached }));
  else {
    // A proxy may have taken the header from this answer alone: then the request succeeds.
    const hold = () => (close(), open(outer));
    fetch(new URL('frame/probe', document.baseURI), { mode: 'no-cors', credentials: 'omit' }).then(unfit, hold);
  }
});
