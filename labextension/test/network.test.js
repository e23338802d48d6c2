import assert from 'node:assert/strict';
import test from 'node:test';

import { FetchClient, readCall } from '../lib/fetch.js';
import { PageNetwork } from '../lib/page_network.js';
import { TalkView, describeTalk } from '../lib/preview.js';
import { MARKUP, openPage } from './page.js';

openPage();

const CALL = { url: 'https://api.example/', method: 'POST', headers: [], body: null };

function part(content) {
  const bytes = typeof content === 'string' ? new TextEncoder().encode(content) : content;
  const whole = new Uint8Array(4 + bytes.length);
  new DataView(whole.buffer).setUint32(0, bytes.length);
  whole.set(bytes, 4);
  return whole;
}

const json = value => part(JSON.stringify(value));
const WHOM = json({ host: 'api.example', route: 'a' });
const HEAD = json({ status: 200, headers: [['content-type', 'text/x']] });
const END = part('');

/** A server: each request has a stream that the test writes to. */
class Server {
  asked = [];

  client = new FetchClient(
    (path, { body, signal }) =>
      new Promise((resolve, reject) => {
        const asked = { body, signal, written: null };
        const stream = new ReadableStream({
          start: controller => {
            asked.controller = controller;
          }
        });
        signal.addEventListener('abort', () => {
          reject(signal.reason);
          asked.controller.error(signal.reason);
        });
        asked.answer = () => resolve(new Response(stream));
        asked.refuse = (status, message) => resolve(Response.json({ message }, { status }));
        this.asked.push(asked);
      })
  );
}

function open() {
  const server = new Server();
  const talks = [];
  const network = new PageNetwork(server.client, 'ticket', talk => talks.push(talk));
  const begin = (id, call = CALL) => {
    const told = [];
    const end = network.fetch(id, call, value => told.push(value));
    end.catch(() => {});
    return { told, end };
  };
  return { server, talks, network, begin };
}

const turn = () => new Promise(resolve => setImmediate(resolve));

test('a request goes as parts, and its answer comes as the page takes it', async () => {
  const { server, talks, network, begin } = open();
  const body = new TextEncoder().encode('hello').buffer;
  const { told, end } = begin(1, { ...CALL, headers: [['accept', 'x'], ['odd'], 3], body });
  await turn();
  const [{ body: sent, answer, controller }] = server.asked;
  const size = new DataView(sent.buffer).getUint32(0);
  assert.deepEqual(JSON.parse(new TextDecoder().decode(sent.subarray(4, 4 + size))), {
    ticket: 'ticket',
    url: 'https://api.example/',
    method: 'POST',
    headers: [['accept', 'x']]
  });
  assert.equal(new TextDecoder().decode(sent.subarray(4 + size)), 'hello');
  answer();
  controller.enqueue(WHOM);
  await turn();
  // While the server waits for its head, the person sees that something has left.
  assert.deepEqual(talks.at(-1), {
    hosts: ['api.example'],
    requests: 1,
    sent: 5,
    received: 0,
    open: 1,
    stopped: false
  });
  for (const byte of HEAD) controller.enqueue(Uint8Array.of(byte));
  controller.enqueue(Uint8Array.from([...part('one'), ...part('two'), ...END]));
  controller.close();
  await turn();
  assert.deepEqual(told, [{ status: 200, headers: [['content-type', 'text/x']] }]);
  network.pull(1);
  await turn();
  network.pull(1);
  network.pull(1);
  await end;
  // What has come meanwhile is one piece.
  assert.deepEqual(
    told.slice(1).map(it => new TextDecoder().decode(it.chunk)),
    ['onetwo']
  );
  assert.deepEqual([talks.at(-1).received, talks.at(-1).open], [6, 0]);
});

test('what the person stops ends at once, and fails until it is allowed', async () => {
  const { server, talks, network, begin } = open();
  const first = begin(1);
  await turn();
  server.asked[0].answer();
  server.asked[0].controller.enqueue(WHOM);
  server.asked[0].controller.enqueue(HEAD);
  await turn();
  network.stop();
  await assert.rejects(first.end, /The person has stopped/);
  assert.equal(server.asked[0].signal.aborted, true);
  await assert.rejects(begin(2).end, /The person has stopped/);
  assert.equal(server.asked.length, 1);
  assert.equal(talks.at(-1).stopped, true);
  network.allow();
  begin(3);
  await turn();
  assert.equal(server.asked.length, 2);
  network.end();
});

test('three requests of a page and four of all go at once; the others wait', async () => {
  const one = open();
  const two = open();
  const calls = [1, 2, 3, 4, 5].map(id => one.begin(id));
  const others = [1, 2, 3].map(id => two.begin(id));
  await turn();
  assert.deepEqual([one.server.asked.length, two.server.asked.length], [3, 1]);
  one.network.cancel(4); // one that waits
  await assert.rejects(calls[3].end);
  one.server.asked[0].refuse(404, 'no route');
  await assert.rejects(calls[0].end, /^Error: no route$/);
  await turn();
  assert.equal(one.server.asked.length + two.server.asked.length, 5);
  one.network.end();
  two.network.end();
  await Promise.allSettled([...calls, ...others].map(it => it.end));
  const last = open();
  [1, 2, 3].forEach(id => last.begin(id));
  await turn();
  assert.equal(last.server.asked.length, 3);
  last.network.end();
});

