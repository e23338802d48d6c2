import assert from 'node:assert/strict';
import test from 'node:test';

import { MOST_LINES, compare, compareLines, decode } from '../lib/differences.js';
import { bytes } from './page.js';

test('lines that differ have their marks, with lines around them', () => {
  assert.deepEqual(compareLines('a\nb\nc\n', 'a\nB\nc\n'), [
    { mark: '@', text: 'line 1' },
    { mark: ' ', text: 'a' },
    { mark: '-', text: 'b' },
    { mark: '+', text: 'B' },
    { mark: ' ', text: 'c' }
  ]);
  assert.deepEqual(compareLines('same\n', 'same\n'), []);
});

test('texts without a common line are shown without comparing each with each', () => {
  const before = Array.from({ length: 5000 }, (_, index) => `old ${index}`).join('\n');
  const after = Array.from({ length: 5000 }, (_, index) => `new ${index}`).join('\n');
  const lines = compareLines(before, after);
  assert.match(lines[0].text, /little in common/);
  assert.equal(lines.length, 5001);
  const difference = compare('a.txt', bytes(before), bytes(after));
  assert.equal(difference.cut, true);
  assert.equal(difference.sections[0].lines.length, MOST_LINES);
});

function notebook(...cells) {
  return JSON.stringify({
    cells: cells.map(([id, source]) => ({ id, cell_type: 'code', source }))
  });
}

test('a notebook is compared cell by cell', () => {
  const before = notebook(['1', ['x = 1\n', 'y = 2']], ['2', 'gone'], ['3', 'same']);
  const after = notebook(['1', 'x = 1\ny = 3'], ['3', 'same'], ['4', 'fresh']);
  const { sections } = compare('n.ipynb', bytes(before), bytes(after));
  assert.deepEqual(
    sections.map(section => section.title),
    ['Cell 1 (code), changed', 'Cell 3 (code), new', 'A cell (code), removed']
  );
  assert.ok(sections[0].lines.some(line => line.mark === '+' && line.text === 'y = 3'));
});

test('a notebook whose outputs alone differ says so', () => {
  const one = JSON.stringify({ cells: [{ id: '1', source: 'x', outputs: [] }] });
  const two = JSON.stringify({ cells: [{ id: '1', source: 'x', outputs: [1] }] });
  const { sections } = compare('n.ipynb', bytes(one), bytes(two));
  assert.match(sections[0].title, /outputs or metadata differ/);
});

test('a file that only has the name of a notebook is text', () => {
  for (const text of ['no JSON', '[]', '{"cells": 7}', '{"cells": [null]}']) {
    const { kind, sections } = compare('n.ipynb', bytes('x'), bytes(text));
    assert.equal(kind, 'text');
    assert.equal(sections[0].title, '');
  }
});

test('pictures and bytes that are no text are told apart', () => {
  assert.deepEqual(compare('a/b.PNG', bytes('x'), bytes('y')), {
    kind: 'picture',
    type: 'image/png'
  });
  assert.equal(compare('a.html', bytes('<b>'), bytes('<i>')).kind, 'text');
  assert.equal(decode(new Uint8Array([0xff, 0xfe]).buffer), null);
  assert.equal(decode(bytes('a\0b')), null);
  assert.equal(compare('a', new Uint8Array([0xff]).buffer, bytes('')).kind, 'binary');
});
