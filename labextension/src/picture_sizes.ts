/**
 * How large a picture becomes when it is decoded, as its header says. A browser decodes it in the
 * process of JupyterLab, where 64 kB may become 2 GB. What counts is the content: a browser does
 * not believe a file's ending either.
 */

/** Pixels of a picture that is shown; each takes four bytes. */
export const MOST_PIXELS = 64_000_000;

/** Bytes at the beginning of an AVIF in which its sizes stand. */
const AVIF_HEAD = 64 * 1024;

/** Pixels of a picture; null for what is none, or has no size where its decoder looks for it. */
export function pixelsOf(bytes: ArrayBuffer): number | null {
  const view = new DataView(bytes);
  try {
    return readPixels(view);
  } catch (error) {
    if (error instanceof RangeError) {
      return null; // the file is shorter than its header
    }
    throw error;
  }
}

/** Whether a picture is not shown, as it is too large or none. An empty file is shown as nothing. */
export function isTooLarge(bytes: ArrayBuffer): boolean {
  return bytes.byteLength > 0 && (pixelsOf(bytes) ?? Infinity) > MOST_PIXELS;
}

function textAt(view: DataView, at: number, size: number): string {
  let text = '';
  for (let index = at; index < at + size; index++) {
    text += String.fromCharCode(view.getUint8(index));
  }
  return text;
}

function readPixels(view: DataView): number | null {
  const start = textAt(view, 0, 4);
  if (start === '\x89PNG') {
    return view.getUint32(16) * view.getUint32(20);
  }
  if (start === 'GIF8') {
    return readGif(view);
  }
  if (start.startsWith('\xff\xd8\xff')) {
    return readJpeg(view);
  }
  if (start === 'RIFF' && textAt(view, 8, 4) === 'WEBP') {
    return readWebp(view);
  }
  if (start.startsWith('BM')) {
    return view.getUint32(14, true) === 12
      ? view.getUint16(18, true) * view.getUint16(20, true)
      : Math.abs(view.getInt32(18, true) * view.getInt32(22, true));
  }
  if (start === '\0\0\x01\0' || start === '\0\0\x02\0') {
    return 256 * 256; // a browser refuses an icon that is larger than its list says
  }
  return textAt(view, 4, 4) === 'ftyp' ? readAvif(view) : null;
}

/** The first frame may be larger than the screen, which then grows. */
function readGif(view: DataView): number | null {
  const flags = view.getUint8(10);
  let at = 13 + (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);
  while (view.getUint8(at) === 0x21) {
    for (at += 2; view.getUint8(at) !== 0; at += view.getUint8(at) + 1) {
      // a block of an extension
    }
    at += 1;
  }
  if (view.getUint8(at) !== 0x2c) {
    return null;
  }
  const [left, top, width, height] = [1, 3, 5, 7].map(offset => view.getUint16(at + offset, true));
  return (
    Math.max(view.getUint16(6, true), (left ?? 0) + (width ?? 0)) *
    Math.max(view.getUint16(8, true), (top ?? 0) + (height ?? 0))
  );
}

function readJpeg(view: DataView): number {
  for (let at = 2; ;) {
    while (view.getUint8(at) !== 0xff) {
      at += 1;
    }
    while (view.getUint8(at) === 0xff) {
      at += 1;
    }
    const marker = view.getUint8(at);
    at += 1;
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      return view.getUint16(at + 3) * view.getUint16(at + 5);
    }
    if (marker > 1 && !(marker >= 0xd0 && marker <= 0xd7)) {
      at += view.getUint16(at);
    }
  }
}

function readWebp(view: DataView): number | null {
  switch (textAt(view, 12, 4)) {
    case 'VP8X':
      return ((view.getUint32(24, true) & 0xffffff) + 1) * ((view.getUint32(26, true) >>> 8) + 1);
    case 'VP8L': {
      const bits = view.getUint32(21, true);
      return ((bits & 0x3fff) + 1) * (((bits >>> 14) & 0x3fff) + 1);
    }
    case 'VP8 ':
      return (view.getUint16(26, true) & 0x3fff) * (view.getUint16(28, true) & 0x3fff);
    default:
      return null;
  }
}

/** The largest of its parts, each of which has a property with its size. */
function readAvif(view: DataView): number | null {
  let most: number | null = null;
  for (let at = 8; at + 16 <= Math.min(view.byteLength, AVIF_HEAD); at++) {
    if (view.getUint32(at) === 0x69737065) {
      most = Math.max(most ?? 0, view.getUint32(at + 8) * view.getUint32(at + 12));
    }
  }
  return most;
}
