// What a page can ask of JupyterLab: its storage, files beside it, and routes to the network.
//
// Questions and answers pass the outer frame (shell.js) on a port. The answers are data that
// JupyterLab has made; whatever they say, only this page sees it.
const MAX_VALUE = 32 * 1024 * 1024; // characters of a value as JSON; the server judges it
let port = null;
let lastCall = 0;
const calls = new Map();

const tell = message => {
  if (port !== null) natives.postMessage(port, message);
};

function call(method, args, onMessage, id = ++lastCall) {
  return new natives.Promise((resolve, reject) => {
    natives.setCall(calls, id, { resolve, reject, onMessage });
    tell({ kind: 'call', id, method, args });
  });
}

function receiveAnswer(message) {
  const waiting = natives.getCall(calls, message.id);
  if (waiting === undefined) return;
  if (message.more === true) waiting.onMessage?.(message.value);
  else {
    natives.deleteCall(calls, message.id);
    if (typeof message.error === 'string') waiting.reject(new natives.Error(message.error));
    else waiting.resolve(message.value);
  }
}

function storageKey(key) {
  if (typeof key !== 'string') throw new natives.TypeError('A key of the storage is a text.');
  return key;
}

// Values pass as texts of JSON: nobody outside this page walks through what it has made.
async function keep(key, value, shared) {
  const json = natives.stringify(value);
  if (json === undefined) throw new natives.TypeError('A value is a text or JSON.');
  if (json.length > MAX_VALUE) throw new natives.TypeError('A value is below 5 MiB.');
  await call('storage.set', { key: storageKey(key), json, shared: Boolean(shared) });
  return { key, value: natives.parse(json), shared: Boolean(shared) };
}

async function ask(method, args) {
  return natives.parse(natives.decode(new natives.TextDecoder(), await call(method, args)));
}

define(window, 'storage', {
  value: freeze({
    set: (key, value, shared = false) => keep(key, value, shared),
    get: async (key, shared = false) =>
      ask('storage.get', { key: storageKey(key), shared: Boolean(shared) }),
    delete: async (key, shared = false) =>
      ask('storage.delete', { key: storageKey(key), shared: Boolean(shared) }),
    list: async (prefix = '', shared = false) =>
      ask('storage.list', { prefix: storageKey(prefix), shared: Boolean(shared) })
  }),
  enumerable: true
});

// A file beside the page. JupyterLab reads it below the outputs folder, and nowhere else.
const readFile = path => call('file', { path });

const isRelative = url => !test(/^([a-z][a-z0-9+.-]*:|\/\/)/i, url);

function decodeDataUrl(url) {
  const comma = url.indexOf(',');
  const head = url.slice('data:'.length, comma);
  const text = decodeURIComponent(url.slice(comma + 1));
  const base64 = /;base64$/i.test(head);
  const bytes = base64
    ? Uint8Array.from(atob(text), letter => letter.charCodeAt(0))
    : new TextEncoder().encode(text);
  const type = head.replace(/;base64$/i, '') || 'text/plain;charset=US-ASCII';
  return new Response(bytes, { headers: { 'Content-Type': type } });
}

async function fetchFromPage(input, init) {
  const url = input instanceof Request ? input.url : `${input}`;
  if (url.startsWith('data:')) return decodeDataUrl(url);
  if (isRelative(url)) {
    const file = await readFile(url);
    return new Response(file.bytes, { headers: { 'Content-Type': file.type } });
  }
  const request = new Request(input instanceof Request ? input : new URL(url), init);
  const body = request.method === 'GET' || request.method === 'HEAD' ? null : await request.arrayBuffer();
  request.signal.throwIfAborted();
  const id = ++lastCall;
  const head = Promise.withResolvers();
  let controller = null;
  const args = { url: request.url, method: request.method, headers: [...request.headers], body };
  let givenUp = false;
  const onMessage = value => {
    if (value.chunk === undefined) head.resolve(value);
    else if (!givenUp) controller?.enqueue(new Uint8Array(value.chunk));
  };
  const end = call('fetch', args, onMessage, id);
  end.catch(head.reject);
  const giveUp = () => {
    givenUp = true;
    tell({ kind: 'cancel', id });
  };
  request.signal.addEventListener('abort', () => {
    giveUp();
    head.reject(request.signal.reason);
    controller?.error(request.signal.reason);
  });
  const { status, headers } = await head.promise;
  const empty = [101, 204, 205, 304].includes(status) || request.method === 'HEAD';
  if (empty) {
    giveUp(); // nothing follows
    return new Response(null, { status, headers });
  }
  const stream = new ReadableStream(
    {
      start: made => {
        controller = made;
        end.then(
          () => controller.close(),
          error => controller.error(error)
        ).catch(() => {});
      },
      pull: () => tell({ kind: 'pull', id }),
      cancel: giveUp
    },
    { highWaterMark: 1 }
  );
  return new Response(stream, { status, headers });
}

window.fetch = fetchFromPage;