test('a request that the server refuses is no talk', async () => {
  const { server, talks, begin } = open();
  const { end } = begin(1);
  await turn();
  server.asked[0].refuse(404, 'Pages have no route to https://api.example.');
  await assert.rejects(end, /Pages have no route/);
  assert.deepEqual(talks, []);
});

test('what a page gives up at once, or as it ends itself, is counted when it has left', async () => {
  for (const giveUp of [network => network.cancel(1), network => network.leave()]) {
    const { server, talks, network, begin } = open();
    const body = new TextEncoder().encode('secret').buffer;
    const { end } = begin(1, { ...CALL, body });
    await turn();
    giveUp(network);
    const [asked] = server.asked;
    assert.equal(asked.signal.aborted, false);
    asked.answer();
    asked.controller.enqueue(WHOM);
    await assert.rejects(end);
    assert.equal(asked.signal.aborted, true);
    const { hosts, requests, sent, open: left } = talks.at(-1);
    assert.deepEqual([hosts, requests, sent, left], [['api.example'], 1, 6, 0]);
  }
  const { server, talks, network, begin } = open();
  const { end } = begin(1);
  await turn();
  network.end(); // the person has closed the page
  await assert.rejects(end);
  assert.equal(server.asked[0].signal.aborted, true);
  assert.deepEqual(talks, []);
});

test('an answer that is not whole is an error with the text of the server', async () => {
  for (const [bytes, message] of [
    [[...WHOM, ...END, ...new TextEncoder().encode('api.example: it broke off.')], /it broke off/],
    [[...WHOM, ...HEAD], /The answer broke off/],
    [[...WHOM, ...json({ status: 99 })], /no status/],
    [[...WHOM, 255, 255, 255, 255], /too large/],
    [[], /broke off/]
  ]) {
    const { server, network, begin } = open();
    const { end } = begin(1);
    await turn();
    server.asked[0].answer();
    server.asked[0].controller.enqueue(Uint8Array.from(bytes));
    server.asked[0].controller.close();
    network.pull(1);
    await assert.rejects(end, message);
  }
});

test('what a page sends as a call is read as far as it is one', () => {
  for (const value of [
    { url: 1, method: {}, headers: 'x', body: 'text' },
    { headers: [[1, 'a'], ['b', null], null] }
  ]) {
    const { url, method, headers, body } = readCall(value);
    assert.deepEqual([url, method, headers, body.byteLength], ['', '', [], 0]);
  }
  assert.throws(() => readCall(null));
});

test('the browser writes a name of another script as the server expects it', () => {
  assert.equal(
    new URL('https://B\u00fccher.Example:443/a').href,
    'https://xn--bcher-kva.example/a'
  );
});

test('the line says to whom a page talks, and has one button at a time', () => {
  const talk = {
    hosts: ['api.anthropic.com'],
    requests: 3,
    sent: 12 * 1024,
    received: 40 * 1024,
    open: 1,
    stopped: false
  };
  assert.equal(
    describeTalk(talk),
    'This page talks to api.anthropic.com: 3 requests, 12 kB sent, 40 kB received'
  );
  assert.match(describeTalk({ ...talk, open: 0, requests: 1 }), /talked to .*: 1 request,/);
  const pressed = [];
  const view = new TalkView(
    () => pressed.push('stop'),
    () => pressed.push('allow')
  );
  assert.equal(view.node.hidden, true);
  view.update({ ...talk, hosts: [MARKUP] });
  assert.equal(view.node.hidden, false);
  assert.equal(view.node.querySelector('img'), null);
  document.body.append(view.node);
  const button = view.node.querySelector('button');
  assert.equal(button.textContent, 'Stop');
  button.focus();
  button.click();
  view.update({ ...talk, stopped: true });
  assert.equal(button.textContent, 'Allow again');
  assert.equal(document.activeElement, button);
  assert.match(view.node.textContent, /You stopped this page/);
  button.click();
  assert.deepEqual(pressed, ['stop', 'allow']);
  view.end(); // the page is over, and had talked just before
  view.update({ ...talk, open: 0 });
  assert.match(view.node.textContent, /This page talked to/);
  assert.equal(button.hidden, true);
  view.clear();
  assert.equal(view.node.hidden, true);
  view.update(talk);
  assert.equal(button.hidden, false);
});

test('a length that a page has chosen is not walked through', () => {
  assert.deepEqual(readCall({ ...CALL, headers: Array(4294967295) }).headers, []);
  assert.deepEqual(readCall({ ...CALL, headers: [Array(4294967295), ['a', 'b']] }).headers, [
    ['a', 'b']
  ]);
});
