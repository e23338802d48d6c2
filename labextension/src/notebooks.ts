/**
 * What differs between two notebooks, cell by cell. Whatever acts is shown: sources, kinds of cells,
 * their order, metadata with the kernelspec. Only outputs are counted and not shown.
 */

import { type Comparer, type Section } from './differences.js';
import { fieldsOf } from './contract.js';

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
function read(text: string): Notebook | null {
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
export function compareNotebooks(
  before: string,
  after: string,
  comparer: Comparer
): readonly Section[] | null {
  const [old, current] = [read(before), read(after)];
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
