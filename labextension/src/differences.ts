/** What differs between two versions of a file: lines of a text, cells of a notebook. */

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
  | { readonly kind: 'text'; readonly sections: readonly Section[]; readonly cut: boolean }
  | { readonly kind: 'picture'; readonly type: string }
  | { readonly kind: 'binary' };

/** A page with more lines than this is slow, and nobody reads it. */
export const MOST_LINES = 4000;
/** Two texts without a common line cost time that grows with the product of their sizes. */
const MOST_EDITS = 3000;

/** Pictures that a browser draws. An SVG in an <img> runs no script and loads nothing. */
const PICTURES: Readonly<Record<string, string>> = {
  png: 'image/png',
  jpg: 'image/jpeg',
  jpeg: 'image/jpeg',
  gif: 'image/gif',
  webp: 'image/webp',
  svg: 'image/svg+xml'
};

function extension(path: string): string {
  return /\.([a-z0-9]+)$/i.exec(path)?.[1]?.toLowerCase() ?? '';
}

export function pictureType(path: string): string | null {
  return PICTURES[extension(path)] ?? null;
}

/** The text of a file; null if its bytes are no UTF-8 text. */
export function decode(bytes: ArrayBuffer): string | null {
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return text.includes('\0') ? null : text;
  } catch {
    return null;
  }
}

export function compare(path: string, old: ArrayBuffer, current: ArrayBuffer): Difference {
  const type = pictureType(path);
  if (type !== null) {
    return { kind: 'picture', type };
  }
  const [before, after] = [decode(old), decode(current)];
  if (before === null || after === null) {
    return { kind: 'binary' };
  }
  const cells = extension(path) === 'ipynb' ? compareNotebooks(before, after) : null;
  const sections = cells ?? [{ title: '', lines: compareLines(before, after) }];
  return bounded(sections);
}

function bounded(sections: readonly Section[]): Difference {
  let left = MOST_LINES;
  const kept: Section[] = [];
  for (const section of sections) {
    if (left <= 0) {
      return { kind: 'text', sections: kept, cut: true };
    }
    kept.push({ title: section.title, lines: section.lines.slice(0, left) });
    left -= section.lines.length;
  }
  return { kind: 'text', sections: kept, cut: left < 0 };
}

export function compareLines(before: string, after: string): readonly Line[] {
  const patch = structuredPatch('', '', before, after, '', '', {
    context: 3,
    maxEditLength: MOST_EDITS
  });
  if (patch === undefined) {
    return [
      { mark: '@', text: 'The two versions have little in common. The new one is:' },
      ...after.split('\n').map(text => ({ mark: '+' as const, text }))
    ];
  }
  return patch.hunks.flatMap(hunk => [
    { mark: '@' as const, text: `line ${hunk.newStart}` },
    ...hunk.lines
      .filter(line => !line.startsWith('\\'))
      .map(line => ({ mark: line.charAt(0) as Mark, text: line.slice(1) }))
  ]);
}

interface Cell {
  readonly id: string;
  readonly type: string;
  readonly source: string;
}

function cellsOf(text: string): readonly Cell[] | null {
  if (text === '') {
    return [];
  }
  try {
    const { cells } = fieldsOf(JSON.parse(text));
    if (!Array.isArray(cells)) {
      return null;
    }
    return (cells as readonly unknown[]).map((value, index) => {
      const cell = fieldsOf(value);
      const source = Array.isArray(cell.source) ? cell.source.join('') : cell.source;
      return {
        id: typeof cell.id === 'string' ? cell.id : `#${index}`,
        type: typeof cell.cell_type === 'string' ? cell.cell_type : 'cell',
        source: typeof source === 'string' ? source : ''
      };
    });
  } catch {
    return null;
  }
}

/** The sources of cells that differ, by cell; null if one version is no notebook. */
export function compareNotebooks(before: string, after: string): readonly Section[] | null {
  const [old, current] = [cellsOf(before), cellsOf(after)];
  if (old === null || current === null) {
    return null;
  }
  const earlier = new Map(old.map(cell => [cell.id, cell]));
  const sections: Section[] = [];
  current.forEach((cell, index) => {
    const was = earlier.get(cell.id);
    earlier.delete(cell.id);
    if (was?.source !== cell.source) {
      const verb = was === undefined ? 'new' : 'changed';
      sections.push({
        title: `Cell ${index + 1} (${cell.type}), ${verb}`,
        lines: compareLines(was?.source ?? '', cell.source)
      });
    }
  });
  for (const cell of earlier.values()) {
    sections.push({
      title: `A cell (${cell.type}), removed`,
      lines: compareLines(cell.source, '')
    });
  }
  return sections.length > 0
    ? sections
    : [{ title: 'The sources of all cells are the same; outputs or metadata differ.', lines: [] }];
}
