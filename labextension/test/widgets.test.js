import assert from 'node:assert/strict';
import { test } from 'node:test';

import { KernelWidgets } from '../lib/widget_comms.js';
import { WidgetFrame } from '../lib/widget_frame.js';
import { WidgetHost } from '../lib/widget_host.js';
import { WidgetStore, measure, readBuffers } from '../lib/widget_store.js';

const NONE = { paths: [], buffers: [] };
const names = { _model_name: 'IntSliderModel', _model_module: '@jupyter-widgets/controls' };
const link = { ...names, _model_name: 'LinkModel' };

function storeOf(models) {
  const store = new WidgetStore();
  for (const [id, state] of Object.entries(models)) {
    assert.ok(store.open(id, { ...names, ...state }, NONE));
  }
  return store;
}

const idsOf = models => models.map(({ id }) => id).sort();

test('a view needs the models that its model names, also in a ring', () => {
  const store = storeOf({
    box: { children: ['IPY_MODEL_slider', { deep: ['IPY_MODEL_text'] }], layout: 'IPY_MODEL_none' },
    slider: { box: 'IPY_MODEL_box' },
    text: {},
    other: {}
  });
  assert.deepEqual(idsOf(store.needed(['box'])), ['box', 'slider', 'text']);
  assert.deepEqual(idsOf(store.needed(['box'], new Set(['slider']))), ['box', 'text']);
});

test('a link comes with both of its ends', () => {
  const store = storeOf({ a: {}, b: {}, c: {} });
  store.open(
    'link',
    { ...link, source: ['IPY_MODEL_a', 'value'], target: ['IPY_MODEL_b', 'value'] },
    NONE
  );
  assert.deepEqual(idsOf(store.needed(['b'])), ['a', 'b', 'link']);
  assert.deepEqual(idsOf(store.needed(['c'])), ['c']);
});

test('names of prototypes are names among others', () => {
  const store = new WidgetStore();
  const state = JSON.parse('{"__proto__": {"polluted": 1}, "constructor": 2}');
  assert.ok(store.open('__proto__', { ...names }, NONE));
  assert.ok(store.update('__proto__', state, NONE));
  assert.equal({}.polluted, undefined);
  const saved = JSON.parse(JSON.stringify(store.save(1e6)));
  assert.ok(Object.hasOwn(saved.state, '__proto__'));
  const again = new WidgetStore();
  again.load(saved);
  assert.deepEqual(again.ids(), ['__proto__']);
  assert.equal(Object.prototype.polluted, undefined);
});

test('what an attribute takes beside its value is counted', () => {
  const store = storeOf({ a: {} });
  const few = store.bytes;
  const state = Object.fromEntries(Array.from({ length: 1000 }, (_, it) => [`a${it}`, 0]));
  assert.ok(store.update('a', state, NONE));
  assert.ok(store.bytes - few > 200_000);
  store.close('a');
  assert.equal(store.bytes, 0);
});

test('a chain of links is found in one pass', () => {
  const store = storeOf({ l0: {} });
  let reads = 0;
  const references = store.links.bind(store);
  store.links = id => {
    reads += 1;
    return references(id);
  };
  for (let it = 1000; it > 0; it--) {
    store.open(`l${it}`, { ...link, source: [`IPY_MODEL_l${it - 1}`, 'value'] }, NONE);
  }
  assert.equal(store.needed(['l0']).length, 1001);
  assert.equal(reads, 1000);
});

test('a store has an end', () => {
  const store = new WidgetStore();
  for (let index = 0; index < 1_000_000; index++) {
    store.open(`m${index}`, names, NONE);
  }
  assert.equal(store.size, 20_000);
  const large = { value: 'x'.repeat(40 * 1024 * 1024) };
  assert.ok(store.update('m1', large, NONE));
  assert.ok(store.update('m2', large, NONE));
  assert.ok(store.update('m3', large, NONE));
  assert.ok(!store.update('m4', large, NONE));
  assert.ok(store.update('m1', { value: '' }, NONE), 'room is found again');
  assert.ok(store.update('m4', large, NONE));
  store.close('m4');
  store.close('m4');
  assert.ok(store.bytes < 256 * 1024 * 1024);
  const buffer = new ArrayBuffer(200 * 1024 * 1024);
  assert.ok(!store.update('m1', {}, { paths: [['value']], buffers: [buffer] }));
});

