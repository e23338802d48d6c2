import assert from 'node:assert/strict';
import test from 'node:test';

import { readSandbox } from '../lib/contract.js';
import { describeState, formatBytes, formatSeconds, memoryShare } from '../lib/format.js';
import { History, SPAN_SECONDS, plotPoints } from '../lib/history.js';
import { describeSpec, isOurs, kernelToWarm } from '../lib/specs.js';
import { PAUSE_SECONDS, QUIET_SECONDS, Warmer } from '../lib/warm.js';
import { sandboxAnswer } from './page.js';

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
  const say = fields => describeState(readSandbox(sandboxAnswer(fields)));
  assert.equal(say({}), '212 MB of 4 GB');
  assert.equal(say({ state: 'stopped' }), 'stopped, 212 MB of 4 GB');
  assert.equal(say({ state: 'starting' }), 'starting from snapshot');
  assert.equal(say({ state: 'starting', start: null }), 'starting');
  assert.equal(say({ memory: { used: null, limit: 1024 ** 3 } }), 'limit 1 GB');
  assert.equal(memoryShare(readSandbox(sandboxAnswer({ memory: { used: 1, limit: 0 } }))), null);
});

test('an answer of another form is refused, and figures that are none are unknown', () => {
  assert.throws(() => readSandbox([]));
  assert.throws(() => readSandbox(sandboxAnswer({ kernel_id: 7 })));
  assert.equal(readSandbox(sandboxAnswer({ cpu_seconds: '9' })).cpuSeconds, null);
  assert.equal(readSandbox(sandboxAnswer({ state: 'dancing' })).state, 'ended');
});

test('the history has five minutes of memory, and CPU as a share of a core', () => {
  const history = new History();
  const add = (time, cpu) => history.add(readSandbox(sandboxAnswer({ cpu_seconds: cpu })), time);
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

test('a card says what its kernelspec says, and invents nothing', () => {
  assert.equal(
    describeSpec(SPECS.kernelspecs.ours),
    'Runs in a sandbox. Image: data. Limits: memory 8G, as configured.'
  );
  assert.equal(describeSpec(SPECS.kernelspecs.other), null);
});

/** A clock that moves when it is told. */
class Clock {
  time = 0;
  waiting = [];

  now() {
    return this.time;
  }

  after(seconds, call) {
    const entry = { at: this.time + seconds, call };
    this.waiting.push(entry);
    return () => {
      this.waiting = this.waiting.filter(other => other !== entry);
    };
  }

  move(seconds) {
    this.time += seconds;
    const due = this.waiting.filter(entry => entry.at <= this.time);
    this.waiting = this.waiting.filter(entry => entry.at > this.time);
    due.forEach(entry => entry.call());
  }
}

test('of many folders only the last is made ready, and not too often', () => {
  const clock = new Clock();
  const sent = [];
  const warmer = new Warmer(async (name, path) => {
    sent.push(path);
    throw new Error('refused'); // which is nobody's trouble
  }, clock);
  warmer.want('ours', 'a');
  warmer.want('ours', 'b');
  assert.deepEqual(sent, []);
  clock.move(QUIET_SECONDS);
  assert.deepEqual(sent, ['b']);
  warmer.want('ours', 'c');
  clock.move(PAUSE_SECONDS / 2);
  assert.deepEqual(sent, ['b']);
  warmer.want('ours', 'd');
  clock.move(PAUSE_SECONDS / 2);
  assert.deepEqual(sent, ['b', 'd']);
  clock.move(PAUSE_SECONDS * 10);
  assert.deepEqual(sent, ['b', 'd']);
});
