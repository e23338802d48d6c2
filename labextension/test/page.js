/** A page without a browser, and answers as the server would send them. */

import { JSDOM } from 'jsdom';

export function openPage() {
  const { window } = new JSDOM('<!doctype html><body></body>', { pretendToBeVisual: true });
  globalThis.window = window;
  globalThis.document = window.document;
  globalThis.DOMParser = window.DOMParser;
}

export const MARKUP = '<img src=x onerror="alert(1)">';

export function sandboxAnswer(fields = {}) {
  return {
    kernel_id: 'k1',
    id: 'abc',
    identity: 'container_abc',
    kernel_name: 'gvisor-python',
    display_name: 'Python 3 (gVisor)',
    language: 'python',
    state: 'idle',
    memory: { used: 212 * 1024 ** 2, limit: 4 * 1024 ** 3 },
    cpu_seconds: 1.5,
    processes: 3,
    image: 'host',
    created: 1000,
    folder: '/home/anna/project',
    mounts: [
      { source: '/home/anna/project', target: '/mnt/x', read_only: true, description: 'uploads' },
      { source: '/usr', target: '/usr', read_only: true, description: 'programs' }
    ],
    egress: [],
    start: { kind: 'snapshot', seconds: 0.4 },
    waits_for: '',
    node: null,
    last_death: null,
    release: { gvisor_kernel: '1.0', runsc: '2026' },
    log: true,
    transcript: true,
    workspace: { uploads: '/home/anna/project', outputs: null, is_home: false },
    project: null,
    hibernated: null,
    unkept: null,
    ...fields
  };
}

export function bytes(text) {
  return new TextEncoder().encode(text).buffer;
}

export function changeAnswer(fields) {
  return {
    kind: 'added',
    type: 'file',
    size: 1,
    old_size: null,
    state: 's',
    conflict: null,
    is_refused: false,
    runs: null,
    ...fields
  };
}

/** The workspace of a notebook that lies directly in a home. */
export const HOME = { uploads: null, outputs: null, is_home: true };

export const noAction = () => {};

/** Waits until what was begun by a click has been done. */
export async function settle() {
  for (let turn = 0; turn < 20; turn += 1) {
    await Promise.resolve();
  }
}

/** A clock that moves when it is told. */
export class Clock {
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