test('what is no state is refused', () => {
  const store = storeOf({ a: {} });
  for (const state of [null, undefined, 7, 'text', [], () => 1]) {
    assert.equal(store.open('b', state, NONE), false);
    assert.equal(store.update('a', state, NONE), false);
  }
  for (const id of [null, undefined, 7, '', 'x'.repeat(1000), {}, ['a']]) {
    assert.equal(store.open(id, names, NONE), false);
  }
  assert.equal(store.open('c', { _model_name: 7, _model_module: {} }, NONE), false);
  assert.equal(store.update('none', {}, NONE), false);
  assert.deepEqual(store.ids(), ['a']);
});

test('values are counted without recursion', () => {
  let deep = 'IPY_MODEL_end';
  for (let level = 0; level < 100_000; level++) {
    deep = [deep];
  }
  assert.deepEqual(measure(deep).references, ['end']);
  assert.equal(measure(Array(10_000_000)), null);
  assert.equal(measure({ a: undefined, b: [null, undefined, 1] }).bytes > 0, true);
});

test('buffers have paths of names and numbers', () => {
  const bytes = new Uint8Array([1, 2, 3, 4]);
  const view = new DataView(bytes.buffer, 1, 2);
  const read = readBuffers([['value', 0]], [view]);
  assert.deepEqual([...new Uint8Array(read.buffers[0])], [2, 3]);
  for (const [paths, buffers] of [
    [['value'], [view]],
    [[[]], [view]],
    [[[{}]], [view]],
    [[['a']], ['text']],
    [[['a']], []],
    ['a', [view]],
    [[['a', 1.5]], [view]],
    [Array(2000).fill(['a']), Array(2000).fill(view)]
  ]) {
    assert.equal(readBuffers(paths, buffers), null);
  }
});

test('a kept state is loaded with its buffers, and rubbish is left out', () => {
  const store = new WidgetStore();
  const buffers = { paths: [['value']], buffers: [new Uint8Array([9, 8]).buffer] };
  store.open('image', { ...names, _model_name: 'ImageModel', format: 'png' }, buffers);
  const saved = JSON.parse(JSON.stringify(store.save(1e6)));
  saved.state.bad = { state: 7 };
  saved.state.worse = null;
  const again = new WidgetStore();
  again.load(saved);
  assert.deepEqual(again.ids(), ['image']);
  assert.deepEqual(
    [...new Uint8Array(again.get('image').attributes.get('value').buffers[0].data)],
    [9, 8]
  );
  for (const rubbish of [
    null,
    undefined,
    7,
    [],
    { state: [] },
    { state: { a: { state: {}, buffers: 7 } } }
  ]) {
    new WidgetStore().load(rubbish);
  }
});

// A kernel's connection that keeps what is sent.
function makeKernel() {
  const sent = [];
  const comms = new Map();
  const hooks = new Map();
  let count = 0;
  const createComm = (target, id = `c${++count}`) => {
    const comm = {
      commId: id,
      targetName: target,
      isDisposed: false,
      open: () => undefined,
      close: () => comms.delete(id),
      dispose: () => {
        comm.isDisposed = true;
        comms.delete(id);
      },
      send: (data, metadata, buffers) => {
        let end;
        const done = new Promise(resolve => {
          end = resolve;
        });
        const msg_id = `message${++count}`;
        sent.push({ id, data, buffers, end, msg_id });
        return { msg: { header: { msg_id } }, done };
      }
    };
    comms.set(id, comm);
    return comm;
  };
  const connection = {
    createComm,
    hasComm: id => comms.has(id),
    registerMessageHook: (id, hook) => hooks.set(id, hook),
    removeMessageHook: id => hooks.delete(id),
    requestCommInfo: async () => ({ content: { status: 'ok', comms: {} } })
  };
  const open = (widgets, id, state) => {
    const comm = createComm('jupyter.widget', id);
    widgets.open(comm, { content: { data: { state: { ...names, ...state } } }, buffers: [] });
    return comm;
  };
  return { connection, comms, hooks, sent, open };
}

function makeFrame(widgets) {
  const got = [];
  const frame = new WidgetFrame(
    { send: (data, buffers) => got.push({ ...data, buffers }) },
    widgets.store
  );
  const attached = widgets.attach(frame, () => undefined);
  return { got, frame, ...attached };
}

const turn = () => new Promise(resolve => setImmediate(resolve));
const update = (comm, state, parent = {}) =>
  comm.onMsg({
    content: { data: { method: 'update', state } },
    parent_header: parent,
    buffers: []
  });

