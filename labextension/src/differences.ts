/**
 * What differs between two versions of a file: lines of a text, cells of a notebook. Of a notebook,
 * whatever acts is shown: sources, kinds of cells, their order, metadata with the kernelspec. Only
 * outputs are counted and not shown. Nothing here draws (``changes.ts``).
 */

import { structuredPatch } from 'diff';

import { fieldsOf } from './contract.js';

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
class Comparer {
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

/** A notebook with more is compared as text. */
const MAX_CELLS = 50_000;

interface Cell {
  readonly type: string;
  readonly source: string;
  /** Metadata, attachments and all that no version of the format knows. */
  readonly rest: string;
  readonly outputs: string;
}

interface Notebook {
  /** As they are in the file: each is read when it is its turn, as long as there is time. */
  readonly cells: readonly unknown[];
  /** All but the cells: the kernelspec is here. */
  readonly rest: Readonly<Record<string, unknown>>;
}

const NOTHING: Notebook = { cells: [], rest: {} };

/** Null if it is no notebook of format 4: other formats keep code elsewhere. */
function readNotebook(text: string): Notebook | null {
  if (text === '') {
    return NOTHING;
  }
  try {
    const { cells, ...rest } = fieldsOf(JSON.parse(text));
    if (!Array.isArray(cells) || (rest.nbformat ?? 4) !== 4 || 'worksheets' in rest) {
      return null;
    }
    cells.forEach(fieldsOf);
    return cells.length > MAX_CELLS ? null : { cells: cells as readonly unknown[], rest };
  } catch {
    return null;
  }
}

/** A name for each cell: its id, or its place; an id that is there twice is told apart. */
function namesOf({ cells }: Notebook): readonly string[] {
  const seen = new Map<string, number>();
  return cells.map((cell, index) => {
    const { id } = fieldsOf(cell);
    const name = typeof id === 'string' ? `id ${id}` : `place ${index}`;
    const count = seen.get(name) ?? 0;
    seen.set(name, count + 1);
    return `${count} ${name}`;
  });
}

function readCell(value: unknown): Cell {
  const { id, cell_type, source, outputs, execution_count, ...rest } = fieldsOf(value);
  const isText = Array.isArray(source) && source.every(it => typeof it === 'string');
  const joined = isText ? source.join('') : (source ?? '');
  return {
    type:
      typeof cell_type === 'string'
        ? cell_type
        : cell_type === undefined
          ? 'cell'
          : JSON.stringify(cell_type),
    source: typeof joined === 'string' ? joined : pretty(joined),
    rest: pretty(typeof id === 'string' || id === undefined ? rest : { id, ...rest }),
    outputs: JSON.stringify([outputs ?? [], execution_count ?? null])
  };
}

const NO_OUTPUTS = JSON.stringify([[], null]);

function pretty(value: unknown): string {
  const text = JSON.stringify(value, null, 1) as string | undefined;
  return text === undefined || text === '{}' ? '' : text;
}

/** Null if one version is no notebook, or one that is too deep to be written again. */
function compareNotebooks(
  before: string,
  after: string,
  comparer: Comparer
): readonly Section[] | null {
  const [old, current] = [readNotebook(before), readNotebook(after)];
  if (old === null || current === null) {
    return null;
  }
  try {
    return compareCells(old, current, comparer);
  } catch (error) {
    if (error instanceof RangeError) {
      return null;
    }
    throw error;
  }
}

function compareCells(old: Notebook, current: Notebook, comparer: Comparer): readonly Section[] {
  const sections: Section[] = [];
  const add = (title: string, was: string, is: string): void => {
    if (was !== is && !comparer.isSpent) {
      sections.push({ title, lines: comparer.compare(was, is) });
    }
  };
  add('The notebook itself: metadata, kernel', pretty(old.rest), pretty(current.rest));
  const earlier = new Map(namesOf(old).map((name, index) => [name, index]));
  const names = namesOf(current);
  const order: number[] = [];
  let outputs = 0;
  for (const [index, value] of current.cells.entries()) {
    if (comparer.isSpent) {
      break;
    }
    const cell = readCell(value);
    const number = `Cell ${index + 1}`;
    const place = earlier.get(names[index] ?? '');
    if (place === undefined) {
      const more = cell.outputs === NO_OUTPUTS ? '' : ', with outputs';
      sections.push({
        title: `${number} (${cell.type}), new${more}`,
        lines: comparer.compare('', cell.source)
      });
      add(`${number}, metadata`, '', cell.rest);
      continue;
    }
    earlier.delete(names[index] ?? '');
    order.push(place);
    const was = readCell(old.cells[place]);
    const turned = was.type === cell.type ? '' : `, was ${was.type}`;
    if (turned || was.source !== cell.source) {
      sections.push({
        title: `${number} (${cell.type}), changed${turned}`,
        lines: comparer.compare(turned ? '' : was.source, cell.source)
      });
    }
    add(`${number}, metadata`, was.rest, cell.rest);
    outputs += was.outputs === cell.outputs ? 0 : 1;
  }
  for (const place of earlier.values()) {
    if (comparer.isSpent) {
      break;
    }
    const { type, source } = readCell(old.cells[place]);
    sections.push({ title: `A cell (${type}), removed`, lines: comparer.compare(source, '') });
  }
  if (order.some((place, index) => index > 0 && place < (order[index - 1] ?? 0))) {
    sections.unshift({ title: 'Cells are in another order.', lines: [] });
  }
  if (outputs > 0) {
    sections.push({ title: `The outputs of ${outputs} other or changed cells differ.`, lines: [] });
  }
  return sections.length > 0 || comparer.isSpent
    ? sections
    : [
        {
          title: 'All cells and metadata are the same: only the form of the file differs.',
          lines: []
        }
      ];
}
