/**
 * Which pictures may be decoded in JupyterLab's own process: PNG and JPEG whose header says that they
 * are no larger than a screenshot. Of all others 64 kB may become gigabytes: a frame draws them.
 */

/** Pixels of such a picture; each takes four bytes. */
export const MOST_PIXELS = 64_000_000;
/** Passes over a JPEG, each of which costs as many steps as it has pixels. */
const MOST_SCANS = 20;

const PNG = '\x89PNG\r\n\x1a\n\0\0\0\rIHDR';
const JPEG = '\xff\xd8';
/** Segments of a JPEG that may come before the one with its size, and those. */
const BEFORE = /^\xff[\xc4\xcc\xdb-\xdd\xe0-\xef\xfe]/;
const SIZE = /^\xff[\xc0-\xc2\xc9\xca]/;

/**
 * Whether a picture is a PNG that does not move, or a JPEG with no other one in it, of at most
 * ``MOST_PIXELS``. What a decoder might read in another way is none.
 *
 * @param bytes one character for each byte, as ``atob`` makes them
 */
export function isSmallPicture(bytes: string): boolean {
  const number = (at: number, size: number): number => {
    let sum = 0;
    for (let index = at; index < at + size; index++) {
      sum = sum * 256 + bytes.charCodeAt(index);
    }
    return sum;
  };
  const isSmall = (pixels: number): boolean => pixels > 0 && pixels <= MOST_PIXELS;
  if (bytes.startsWith(PNG)) {
    return isSmall(number(16, 4) * number(20, 4)) && !bytes.includes('acTL');
  }
  const isOne = bytes.split('\xff\xda', MOST_SCANS + 2).length <= MOST_SCANS + 1;
  if (!bytes.startsWith(JPEG) || !isOne || bytes.includes('MPF\0')) {
    return false;
  }
  for (let at = 2; at + 9 <= bytes.length;) {
    const marker = bytes.slice(at, at + 2);
    const length = number(at + 2, 2);
    if (SIZE.test(marker)) {
      return isSmall(number(at + 5, 2) * number(at + 7, 2));
    }
    if (!BEFORE.test(marker) || length < 2) {
      return false;
    }
    at += 2 + length;
  }
  return false;
}