test('what is done in one frame is seen in the other, and reaches the kernel once', async () => {
  const kernel = makeKernel();
  const widgets = new KernelWidgets(kernel.connection);
  const comm = kernel.open(widgets, 'slider', { value: 1 });
  const [one, two] = [makeFrame(widgets), makeFrame(widgets)];
  one.receive({ kind: 'want', id: 'slider' }, []);
  two.receive({ kind: 'want', id: 'slider' }, []);
  await turn();
  one.receive({ kind: 'update', n: 1, id: 'slider', state: { value: 2 }, paths: [] }, []);
  assert.deepEqual(
    kernel.sent.map(({ id, data }) => [id, data.state]),
    [['slider', { value: 2 }]]
  );
  assert.deepEqual(two.got.at(-1).state, [['value', 2]]);
  assert.equal(widgets.store.get('slider').attributes.get('value').value, 2);
  const [{ msg_id, end }] = kernel.sent;
  const echo = { method: 'echo_update', state: { value: 2 } };
  comm.onMsg({ content: { data: echo }, parent_header: { msg_id }, buffers: [] });
  assert.equal(one.got.at(-1).echo, 1);
  const before = two.got.length;
  end();
  await turn();
  assert.deepEqual(one.got.at(-1).kind, 'idle');
  assert.equal(two.got.length, before);
});

test('a frame reaches no widget that it was not given, and opens no comm', async () => {
  const kernel = makeKernel();
  const widgets = new KernelWidgets(kernel.connection);
  kernel.open(widgets, 'mine', {});
  kernel.open(widgets, 'other', {});
  const frame = makeFrame(widgets);
  frame.receive({ kind: 'want', id: 'mine' }, []);
  await turn();
  const comms = kernel.comms.size;
  for (const message of [
    { kind: 'update', n: 1, id: 'other', state: { value: 1 }, paths: [] },
    { kind: 'custom', n: 2, id: 'none', content: {} },
    { kind: 'open', n: 3, id: 'mine', target: 'jupyter.widget' },
    { kind: 'comm_open', n: 4, id: 'new', target_name: 'evil', state: {} },
    { kind: 'update', n: 5, id: ['mine'], state: {} },
    { kind: 'update', n: 'x', id: 'mine', state: {} },
    { kind: 'update', n: 6, id: 'mine', state: {}, paths: [[{}]] },
    { kind: 'update', n: 6, id: 'mine', state: {}, paths: 'x' },
    { kind: '__proto__', n: 7, id: 'mine' },
    { n: 8 },
    null,
    'text',
    7,
    []
  ]) {
    frame.receive(message, [new ArrayBuffer(1)]);
  }
  assert.deepEqual(kernel.sent, []);
  assert.equal(kernel.comms.size, comms);
});

test('a frame that floods or hangs costs a bounded part', async () => {
  const kernel = makeKernel();
  const widgets = new KernelWidgets(kernel.connection);
  const comm = kernel.open(widgets, 'slider', { value: 0 });
  const frame = makeFrame(widgets);
  frame.receive({ kind: 'want', id: 'slider' }, []);
  await turn();
  for (let n = 0; n < 100_000; n++) {
    frame.receive({ kind: 'custom', n, id: 'slider', content: n }, []);
  }
  assert.ok(kernel.sent.length <= 100, `${kernel.sent.length} messages`);
  frame.got.length = 0;
  for (let value = 0; value < 100_000; value++) {
    update(comm, { value });
  }
  assert.ok(frame.got.length < 300);
  frame.receive({ kind: 'done', count: 200 }, []);
  assert.deepEqual(frame.got.at(-1).state, [['value', 99_999]], 'the newest value is told');
  frame.receive({ kind: 'done', count: -5 }, []);
  frame.receive({ kind: 'done', count: 1e300 }, []);
});

test('a kernel that was restarted has none of its widgets', async () => {
  const kernel = makeKernel();
  const widgets = new KernelWidgets(kernel.connection);
  kernel.open(widgets, 'slider', {});
  const frame = makeFrame(widgets);
  frame.receive({ kind: 'want', id: 'slider' }, []);
  await turn();
  widgets.lost();
  assert.equal(frame.got.at(-1).kind, 'lost');
  assert.equal(widgets.store.size, 0);
  frame.receive({ kind: 'update', n: 1, id: 'slider', state: {}, paths: [] }, []);
  assert.deepEqual(kernel.sent, []);
});

