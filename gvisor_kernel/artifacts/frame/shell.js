// The outer frame. It holds the page's frame, which it can neither be read by nor be led away by,
// and passes messages between the page and JupyterLab, each checked and counted.
//
// JupyterLab sends one message with a port. Nothing else that a window sends is heard.
'use strict';

const MAX_TEXT = 2000;
const MAX_CALLS = 64;
const MAX_BYTES_OF_CALLS = 32 * 1024 * 1024;
const MAX_MESSAGES_PER_SECOND = 500;
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

function open(outer) {
  const frame = document.createElement('iframe');
  const channel = new MessageChannel();
  const inner = channel.port1;
  const open = new Map(); // calls without an answer: their bytes
  let bytes = 0;
  let second = 0;
  let count = 0;
  let loads = 0;

  const refuse = (id, error) => inner.postMessage({ kind: 'answer', id, error });

  function receive(message) {
    const now = Math.floor(performance.now() / 1000);
    count = now === second ? count + 1 : 1;
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
    else if ((kind === 'link' || kind === 'blocked') && isText(message.url)) {
      outer.postMessage({ kind, url: message.url });
    } else if ((kind === 'cancel' || kind === 'pull') && open.has(id)) outer.postMessage({ kind, id });
    else if (kind === 'error' && isText(message.message) && isText(message.file)) {
      const { file, line, column } = message;
      outer.postMessage({ kind, message: message.message, file, line: asNumber(line), column: asNumber(column) });
    }
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
