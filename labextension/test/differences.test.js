import assert from 'node:assert/strict';
import test from 'node:test';

import { MAX_LINES, compare, compareLines, decode } from '../lib/differences.js';
import { bytes, openPage } from './page.js';

openPage();

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

test('texts that differ never have an empty difference', () => {
  const texts = ['a', 'a\n', 'a\r\n', '\ufeffa', 'a\u2028', 'a\x0c', 'a\x1c'];
  for (const before of texts) {
    for (const after of texts.filter(it => it !== before)) {
      const { sections } = compare('a.txt', bytes(before), bytes(after));
      assert.ok(sections[0].lines.some(line => line.mark === '+'));
    }
  }
  const lines = compareLines('# a\ncheck()\n', '# a\u2028check()\n');
  assert.deepEqual(
    lines.slice(1).map(line => line.mark + line.text),
    ['-# a', '-check()', '+# a\u2028check()']
  );
  assert.match(compareLines('a\n', 'a').at(-1).text, /no line end/);
});

test('texts without a common line are shown without comparing each with each', () => {
  const before = Array.from({ length: 5000 }, (_, index) => `old ${index}`).join('\n');
  const after = Array.from({ length: 5000 }, (_, index) => `new ${index}`).join('\n');
  const lines = compareLines(before, after);
  assert.match(lines[0].text, /little in common/);
  assert.equal(lines.length, MAX_LINES + 1); // the rest would not be shown
  const difference = compare('a.txt', bytes(before), bytes(after));
  assert.equal(difference.cut, true);
  assert.equal(difference.sections[0].lines.length, MAX_LINES);
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
  assert.match(sections[0].title, /The outputs of 1/);
});

test('a file that only has the name of a notebook is text', () => {
  for (const text of ['no JSON', '[]', '{"cells": 7}', '{"cells": [null]}']) {
    const { kind, sections } = compare('n.ipynb', bytes('x'), bytes(text));
    assert.equal(kind, 'text');
    assert.equal(sections[0].title, '');
  }
});

test('pictures and bytes that are no text are told apart', () => {
  assert.deepEqual(compare('a/b.PNG', bytes(''), bytes('x')), { kind: 'picture' });
  const drawing = compare('a.svg', bytes(''), bytes('<svg/>'));
  assert.equal(drawing.kind, 'text'); // first, always
  assert.equal(drawing.isPicture, true);
  assert.equal(compare('a.html', bytes('<b>'), bytes('<i>')).isPicture, false);
  assert.equal(decode(new Uint8Array([0xff, 0xfe]).buffer), null);
  assert.equal(decode(bytes('a\0b')), null);
  assert.equal(compare('a', new Uint8Array([0xff]).buffer, bytes('')).kind, 'binary');
});

function titles(before, after) {
  const { sections } = compare('n.ipynb', bytes(before), bytes(after));
  return sections.map(section => section.title);
}

test('what acts in a notebook is shown, whatever else is the same', () => {
  const cell = { id: '1', cell_type: 'markdown', source: 'import os', metadata: {} };
  const write = (cells, more = {}) => JSON.stringify({ cells, nbformat: 4, ...more });
  const kernel = name => ({ metadata: { kernelspec: { name } } });
  assert.deepEqual(
    titles(write([cell], kernel('gvisor-python')), write([cell], kernel('python3'))),
    ['The notebook itself: metadata, kernel']
  );
  assert.deepEqual(titles(write([cell]), write([{ ...cell, cell_type: 'code' }])), [
    'Cell 1 (code), changed, was markdown'
  ]);
  const other = { ...cell, id: '2' };
  assert.deepEqual(titles(write([cell, other]), write([other, cell])), [
    'Cells are in another order.'
  ]);
  assert.deepEqual(titles(write([cell]), write([{ ...cell, metadata: { a: 1 } }])), [
    'Cell 1, metadata'
  ]);
  const old = write([cell], { nbformat: 3 });
  const hidden = write([cell], { nbformat: 3, worksheets: [{ cells: ['EVIL'] }] });
  const { sections } = compare('n.ipynb', bytes(old), bytes(hidden));
  assert.equal(sections[0].title, '');
  assert.ok(sections[0].lines.some(({ mark, text }) => mark === '+' && text.includes('EVIL')));
});

test('a difference without end is cut before the page feels it', () => {
  const began = performance.now();
  const bodies = letter => Array.from({ length: 1500 }, (_, n) => `${letter}${n}`).join('\n');
  const cells = letter =>
    notebook(...Array.from({ length: 100 }, (_, index) => [`${index}`, bodies(letter)]));
  const many = count => notebook(...Array.from({ length: count }, (_, index) => [`${index}`, '']));
  const cases = [
    [cells('a'), cells('b'), 'n.ipynb'],
    [many(0), many(80_000), 'n.ipynb'],
    ['x', 'y'.repeat(8_000_000), 'line.txt'],
    ['x', `${'z'.repeat(2000)}\n`.repeat(3990), 'lines.txt']
  ];
  for (const [before, after, path] of cases) {
    const it = compare(path, bytes(before), bytes(after));
    const shown = it.sections.flatMap(({ lines }) => lines);
    assert.ok(it.sections.length <= 500);
    assert.ok(shown.length <= MAX_LINES);
    assert.ok(shown.reduce((sum, { text }) => sum + text.length, 0) < 500_000);
  }
  assert.ok(performance.now() - began < 30_000); // without the bounds it took minutes
});

test('no cell hides behind another one of its id, and no line behind its beginning', () => {
  const cell = (id, source) => ({ id, cell_type: 'code', source });
  const write = (...cells) => JSON.stringify({ nbformat: 4, cells });
  assert.deepEqual(titles(write(cell('1', 'a'), cell('1', 'b')), write(cell('1', 'b'))), [
    'Cell 1 (code), changed',
    'A cell (code), removed'
  ]);
  assert.deepEqual(
    titles(
      write({ cell_type: 'code', source: [{ a: 1 }] }),
      write({ cell_type: 'code', source: [{ a: 2 }] })
    ),
    ['Cell 1 (code), changed']
  );
  assert.deepEqual(titles(write(), write({ ...cell('1', 'a'), outputs: [{ data: {} }] })), [
    'Cell 1 (code), new, with outputs'
  ]);
  const long = end => bytes(`${'x'.repeat(2000)}${end}`);
  assert.equal(compare('a.txt', long('1'), long('2')).cut, true);
  assert.equal(compare('a.txt', bytes('a'), bytes('b')).cut, false);
});

test('a notebook with more values than there is time for says so', () => {
  const write = letter =>
    JSON.stringify({
      cells: Array.from({ length: 40_000 }, (_, n) => ({ id: `${n}`, source: letter.repeat(90) }))
    });
  const clock = performance.now;
  let time = 0;
  performance.now = () => (time += 10); // each look at the clock is 10 ms later
  try {
    const it = compare('n.ipynb', bytes(write('a')), bytes(write('b')));
    assert.ok(it.late && it.cut);
    assert.ok(it.sections.length < 200);
  } finally {
    performance.now = clock;
  }
});
