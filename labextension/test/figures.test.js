import assert from 'node:assert/strict';
import test from 'node:test';

import { describeState, formatBytes, formatSeconds, memoryShare } from '../lib/format.js';
import { History, SPAN_SECONDS, plotPoints } from '../lib/history.js';
import { describeSpec, isOurs, kernelToWarm } from '../lib/specs.js';
import { Wishes } from '../lib/wishes.js';
import { Clock, sandboxAnswer } from './page.js';

test('sizes and times are as people read them', () => {
  assert.equal(formatBytes(0), '0 B');
  assert.equal(formatBytes(212 * 1024 ** 2), '212 MB');
  assert.equal(formatBytes(4 * 1024 ** 3), '4 GB');
  assert.equal(formatBytes(1.5 * 1024 ** 3), '1.5 GB');
  assert.equal(formatBytes(1024 ** 3 - 1), '1.0 GB');
  assert.equal(formatSeconds(0.44), '0.4 s');
  assert.equal(formatSeconds(61), '1 min');
  assert.equal(formatSeconds(3700), '1 h 1 min');
});

test('a sandbox says its state in words', () => {
  const say = fields => describeState(sandboxAnswer(fields));
  const waits = { state: 'waiting', waits_for: 'waiting for resources: job 17, 3 before it' };
  assert.equal(say(waits), 'waiting for resources: job 17, 3 before it');
  assert.equal(say({}), '212 MB of 4 GB');
  assert.equal(say({ state: 'busy' }), '212 MB of 4 GB');
  assert.equal(say({ state: 'starting' }), 'starting from snapshot');
  assert.equal(say({ state: 'starting', start: null }), 'starting');
  assert.equal(say({ memory: { used: null, limit: 1024 ** 3 } }), 'limit 1 GB');
  assert.equal(memoryShare(sandboxAnswer({ memory: { used: 1, limit: 0 } })), null);
});

test('the history has five minutes of memory, and CPU as a share of a core', () => {
  const history = new History();
  const add = (time, cpu) => history.add(sandboxAnswer({ cpu_seconds: cpu }), time);
  add(0, 10);
  add(2, 11);
  add(4, 1); // a fresh sandbox counts from zero again
  add(6, 5);
  assert.deepEqual(
    history.cpu('k1').map(sample => sample.value),
    [0.5, 2]
  );
  add(5 + SPAN_SECONDS, 6);
  assert.deepEqual(
    history.memory('k1').map(sample => sample.time),
    [6, 5 + SPAN_SECONDS]
  );
  history.keep(new Set());
  assert.deepEqual(history.memory('k1'), []);
});

test('a plot has now at its right and the limit at its top', () => {
  const samples = [
    { time: 0, value: 0 },
    { time: SPAN_SECONDS, value: 20 }
  ];
  assert.equal(plotPoints(samples, SPAN_SECONDS, 10, 100, 24), '0.0,24.0 100.0,0.0');
});

const SPECS = {
  default: 'python3',
  kernelspecs: {
    python3: { name: 'python3', display_name: 'Python 3', metadata: {} },
    ours: {
      name: 'ours',
      display_name: 'Python 3 (gVisor)',
      metadata: {
        kernel_provisioner: {
          provisioner_name: 'gvisor-provisioner',
          config: { memory_limit: '8G', image: 'data' }
        }
      }
    },
    other: {
      name: 'other',
      display_name: 'Other',
      metadata: { kernel_provisioner: { provisioner_name: 'local-provisioner' } }
    }
  }
};

test('only kernelspecs with our provisioner are ours', () => {
  assert.equal(isOurs(SPECS, 'ours'), true);
  assert.equal(isOurs(SPECS, 'python3'), false);
  assert.equal(isOurs(SPECS, 'other'), false);
  assert.equal(isOurs(SPECS, 'absent'), false);
  assert.equal(isOurs(null, 'ours'), false);
  assert.equal(kernelToWarm(SPECS), 'ours');
  assert.equal(kernelToWarm({ ...SPECS, kernelspecs: { python3: undefined } }), null);
});

test('a card says image and limits that hold, and nothing where they are not known', () => {
  const limits = { memory: 8 * 1024 ** 3, disk: 2 * 1024 ** 3, processes: 512, cpu_shares: 1024 };
  const facts = { name: 'ours', image: 'data', limits, problem: null };
  assert.equal(
    describeSpec(facts),
    'Runs in a sandbox. Image: data. Limits: memory 8 GB, files 2 GB, 512 processes, CPU shares 1024.'
  );
  assert.match(describeSpec({ ...facts, image: 'host' }), /Image: this computer's programs\./);
  const wrong = { name: 'wrong', image: null, limits: null, problem: 'memory_limit' };
  assert.equal(describeSpec(wrong), null);
  assert.equal(describeSpec(undefined), null);
});

test('of many wishes only the last is followed, and not too often', () => {
  const clock = new Clock();
  const followed = [];
  let wish = '';
  const wishes = new Wishes(0.5, 10, clock, () => followed.push(wish));
  const want = text => {
    wish = text;
    wishes.want();
  };
  want('a');
  want('b');
  assert.deepEqual(followed, []);
  clock.move(0.5);
  assert.deepEqual(followed, ['b']);
  want('c');
  clock.move(5);
  assert.deepEqual(followed, ['b']);
  want('d');
  clock.move(5);
  assert.deepEqual(followed, ['b', 'd']);
  clock.move(100);
  assert.deepEqual(followed, ['b', 'd']);
});
