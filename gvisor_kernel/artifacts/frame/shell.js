// The outer frame. It holds the page's frame, which it can neither be read by nor be led away by,
// and passes messages between the page and JupyterLab, each checked and counted.
//
// JupyterLab sends one message with a port. Nothing else that a window sends is heard.
'use strict';

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
const METHODS = ['storage.set', 'storage.get', 'storage.delete', 'storage.list', 'file', 'library', 'fetch'];

const isText = value => typeof value === 'string' && value.length <= MAX_TEXT;
const isCount = value => Number.isSafeInteger(value) && value >= 0;
const asNumber = value => (isCount(value) ? value : 0);

// Return how many bytes a value takes about, or null for what no argument may be.
function measure(value, depth = 0) {
  if (value === null || value === undefined || typeof value === 'boolean' || typeof value === 'number') return 8;
  if (typeof value === 'string') return 2 * value.length;
  if (value instanceof ArrayBuffer) return value.byteLength;
  if (typeof value !== 'object' || depth > 100) return null;
  if (!Array.isArray(value) && Object.getPrototypeOf(value) !== Object.prototype) return null;
  let sum = 16;
  for (const key of Object.keys(value)) {
    const size = measure(value[key], depth + 1);
    if (size === null || sum > MAX_BYTES_OF_CALLS) return null;
    sum += size + 2 * key.length;
  }
  return sum;
}

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
    else if (kind === 'ready') outer.postMessage({ kind });
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

  function receiveCall(id, method, args) {
    if (!isCount(id) || open.has(id) || !METHODS.includes(method)) return;
    const size = measure(args);
    if (size === null) refuse(id, 'This value cannot be sent: texts, numbers, lists and objects can.');
    else if (open.size >= MAX_CALLS || bytes + size > MAX_BYTES_OF_CALLS) {
      refuse(id, `The page waits for ${open.size} answers already.`);
    } else {
      open.set(id, size);
      bytes += size;
      outer.postMessage({ kind: 'call', id, method, args });
    }
  }

  inner.onmessage = ({ data }) => receive(data);
  outer.onmessage = ({ data }) => {
    if (data.kind === 'answer' && data.more !== true) {
      bytes -= open.get(data.id) ?? 0;
      open.delete(data.id);
    }
    inner.postMessage(data);
  };
  frame.onload = () => {
    loads += 1;
    // The headers let the page go nowhere. It has tried, and shows an error of the browser now.
    if (loads > 1) outer.postMessage({ kind: 'left' });
    else frame.contentWindow.postMessage(null, '*', [channel.port2]);
  };
  frame.title = 'Page';
  frame.setAttribute('sandbox', 'allow-scripts allow-forms');
  const policy = trustedTypes.createPolicy('gvisor', { createHTML: text => text });
  frame.srcdoc = policy.createHTML(INNER);
  document.body.append(frame);
}

addEventListener('message', function begin(event) {
  if (event.source !== parent || event.ports.length !== 1) return;
  removeEventListener('message', begin);
  const outer = event.ports[0];
  if (self.trustedTypes === undefined) outer.postMessage({ kind: 'unfit' });
  else open(outer);
});
