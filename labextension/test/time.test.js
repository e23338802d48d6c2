/** What is computed on the bytes of a sandbox takes time in proportion to them. */
import assert from 'node:assert/strict';
import test from 'node:test';

import { escapeHidden, showName } from '../lib/dom.js';
import { isSmallPicture } from '../lib/inline.js';
import { howToShow, indentJson } from '../lib/preview.js';

/** Milliseconds of CPU. */
function cost(work, data) {
  const before = process.cpuUsage();
  work(data);
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
}

const CASES = [
  ['JSON of escapes', text => indentJson(text, Infinity), n => `["${'\\"'.repeat(n)}"]`, 2_000_000],
  ['JSON of lists', text => indentJson(text, Infinity), n => `[${'[],'.repeat(n)}0]`, 50_000],
  ['characters that nobody sees', escapeHidden, n => '\u202ea'.repeat(n), 100_000],
  ['a name of spaces', showName, n => `${' '.repeat(n)}x`, 5_000_000],
  ['a name of words', showName, n => ' x'.repeat(n), 1_000_000],
  ['an ending', howToShow, n => '.a'.repeat(n), 1_000_000],
  ['segments of a JPEG', isSmallPicture, n => `\xff\xd8${'\xff\xe0\0\x02'.repeat(n)}`, 500_000],
  ['passes of a JPEG', isSmallPicture, n => `\xff\xd8${'\xff\xda'.repeat(n)}`, 500_000]
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
