import assert from 'node:assert/strict';
import { test } from 'node:test';

import { KernelWidgets } from '../lib/widget_comms.js';
import { WidgetHost } from '../lib/widget_host.js';
import { WidgetStore, measure, readBuffers } from '../lib/widget_store.js';

const NONE = [];
const names = { _model_name: 'IntSliderModel', _model_module: '@jupyter-widgets/controls' };
const link = { ...names, _model_name: 'LinkModel' };

function storeOf(models) {
  const store = new WidgetStore();
  for (const [id, state] of Object.entries(models)) {
    assert.ok(store.open(id, { ...names, ...state }, NONE));
  }
  return store;
}

test('names of prototypes are names among others', () => {
  const store = new WidgetStore();
  const state = JSON.parse('{"__proto__": {"polluted": 1}, "constructor": 2}');
  assert.ok(store.open('__proto__', { ...names }, NONE));
  assert.ok(store.update('__proto__', state, NONE));
  assert.equal({}.polluted, undefined);
  const saved = JSON.parse(JSON.stringify(store.save(1e6)));
  assert.ok(Object.hasOwn(saved.state, '__proto__'));
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
  assert.ok(!store.update('m1', {}, [{ path: ['value'], data: buffer }]));
});

test('what is no state is refused', () => {
  const store = storeOf({ a: {} });
  for (const state of [null, undefined, 7, 'text', [], () => 1]) {
    assert.equal(store.open('b', state, NONE), null);
    assert.equal(store.update('a', state, NONE), null);
  }
  for (const id of [null, undefined, 7, '', 'x'.repeat(1000), {}, ['a']]) {
    assert.equal(store.open(id, names, NONE), null);
  }
  assert.equal(store.open('c', { _model_name: 7, _model_module: {} }, NONE), null);
  assert.equal(store.update('none', {}, NONE), null);
  assert.deepEqual(store.ids(), ['a']);
});

test('values are counted without recursion', () => {
  let deep = 'IPY_MODEL_end';
  for (let level = 0; level < 100_000; level++) {
    deep = [deep];
  }
  assert.ok(measure(deep) < 10_000_000);
  assert.equal(measure(Array(20_000_000)), Infinity);
  assert.ok(measure({ a: undefined, b: [null, undefined, 1] }) > 0);
});

