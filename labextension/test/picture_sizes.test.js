import assert from 'node:assert/strict';
import test from 'node:test';

import { MOST_PIXELS, isSmallPicture } from '../lib/inline.js';

const text = bytes => String.fromCharCode(...bytes);
const big = (value, size) =>
  text(Array.from({ length: size }, (_, at) => (value >>> (8 * (size - 1 - at))) & 255));

const png = (width, height, rest = '') =>
  `\x89PNG\r\n\x1a\n${big(13, 4)}IHDR${big(width, 4)}${big(height, 4)}\x08\0\0\0\0${rest}`;
const segment = (marker, content) => `\xff${marker}${big(content.length + 2, 2)}${content}`;
const size = (width, height, marker = '\xc0') =>
  segment(marker, `\x08${big(height, 2)}${big(width, 2)}\x01\x01\x11\0`);
const jpeg = (...parts) => `\xff\xd8${parts.join('')}`;
const JFIF = segment('\xe0', 'JFIF\0\x01\x01\0');

test('a PNG or JPEG of the size of a screenshot is small', () => {
  assert.equal(MOST_PIXELS, 8000 ** 2);
  for (const picture of [
    png(8000, 8000),
    png(1, 1, `${big(0, 4)}IDAT`),
    jpeg(JFIF, size(8000, 8000)),
    jpeg(
      JFIF,
      segment('\xfe', 'a comment'),
      segment('\xdb', '\0'),
      size(300, 200, '\xc2'),
      '\xff\xda'
    )
  ]) {
    assert.equal(isSmallPicture(picture), true, picture.slice(0, 40));
    for (let end = 0; end < picture.length; end++) {
      isSmallPicture(picture.slice(0, end)); // a file that was cut is no error
    }
  }
});

test('what is larger, moves, has another picture in it, or may be read otherwise, is not', () => {
  for (const [what, picture] of Object.entries({
    nothing: '',
    empty: png(0, 8),
    large: png(8000, 8001),
    huge: png(0x7fffffff, 0x7fffffff),
    moves: png(8, 8, `${big(8, 4)}acTL`),
    'a header elsewhere': png(8, 8).replace(big(13, 4), big(12, 4)),
    'a large JPEG': jpeg(JFIF, size(8000, 8001)),
    'many passes': jpeg(size(8, 8, '\xc2'), '\xff\xda'.repeat(21)),
    'a picture in a picture': jpeg(segment('\xe2', 'MPF\0'), size(8, 8)),
    'bytes between': jpeg(JFIF, '\xff', segment('\xc0', size(8, 8)), size(60000, 60000)),
    'a mark without a length': jpeg('\xff\xd0', size(8, 8)),
    'a length that is none': jpeg('\xff\xe1\0\0', size(8, 8)),
    'no length': jpeg('\xff\xe1\0\x01', size(8, 8)),
    'a JPEG of a rare kind': jpeg(size(8, 8, '\xc3')),
    'no size': jpeg(JFIF, '\xff\xda'),
    gif: 'GIF89a\x01\0\x01\0\x80\0\0',
    webp: 'RIFF\0\0\0\0WEBPVP8 ',
    svg: '<svg xmlns="http://www.w3.org/2000/svg"/>'
  })) {
    assert.equal(isSmallPicture(picture), false, what);
  }
});
