/** What differs between two versions of a file: lines of a text, cells of a notebook. */

import { structuredPatch } from 'diff';

import { compareNotebooks } from './notebooks.js';

export type Mark = ' ' | '+' | '-' | '@';

export interface Line {
  readonly mark: Mark;
  readonly text: string;
}

export interface Section {
  readonly title: string;
  readonly lines: readonly Line[];
}

export type Difference =
  | {
      readonly kind: 'text';
      readonly sections: readonly Section[];
      /** Something is not shown. */
      readonly cut: boolean;
      /** Comparing was stopped, since it took too long. */
      readonly late: boolean;
      /** The text is a picture, too: shown as one if the person asks for it. */
      readonly isPicture: boolean;
    }
  | { readonly kind: 'picture' }
  | { readonly kind: 'binary' };

/** A page with more than this is slow, and nobody reads it. */
export const MAX_LINES = 4000;
const MAX_CHARACTERS = 400_000;
const MAX_LINE = 1000;
const MAX_SECTIONS = 500;
/** Texts above it are not compared: only the beginning of the new one is shown. */
const MAX_COMPARED = 4_000_000;
const MAX_MILLISECONDS = 1000;
/** Two texts without a common line cost time that grows with the product of their sizes. */
const MAX_EDITS = 3000;

/** Pictures that a browser draws; an SVG is a text, too. */
const PICTURE = /^(avif|bmp|gif|ico|jpe?g|png|svg|webp)$/;

function extension(path: string): string {
  return /\.([a-z0-9]+)$/i.exec(path)?.[1]?.toLowerCase() ?? '';
}

/** The text of a file; null if its bytes are no UTF-8 text. */
export function decode(bytes: ArrayBuffer): string | null {
  try {
    // A mark of the byte order is a part of the text: else a change of it alone is not shown.
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    return text.includes('\0') ? null : text;
  } catch {
    return null;
  }
}

export function compare(path: string, old: ArrayBuffer, current: ArrayBuffer): Difference {
  const isPicture = PICTURE.test(extension(path));
  if (isPicture && extension(path) !== 'svg') {
    return { kind: 'picture' };
  }
  const [before, after] = [decode(old), decode(current)];
  if (before === null || after === null) {
    return { kind: 'binary' };
  }
  const comparer = new Comparer();
  const cells = extension(path) === 'ipynb' ? compareNotebooks(before, after, comparer) : null;
  const sections = cells ?? [{ title: '', lines: comparer.compare(before, after) }];
  const kept = sections.slice(0, MAX_SECTIONS);
  return {
    kind: 'text',
    sections: kept,
    cut: comparer.isSpent || comparer.isShortened || kept.length < sections.length,
    late: comparer.isLate,
    isPicture
  };
}

/** Compares texts until there is enough for a page, or enough time was spent. */
export class Comparer {
  private lines = MAX_LINES;
  private characters = MAX_CHARACTERS;
  private sections = MAX_SECTIONS;
  private readonly end = performance.now() + MAX_MILLISECONDS;
  /** Whether the end of a line was left out. */
  isShortened = false;
  /** Whether there was no time for the rest. */
  isLate = false;

  /** Whether something was left out, or will be. */
  get isSpent(): boolean {
    this.isLate ||= performance.now() > this.end;
    return this.isLate || this.lines <= 0 || this.characters <= 0 || this.sections <= 0;
  }

  compare(before: string, after: string): readonly Line[] {
    this.sections -= 1;
    const kept: Line[] = [];
    for (const line of compareLines(before, after, Math.max(this.end - performance.now(), 1))) {
      if (this.lines <= 0 || this.characters <= 0) {
        break;
      }
      const { length } = line.text;
      const text =
        length > MAX_LINE ? `${line.text.slice(0, MAX_LINE)}… (${length} characters)` : line.text;
      this.isShortened ||= text !== line.text;
      this.lines -= 1;
      this.characters -= text.length;
      kept.push({ mark: line.mark, text });
    }
    return kept;
  }
}

export function compareLines(
  before: string,
  after: string,
  timeout = MAX_MILLISECONDS
): readonly Line[] {
  const patch =
    before.length + after.length > MAX_COMPARED
      ? undefined
      : structuredPatch('', '', before, after, '', '', {
          context: 3,
          maxEditLength: MAX_EDITS,
          timeout
        });
  if (patch === undefined) {
    return [
      {
        mark: '@',
        text: 'The two versions have little in common, or are too long. The new one is:'
      },
      ...after.split('\n', MAX_LINES).map(text => ({ mark: '+' as const, text }))
    ];
  }
  return patch.hunks.flatMap(hunk => [
    { mark: '@' as const, text: `line ${hunk.newStart}` },
    ...hunk.lines.map(line =>
      line.startsWith('\\')
        ? { mark: '@' as const, text: 'The line above is the last one, and has no line end.' }
        : { mark: line.charAt(0) as Mark, text: line.slice(1) }
    )
  ]);
}
