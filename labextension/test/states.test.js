/** Saved states: which one is meant, and what is shown of them, as text and within bounds. */

import assert from 'node:assert/strict';
import test from 'node:test';

import {
  MOST_NAMES,
  MOST_STATES,
  StateChoice,
  hasDifferences,
  listDifferences,
  makeNotice,
  stateBefore
} from '../lib/states.js';
import { MARKUP, openPage } from './page.js';

openPage();

const state = (name, cell, kind = 'named') => ({
  ...{ name, cell, kind },
  ...{ time: 1000, size: 3 * 1024 ** 2, what: `after cell ${cell}` }
});
const NONE = { added: [], changed: [], removed: [], more: false };

test('the state before a cell is the newest that fits, and none that a rewind has left', () => {
  const states = [
    state('old', 4),
    state('before-5', 4, 'automatic'),
    state('late', 7),
    state('before-rewind', 4, 'before-rewind')
  ];
  assert.equal(stateBefore(states, 5)?.name, 'before-5');
  assert.equal(stateBefore(states, 8)?.name, 'late');
  assert.equal(stateBefore(states, 6), null);
  assert.equal(stateBefore([], 1), null);
});

test('the newest states are shown, as text, and the newest is chosen at first', () => {
  const states = Array.from({ length: MOST_STATES + 5 }, (_, it) => state(`s${it}`, it));
  const choice = new StateChoice([...states, { ...state('last', 1), what: MARKUP }]);
  const radios = [...choice.node.querySelectorAll('input')];
  assert.equal(radios.length, MOST_STATES);
  assert.equal(choice.getValue(), 'last');
  radios[2].click();
  assert.equal(choice.getValue(), `s${MOST_STATES + 3}`);
  assert.equal(choice.node.querySelector('img'), null);
  assert.match(choice.node.textContent, /<img src=x.*and 6 older/s);
});

test('outputs that differ are named as text, some of each kind', () => {
  const removed = Array.from({ length: MOST_NAMES + 2 }, (_, it) => `f${it}`);
  const node = listDifferences({ ...NONE, added: [MARKUP, 'a\u202e.txt'], removed, more: true });
  assert.equal(node.querySelector('img'), null);
  assert.equal(node.querySelectorAll('li').length, 2 + MOST_NAMES);
  assert.match(node.textContent, /2 files added since/);
  assert.match(node.textContent, /a\\u202e\.txt/);
  assert.match(node.textContent, /and 2 more.*There may be others/s);
  assert.equal(/changed since/.test(node.textContent), false);
  assert.equal(hasDifferences(NONE), false);
  assert.equal(hasDifferences({ ...NONE, more: true }), true);
});

test('the notice says what is saved and does what its buttons say', () => {
  const done = [];
  const node = makeNotice(
    { since: 1000, size: 214 * 1024 ** 2 },
    () => done.push('resume'),
    () => done.push('anew')
  );
  assert.match(node.textContent, /^Saved state of .*, 214 MB/);
  node.querySelectorAll('button').forEach(it => it.click());
  assert.deepEqual(done, ['resume', 'anew']);
});
