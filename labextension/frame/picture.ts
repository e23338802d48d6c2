/**
 * Pictures, sounds and films, by the name of their file. They are decoded in the frame's process,
 * however large they become. In an image element an SVG runs no script and loads nothing.
 */

import { add, addDocumentStyle, addStyle, register } from './renderer.js';

/** Pixels of a drawing: one that is larger is drawn smaller. */
const MAX_PIXELS = 16_000_000;

register<ArrayBuffer>(async (source, { name, dark, root }) => {
  addDocumentStyle(dark);
  addStyle(`img, canvas, video { max-width: 100%; max-height: max(100vh - 32px, 300px);
      object-fit: contain; object-position: 0 0 }
    img, canvas { background: white } audio { width: 100% }`);
  const type = typeOf(name);
  const url = URL.createObjectURL(new Blob([source], { type }));
  if (type.startsWith('image/')) {
    const image = document.createElement('img');
    image.alt = name;
    image.src = url;
    await ended(image, 'load', 'drawn');
    root.appendChild(type === 'image/svg+xml' ? drawOnce(image) : image);
    return;
  }
  const player = add(root, type.startsWith('video/') ? 'video' : 'audio');
  player.controls = true;
  player.preload = 'metadata';
  player.setAttribute('aria-label', name);
  player.src = url;
  await ended(player, 'loadedmetadata', 'played');
});

/** What kind of file this is; the browser looks into it for more, except for an SVG. */
function typeOf(name: string): string {
  const ending = (/\.([a-z0-9]+)$/i.exec(name)?.[1] ?? '').toLowerCase();
  const isSound = /^(flac|m4a|mp3|og[ag]|wav)$/.test(ending);
  const kind = isSound ? 'audio' : /^(mp4|ogv|webm)$/.test(ending) ? 'video' : 'image';
  return `${kind}/${ending === 'svg' ? 'svg+xml' : ending}`;
}

/**
 * A browser with a graphics card draws an SVG in a process that all pages share, for minutes if there
 * is much in it. A canvas that is read often is drawn in this one's.
 */
function drawOnce(image: HTMLImageElement): HTMLCanvasElement {
  const { naturalWidth: width, naturalHeight: height } = image;
  const scale = Math.min(devicePixelRatio, Math.sqrt(MAX_PIXELS / Math.max(width * height, 1)));
  const canvas = document.createElement('canvas');
  canvas.width = Math.ceil(width * scale);
  canvas.height = Math.ceil(height * scale);
  canvas.style.width = `${width}px`;
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', image.alt);
  canvas
    .getContext('2d', { willReadFrequently: true })
    ?.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function ended(node: HTMLElement, event: string, done: string): Promise<void> {
  return new Promise((resolve, reject) => {
    node.addEventListener(event, () => resolve());
    node.addEventListener('error', () =>
      reject(new Error(`This file cannot be ${done} by this browser; download it.`))
    );
  });
}
