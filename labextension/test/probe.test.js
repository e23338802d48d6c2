import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import vm from 'node:vm';

const source = new URL('../../gvisor_kernel/artifacts/frame/probe.js', import.meta.url);

test('the probe leaves its document only when that has told of its load', async () => {
  // The outer frame counts two loads. One that never came, as the request had failed before it,
  // kept a page waiting for a minute.
  const told = [];
  let load = null;
  vm.runInNewContext(readFileSync(source, 'utf8'), {
    URL,
    document: { baseURI: 'http://localhost/' },
    fetch: () => Promise.reject(new Error('refused')),
    addEventListener: (name, hear) => (load = name === 'load' ? hear : load),
    setTimeout,
    parent: { postMessage: message => told.push(message) },
    location: { replace: url => told.push(String(url)) }
  });
  await new Promise(resolve => setTimeout(resolve));
  assert.deepEqual(JSON.parse(JSON.stringify(told)), [{ request: false }]);
  load();
  await new Promise(resolve => setTimeout(resolve));
  assert.equal(told[1], 'http://localhost/frame/probe');
});