test('an output widget catches what its request prints', async () => {
  const kernel = makeKernel();
  const widgets = new KernelWidgets(kernel.connection);
  const out = { _model_name: 'OutputModel', _model_module: '@jupyter-widgets/output' };
  const comm = kernel.open(widgets, 'out', { ...out, msg_id: '', outputs: [] });
  update(comm, { msg_id: 'request' });
  const hook = kernel.hooks.get('request');
  const print = text => ({ header: { msg_type: 'stream' }, content: { name: 'stdout', text } });
  assert.equal(hook(print('a')), false);
  hook(print('b'));
  assert.equal(
    hook({ header: { msg_type: 'status' }, content: { execution_state: 'idle' } }),
    true
  );
  const shown = () => widgets.store.get('out').attributes.get('outputs').value;
  assert.deepEqual(shown(), [{ output_type: 'stream', name: 'stdout', text: 'ab' }]);
  assert.equal(kernel.sent.length, 1, 'one message is under way');
  hook({ header: { msg_type: 'clear_output' }, content: { wait: true } });
  assert.equal(shown().length, 1);
  hook({ header: { msg_type: 'display_data' }, content: { data: { 'text/plain': 'c' } } });
  assert.equal(shown().length, 1);
  for (let count = 0; count < 5000; count++) {
    hook({ header: { msg_type: 'display_data' }, content: { data: { 'text/plain': 'c' } } });
  }
  assert.ok(shown().length <= 1000);
  update(comm, { msg_id: '' });
  assert.equal(kernel.hooks.size, 0);
});

const specs = { other: false, ours: true };

function makeGuarded(name, isOther = it => !specs[it]) {
  const targets = new Map();
  const made = [];
  const signal = { connect: () => true };
  const connection = {
    id: `kernel-${name}`,
    name,
    handleComms: true,
    registerCommTarget: (target, onOpen) => targets.set(target, onOpen),
    removeCommTarget: target => targets.delete(target),
    createComm: (target, id) => made.push([target, id]),
    hasComm: () => false,
    statusChanged: signal,
    connectionStatusChanged: signal,
    disposed: signal
  };
  const host = new WidgetHost(isOther, Promise.resolve());
  const kernels = { connectTo: () => connection };
  host.guard(kernels);
  kernels.connectTo({});
  return { connection, targets, made, host };
}

test("JupyterLab's manager gets widgets of other kernels, and none of ours", async () => {
  for (const [name, count] of [
    ['other', 1],
    ['ours', 0]
  ]) {
    const { connection, targets, made } = makeGuarded(name);
    let opened = 0;
    const manager = () => {
      opened += 1;
    };
    connection.registerCommTarget('jupyter.widget', manager);
    connection.registerCommTarget('else', manager);
    const comm = { commId: 'a', dispose: () => undefined };
    await targets.get('jupyter.widget')(comm, { content: { data: { state: names } } });
    assert.equal(opened, count, name);
    if (name === 'ours') {
      assert.throws(() => connection.createComm('jupyter.widget', 'a'));
      assert.throws(() => connection.createComm('jupyter.widget.control'));
      connection.createComm('else', 'b');
      assert.deepEqual(made, [['else', 'b']]);
    } else {
      connection.createComm('jupyter.widget', 'a');
      connection.removeCommTarget('jupyter.widget', manager);
      await assert.rejects(targets.get('jupyter.widget')(comm, {}));
    }
  }
});

test('as long as nothing is known of a kernel, its widgets are nobody else’s', async () => {
  const { connection } = makeGuarded('ours', () => null);
  assert.throws(() => connection.createComm('jupyter.widget', 'a'));
});

test('widgets that a file has kept are not given to JupyterLab', () => {
  const { host } = makeGuarded('ours');
  const kept = { 'application/vnd.jupyter.widget-state+json': { state: { a: 1 } } };
  const values = new Map([
    ['widgets', kept],
    ['kernelspec', 'x']
  ]);
  const model = {
    getMetadata: key => values.get(key),
    setMetadata: (key, value) => values.set(key, value)
  };
  const saved = host.guardMetadata(model, () => ({ id: 'kernel-ours', name: 'ours' }));
  assert.equal(model.getMetadata('widgets'), undefined);
  assert.equal(model.getMetadata('kernelspec'), 'x');
  assert.deepEqual(saved(), { state: { a: 1 } });
  model.setMetadata('widgets', { 'application/vnd.jupyter.widget-state+json': { state: {} } });
  assert.equal(values.get('widgets'), kept, 'their manager has none of our widgets to save');
  const other = host.guardMetadata(model, () => null);
  model.setMetadata('widgets', 7);
  assert.equal(other(), undefined);
});

test('a frame that asks for kept widgets without end has the file read once', async () => {
  const { host } = makeGuarded('ours');
  let reads = 0;
  const sent = [];
  const saved = () => {
    reads += 1;
    return { state: {} };
  };
  const home = { kernelId: async () => null, saved };
  const frame = host.attach({ send: data => sent.push(data) }, home);
  await Promise.resolve();
  await Promise.resolve();
  for (let it = 0; it < 90; it++) {
    frame.receive({ kind: 'want', id: 'gone' }, []);
  }
  assert.equal(reads, 1);
  assert.ok(sent.length > 0 && sent.length <= 20, `${sent.length}`);
});
