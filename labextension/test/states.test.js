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
const told = (outputs, more = {}) => ({ outputs, undone: [], refused: [], ...more });

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
  assert.deepEqual(choice.getValue(), { name: 'last', undo: [] });
  radios[2].click();
  assert.equal(choice.getValue().name, `s${MOST_STATES + 3}`);
  assert.equal(choice.node.querySelector('img'), null);
  assert.match(choice.node.textContent, /<img src=x.*and 6 older/s);
});

test('what was applied since the chosen state is shown, and undone only if that is ticked', () => {
  const states = [
    { ...state('one', 1), time: 1 },
    { ...state('two', 2), time: 3 }
  ];
  const applied = [
    { undo: 'b', time: 4, count: 1, paths: [MARKUP] },
    { undo: 'a', time: 2, count: 1001, paths: Array.from({ length: 1000 }, (_, it) => `f${it}`) }
  ];
  const choice = new StateChoice(states, applied);
  document.body.append(choice.node); // a browser tells of no change elsewhere
  const [two, one] = choice.node.querySelectorAll('[type=radio]');
  const tick = () => choice.node.querySelector('[type=checkbox]').click();
  assert.match(choice.node.textContent, /what was applied since then:<img/);
  assert.equal(choice.node.querySelectorAll('li').length, 1);
  assert.deepEqual(choice.getValue(), { name: 'two', undo: [] });
  tick();
  assert.deepEqual(choice.getValue(), { name: 'two', undo: ['b'] });
  one.click(); // what was ticked was another list
  assert.deepEqual(choice.getValue(), { name: 'one', undo: [] });
  assert.match(choice.node.textContent, /and 902 more$/);
  tick();
  assert.deepEqual(choice.getValue(), { name: 'one', undo: ['b', 'a'] });
  two.click();
  tick();
  assert.deepEqual(choice.getValue().undo, ['b']);
  const none = new StateChoice(states, applied.slice(2));
  assert.equal(none.node.querySelector('[type=checkbox]'), null);
});

test('outputs that differ are named as text, some of each kind', () => {
  const removed = Array.from({ length: MOST_NAMES + 2 }, (_, it) => `f${it}`);
  const added = [MARKUP, 'a\u202e.txt'];
  const node = listDifferences(told({ ...NONE, added, removed, more: true }));
  assert.equal(node.querySelector('img'), null);
  assert.equal(node.querySelectorAll('li').length, 2 + MOST_NAMES);
  assert.match(node.textContent, /2 files added since/);
  assert.match(node.textContent, /a\\u202e\.txt/);
  assert.match(node.textContent, /and 2 more.*There may be others/s);
  assert.equal(/changed since/.test(node.textContent), false);
  assert.equal(hasDifferences(told(NONE)), false);
  assert.equal(hasDifferences(told({ ...NONE, more: true })), true);
});

test('what was undone on the disk is named, and what was not, with the reason', () => {
  const done = told(NONE, { undone: ['a'], refused: [{ path: MARKUP, reason: 'it is new' }] });
  assert.equal(hasDifferences(done), true);
  const text = listDifferences(done).textContent;
  assert.match(text, /^1 file as before they were applied:a1 file not undone:<img.*: it is new$/);
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
