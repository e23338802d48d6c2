/** What is computed on the bytes of a sandbox takes time in proportion to them. */
import assert from 'node:assert/strict';
import test from 'node:test';

import { escapeHidden, showName } from '../lib/dom.js';
import { indentJson } from '../lib/json_text.js';
import { pixelsOf } from '../lib/picture_sizes.js';
import { howToShow } from '../lib/preview.js';

/** Milliseconds of CPU. */
function cost(work, data) {
  const before = process.cpuUsage();
  work(data);
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
}

function bytes(start, unit, count) {
  const made = new Uint8Array(start.length + unit.length * count);
  made.set(start);
  for (let at = start.length; at < made.length; at++) {
    made[at] = unit[(at - start.length) % unit.length];
  }
  return made.buffer;
}

const GIF = [...new TextEncoder().encode('GIF89a'), ...Array(7).fill(0)];

const CASES = [
  ['JSON of escapes', text => indentJson(text, Infinity), n => `["${'\\"'.repeat(n)}"]`, 2_000_000],
  ['JSON of lists', text => indentJson(text, Infinity), n => `[${'[],'.repeat(n)}0]`, 50_000],
  ['characters that nobody sees', escapeHidden, n => '\u202ea'.repeat(n), 100_000],
  ['a name of spaces', showName, n => `${' '.repeat(n)}x`, 5_000_000],
  ['a name of words', showName, n => ' x'.repeat(n), 1_000_000],
  ['an ending', howToShow, n => '.a'.repeat(n), 1_000_000],
  ['blocks of a GIF', pixelsOf, n => bytes(GIF, [0x21, 0xf9, 0], n), 500_000],
  ['marks of a JPEG', pixelsOf, n => bytes([0xff, 0xd8, 0xff], [0xff, 0xd0], n), 500_000]
];

for (const [name, work, make, n] of CASES) {
  test(`twice as much takes twice the time: ${name}`, () => {
    const found = [];
    for (let round = 0; round < 5; round++) {
      const [small, large] = [n, 2 * n].map(size => {
        const data = make(size);
        return Math.min(...[1, 2, 3].map(() => cost(work, data)));
      });
      if (large <= 3 * small + 5) {
        return;
      }
      found.push(`${small} and ${large} ms`);
    }
    assert.fail(found.join(', '));
  });
}
