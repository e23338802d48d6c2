import assert from 'node:assert/strict';
import test from 'node:test';

import { MOST_PIXELS, isTooLarge, pixelsOf } from '../lib/picture_sizes.js';

const ascii = text => [...text].map(letter => letter.charCodeAt(0));
const little = (value, size) => Array.from({ length: size }, (_, at) => (value >>> (8 * at)) & 255);
const big = (value, size) => little(value, size).reverse();
const file = (...parts) => Uint8Array.from(parts.flat()).buffer;

const WIDTH = 300;
const HEIGHT = 200;
const screen = (width, height) => [...little(width, 2), ...little(height, 2)];
const webp = (kind, ...rest) => file(ascii('RIFF'), little(0, 4), ascii(`WEBP${kind}`), ...rest);

/** The beginnings of files, as their decoders read them. */
const PICTURES = {
  png: file(
    [0x89],
    ascii('PNG\r\n\x1a\n'),
    big(13, 4),
    ascii('IHDR'),
    big(WIDTH, 4),
    big(HEIGHT, 4)
  ),
  gif: file(
    ascii('GIF89a'),
    screen(1, 1),
    [0x80, 0, 0, ...Array(6).fill(1)],
    [0x21, 0xf9, 4, 1, 2, 3, 4, 0],
    [0x2c, ...screen(100, 50), ...screen(200, 150)]
  ),
  jpeg: file(
    [0xff, 0xd8, 0xff, 0xe0, ...big(11, 2), 0xff, 0xc0, 0, 17, 8, ...big(1, 2), ...big(1, 2)],
    [0xff, 0xff, 0xc2, ...big(17, 2), 8, ...big(HEIGHT, 2), ...big(WIDTH, 2)]
  ),
  extended: webp('VP8X', little(10, 4), little(0, 4), little(WIDTH - 1, 3), little(HEIGHT - 1, 3)),
  lossless: webp('VP8L', little(10, 4), [0x2f], little((WIDTH - 1) | ((HEIGHT - 1) << 14), 4)),
  lossy: webp('VP8 ', little(10, 4), [0, 0, 0, 0x9d, 1, 0x2a], screen(WIDTH, HEIGHT)),
  bmp: file(ascii('BM'), Array(12).fill(0), little(40, 4), little(WIDTH, 4), little(-HEIGHT, 4)),
  old: file(ascii('BM'), Array(12).fill(0), little(12, 4), screen(WIDTH, HEIGHT)),
  avif: file(
    [...big(24, 4), ...ascii('ftypavif'), ...Array(40).fill(0)],
    [...ascii('ispe'), ...big(0, 4), ...big(1, 4), ...big(1, 4)],
    [...ascii('ispe'), ...big(0, 4), ...big(WIDTH, 4), ...big(HEIGHT, 4)]
  )
};

for (const [kind, content] of Object.entries(PICTURES)) {
  test(`the size of a picture is in its header: ${kind}`, () => {
    assert.equal(pixelsOf(content), WIDTH * HEIGHT);
    assert.equal(isTooLarge(content), false);
    for (let size = 1; size < content.byteLength; size++) {
      const known = pixelsOf(content.slice(0, size)); // a file that was cut is no error
      assert.ok(known === null || known <= WIDTH * HEIGHT);
    }
  });
}

test('what is too large, or no picture that a browser knows, is not shown', () => {
  const png = side =>
    file([0x89], ascii('PNG\r\n\x1a\n'), Array(8).fill(0), big(side, 4), big(side, 4));
  assert.equal(MOST_PIXELS, 8000 ** 2);
  assert.equal(isTooLarge(png(8000)), false);
  assert.equal(isTooLarge(png(8001)), true);
  assert.equal(isTooLarge(file(ascii('GIF89a'), screen(65535, 65535), [0, 0, 0], [0x3b])), true);
  assert.equal(isTooLarge(file(ascii('<svg/>'))), true);
  assert.equal(isTooLarge(file()), false);
});