test('buffers have paths of names and numbers', () => {
  const bytes = new Uint8Array([1, 2, 3, 4]);
  const view = new DataView(bytes.buffer, 1, 2);
  const read = readBuffers([['value', 0]], [view]);
  assert.deepEqual([...new Uint8Array(read[0].data)], [2, 3]);
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

test('a notebook keeps states as JupyterLab does', () => {
  const store = new WidgetStore();
  const buffers = [{ path: ['value'], data: new Uint8Array([9, 8]).buffer }];
  store.open('image', { ...names, _model_name: 'ImageModel', format: 'png' }, buffers);
  const { image } = JSON.parse(JSON.stringify(store.save(1e6))).state;
  assert.equal(image.model_name, 'ImageModel');
  assert.equal(image.state.format, 'png');
  assert.deepEqual(image.buffers, [{ encoding: 'base64', path: ['value'], data: 'CQg=' }]);
  assert.deepEqual(store.save(10).state, {}, 'no more than a file may have');
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
    removeMessageHook: id => hooks.delete(id)
  };
  const open = (widgets, id, state) => {
    const comm = createComm('jupyter.widget', id);
    widgets.open(comm, { content: { data: { state: { ...names, ...state } } }, buffers: [] });
    return comm;
  };
  return { connection, comms, hooks, sent, open };
}

function makeFrame(widgets, saved = () => undefined) {
  const got = [];
  const frame = widgets.attach({ send: ({ packet }) => got.push(...packet) }, saved);
  const receive = (message, buffers = []) => frame.receive(message, buffers);
  const answer = () => receive({ kind: 'done' });
  return { got, frame, receive, answer };
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
  const widgets = new KernelWidgets(kernel.connection, kernel.connection.createComm);
  const comm = kernel.open(widgets, 'slider', { value: 1 });
  const [one, two] = [makeFrame(widgets), makeFrame(widgets)];
  one.receive({ kind: 'want', ids: ['slider'] });
  two.receive({ kind: 'want', ids: ['slider'] });
  await turn();
  two.answer();
  one.receive({ kind: 'update', id: 'slider', state: { value: 2 }, paths: [] }, []);
  assert.deepEqual(
    kernel.sent.map(({ id, data }) => [id, data.state]),
    [['slider', { value: 2 }]]
  );
  assert.deepEqual(two.got.at(-1).state, [['value', 2]]);
  assert.equal(widgets.store.get('slider').attributes.get('value').value, 2);
  const [{ msg_id, end }] = kernel.sent;
  const echo = { method: 'echo_update', state: { value: 2 } };
  const before = [one.got.length, two.got.length];
  comm.onMsg({ content: { data: echo }, parent_header: { msg_id }, buffers: [] });
  assert.deepEqual([one.got.length, two.got.length], before, 'both know it');
  for (const value of [3, 4]) {
    one.receive({ kind: 'update', id: 'slider', state: { value }, paths: [] });
  }
  assert.equal(kernel.sent.length, 1, 'the kernel works at the first');
  end();
  await turn();
  assert.deepEqual(kernel.sent.at(-1).data.state, { value: 4 });
  one.answer();
  two.answer();
  comm.onMsg({ content: { data: echo }, parent_header: { msg_id: 'anothers' }, buffers: [] });
  assert.deepEqual(
    [one, two].map(({ got }) => got.at(-1).kind),
    ['update', 'update']
  );
});

test('a frame reaches no widget that it was not given, and opens no comm', async () => {
  const kernel = makeKernel();
  const widgets = new KernelWidgets(kernel.connection, kernel.connection.createComm);
  kernel.open(widgets, 'mine', {});
  kernel.open(widgets, 'other', {});
  const frame = makeFrame(widgets);
  frame.receive({ kind: 'want', ids: ['mine'] });
  await turn();
  const comms = kernel.comms.size;
  for (const message of [
    { kind: 'update', id: 'other', state: { value: 1 }, paths: [] },
    { kind: 'custom', id: 'none', content: {} },
    { kind: 'open', id: 'mine', target: 'jupyter.widget' },
    { kind: 'comm_open', id: 'new', target_name: 'evil', state: {} },
    { kind: 'update', id: ['mine'], state: {} },
    { kind: 'update', id: 'mine', state: {} },
    { kind: 'update', id: 'mine', state: {}, paths: [[{}]] },
    { kind: 'update', id: 'mine', state: {}, paths: 'x' },
    { kind: '__proto__', id: 'mine' },
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
  const widgets = new KernelWidgets(kernel.connection, kernel.connection.createComm);
  const comm = kernel.open(widgets, 'slider', { value: 0 });
  const frame = makeFrame(widgets);
  frame.receive({ kind: 'want', ids: ['slider'] });
  await turn();
  for (let n = 0; n < 100_000; n++) {
    frame.receive({ kind: 'custom', n, id: 'slider', content: n });
  }
  assert.ok(kernel.sent.length <= 100, `${kernel.sent.length} messages`);
  await turn();
  for (let value = 0; value < 100_000; value++) {
    update(comm, { value });
  }
  assert.ok(frame.got.length < 10, `${frame.got.length} messages`);
  frame.answer();
  const told = frame.got.filter(({ kind }) => kind === 'update').at(-1);
  assert.deepEqual(told.state, [['value', 99_999]], 'the newest value is told');

  const hung = makeFrame(widgets);
  hung.receive({ kind: 'want', ids: ['slider'] });
  const data = { method: 'custom', content: 1 };
  for (let it = 0; it < 1000; it++) {
    comm.onMsg({ content: { data }, parent_header: {}, buffers: [new ArrayBuffer(1024 * 1024)] });
  }
  hung.answer();
  const custom = hung.got.filter(({ kind }) => kind === 'custom').length;
  assert.ok(custom > 10 && custom <= 64, `${custom} MiB`);
  const before = hung.got.length;
  for (let it = 0; it < 1000; it++) {
    update(comm, { value: 'x'.repeat(16 * 1024 * 1024 + it) });
  }
  assert.ok(hung.got.length <= before + 2, `${hung.got.length - before} updates`);
});

test('a frame gets models as it asks for them', async () => {
  const kernel = makeKernel();
  const widgets = new KernelWidgets(kernel.connection, kernel.connection.createComm);
  kernel.open(widgets, 'a', {});
  kernel.open(widgets, 'b', {});
  const frame = makeFrame(widgets);
  const opened = () => frame.got.filter(({ kind }) => kind === 'open').map(({ id }) => id);
  frame.receive({ kind: 'want', ids: ['a', 'a', 7, null, {}] });
  frame.receive({ kind: 'want', ids: 'b' });
  await turn();
  assert.deepEqual(opened(), ['a']);
  frame.answer();
  frame.receive({ kind: 'want', ids: ['b'] });
  assert.deepEqual(opened(), ['a', 'b']);
});

test('what is linked has the same value, in the page and in the kernel', async () => {
  const kernel = makeKernel();
  const widgets = new KernelWidgets(kernel.connection, kernel.connection.createComm);
  const value = id => widgets.store.get(id).attributes.get('value')?.value;
  const comms = ['a', 'b', 'c'].map((id, value) => kernel.open(widgets, id, { value }));
  const ends = (source, target) => ({
    source: [`IPY_MODEL_${source}`, 'value'],
    target: [`IPY_MODEL_${target}`, 'value']
  });
  kernel.open(widgets, 'one', { ...link, ...ends('a', 'b') });
  kernel.open(widgets, 'two', { ...link, _model_name: 'DirectionalLinkModel', ...ends('b', 'c') });
  for (const rubbish of [{ source: 7 }, { source: [[['a']]] }, ends('a', 'none'), ends('b', 'a')]) {
    kernel.open(widgets, `bad${Math.random()}`, { ...link, ...rubbish });
  }
  assert.deepEqual(['a', 'b', 'c'].map(value), [0, 0, 0]);
  update(comms[0], { value: 5 });
  assert.deepEqual(['a', 'b', 'c'].map(value), [5, 5, 5]);
  update(comms[2], { value: 6 });
  assert.deepEqual(['a', 'b', 'c'].map(value), [5, 5, 6], 'it has one direction');
  while (kernel.sent.some(({ end }) => end !== null)) {
    for (const message of kernel.sent.filter(({ end }) => end !== null)) {
      message.end();
      message.end = null;
    }
    await turn();
  }
  const told = kernel.sent.filter(({ id }) => id === 'b').map(({ data }) => data.state);
  assert.deepEqual(told.at(-1), { value: 5 });
  comms[0].onClose?.();
  update(comms[1], { value: 8 });
  assert.equal(value('c'), 8);
});

test('a message is followed over few links, however many it changes', () => {
  const kernel = makeKernel();
  const widgets = new KernelWidgets(kernel.connection, kernel.connection.createComm);
  const all = Array.from({ length: 240 }, (_, it) => it);
  const many = value => Object.fromEntries(all.map(it => [`a${it}`, value + it]));
  const source = kernel.open(widgets, 'source', many(0));
  const connect = (from, to) => {
    const ends = {
      source: [`IPY_MODEL_${from[0]}`, from[1]],
      target: [`IPY_MODEL_${to}`, 'value']
    };
    kernel.open(widgets, `${from} ${to}`, {
      ...link,
      _model_name: 'DirectionalLinkModel',
      ...ends
    });
  };
  all.forEach(it => kernel.open(widgets, `t${it}`, { value: 0 }));
  all.forEach(it => connect(['source', `a${it}`], 't0'));
  all.slice(1).forEach(it => connect([`t${it - 1}`, 'value'], `t${it}`));
  let puts = 0;
  const put = widgets.store.put.bind(widgets.store);
  widgets.store.put = (...args) => {
    puts += 1;
    return put(...args);
  };
  for (let it = 0; it < 5; it++) {
    update(source, many(1000 * (it + 1)));
  }
  assert.ok(puts < 2000, `${puts} values`);
});

test('a circle of links that changes itself ends', () => {
  const kernel = makeKernel();
  const widgets = new KernelWidgets(kernel.connection, kernel.connection.createComm);
  const ids = Array.from({ length: 3000 }, (_, index) => `m${index}`);
  const comms = ids.map(id => kernel.open(widgets, id, { value: id }));
  ids.forEach((id, index) => {
    const target = [`IPY_MODEL_${ids[(index + 1) % ids.length]}`, 'value'];
    kernel.open(widgets, `link${id}`, { ...link, source: [`IPY_MODEL_${id}`, 'value'], target });
  });
  const state = { value: null };
  const data = { method: 'update', state, buffer_paths: [['value']] };
  comms[5].onMsg({ content: { data }, parent_header: {}, buffers: [new ArrayBuffer(8)] });
  const { buffers } = widgets.store.get('m6').attributes.get('value');
  assert.equal(buffers[0].data.byteLength, 8);
  assert.ok(kernel.sent.length <= 100);
});

test('a kernel that was restarted has none of its widgets', async () => {
  const kernel = makeKernel();
  const widgets = new KernelWidgets(kernel.connection, kernel.connection.createComm);
  kernel.open(widgets, 'slider', {});
  const frame = makeFrame(widgets);
  frame.receive({ kind: 'want', ids: ['slider'] });
  await turn();
  frame.answer();
  widgets.lost();
  assert.equal(frame.got.at(-1).kind, 'lost');
  assert.equal(widgets.store.size, 0);
  frame.receive({ kind: 'update', id: 'slider', state: {}, paths: [] }, []);
  assert.deepEqual(kernel.sent, []);
});

test('an output widget catches what its request prints', async () => {
  const kernel = makeKernel();
  const widgets = new KernelWidgets(kernel.connection, kernel.connection.createComm);
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
  const content = { data: { 'text/plain': 'c' }, metadata: {}, transient: { display_id: 'd' } };
  hook({ header: { msg_type: 'display_data' }, content });
  const { transient, ...kept } = content;
  assert.deepEqual(shown(), [{ output_type: 'display_data', ...kept }]);
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

test('a frame reaches no kernel without a sandbox, whatever a file has kept', async () => {
  const { connection, made, host } = makeGuarded('other');
  const frame = host.attach({ send: () => undefined }, connection, () => undefined);
  frame.receive({ kind: 'want', ids: ['a'] });
  await turn();
  assert.deepEqual(made, [], 'its widgets were asked for');
});

test('a frame that asks for kept widgets without end has the file read once', async () => {
  const { host } = makeGuarded('ours');
  let reads = 0;
  const sent = [];
  const frame = host.attach({ send: data => sent.push(data) }, null, () => {
    reads += 1;
    return { state: { kept: { model_name: 'M', model_module: 'm', state: {} } } };
  });
  for (let it = 0; it < 9000; it++) {
    frame.receive({ kind: 'want', ids: ['gone', 'kept'] });
  }
  await turn();
  assert.equal(reads, 1);
  assert.equal(sent.length, 1, 'it has not answered');
  frame.receive({ kind: 'done' });
  assert.deepEqual(
    sent[0].packet.concat(sent[1].packet.slice(0, 1)).map(({ kind }) => kind),
    ['none', 'saved']
  );
  assert.ok(sent[1].packet.length <= 2000);
  frame.receive({ kind: 'want', ids: ['__proto__', 'toString'] });
  frame.receive({ kind: 'done' });
  await turn();
  assert.deepEqual(new Set(sent.at(-1).packet.map(({ kind }) => kind)), new Set(['none']));
});
