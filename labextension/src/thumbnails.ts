/**
 * Small pictures in place of icons, in the list of outputs. The page decodes them itself, so only what
 * ``isSmallPicture`` lets pass: few bytes, few pixels, nothing that moves. Others keep their icons.
 */

import pLimit from 'p-limit';

import type { ArtifactClient } from './artifacts.js';
import type { Outputs } from './contract.js';
import { element } from './dom.js';
import { isSmallPicture } from './inline.js';

type File = Outputs['files'][number];

const MOST_THUMBNAILS = 24;
const MOST_BYTES = 1024 * 1024;
/** Bytes that become characters by one call. */
const PART = 8192;
/** Pixels of a picture; each takes four bytes. */
const MOST_PIXELS = 6_000_000;

export class Thumbnails {
  /** By the state of their files, so that a list that is drawn again asks nothing again. */
  private known = new Map<string, Promise<string | null>>();
  private readonly turns = pLimit(1);

  constructor(
    private readonly client: Pick<ArtifactClient, 'read'>,
    private readonly kernelId: string
  ) {}

  /** Puts pictures into the places of these files. Those of files that are gone are forgotten. */
  show(places: readonly (readonly [File, HTMLElement])[]): void {
    const before = this.known;
    this.known = new Map();
    for (const [file, place] of places.filter(([it]) => mayShow(it)).slice(0, MOST_THUMBNAILS)) {
      const key = JSON.stringify(file);
      const found =
        before.get(key) ?? this.turns(() => (this.known.has(key) ? this.read(file) : null));
      this.known.set(key, found);
      void found.then(url => url !== null && place.replaceChildren(draw(url)));
    }
  }

  private async read({ path }: File): Promise<string | null> {
    try {
      const { bytes } = await this.client.read({ kernel_id: this.kernelId, path });
      if (bytes.byteLength > MOST_BYTES) {
        return null; // it has grown since it was listed
      }
      let raw = '';
      for (let at = 0; at < bytes.byteLength; at += PART) {
        raw += String.fromCharCode(...new Uint8Array(bytes.slice(at, at + PART)));
      }
      if (!isSmallPicture(raw, MOST_PIXELS)) {
        return null;
      }
      return `data:image/${raw.startsWith('\x89') ? 'png' : 'jpeg'};base64,${btoa(raw)}`;
    } catch {
      return null; // it is gone, or the server does not answer: the icon stays
    }
  }
}

function mayShow({ path, size }: File): boolean {
  return /\.(png|jpe?g)$/i.test(path) && size <= MOST_BYTES;
}

function draw(url: string): HTMLImageElement {
  return element('img', {
    class: 'gk-thumbnail',
    attributes: { src: url, alt: '', decoding: 'async' }
  });
}
