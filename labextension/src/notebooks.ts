/**
 * What differs between two notebooks, cell by cell. Whatever acts is shown: sources, kinds of cells,
 * their order, metadata with the kernelspec. Only outputs are counted and not shown.
 */

import { type Comparer, type Section } from './differences.js';
import { fieldsOf } from './contract.js';

interface Cell {
  readonly id: string;
  readonly type: string;
  readonly source: string;
  /** Metadata, attachments and all that no version of the format knows. */
  readonly rest: string;
  readonly outputs: string;
}

interface Notebook {
  readonly cells: readonly Cell[];
  /** All but the cells: the kernelspec is here. */
  readonly rest: string;
}

const NOTHING: Notebook = { cells: [], rest: '' };

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
    return { cells: (cells as readonly unknown[]).map(readCell), rest: pretty(rest) };
  } catch {
    return null;
  }
}

function readCell(value: unknown, index: number): Cell {
  const { id, cell_type, source, outputs, execution_count, ...rest } = fieldsOf(value);
  const joined = Array.isArray(source) ? source.join('') : source;
  return {
    id: typeof id === 'string' ? id : `#${index}`,
    type: typeof cell_type === 'string' ? cell_type : 'cell',
    source: typeof joined === 'string' ? joined : pretty(source),
    rest: pretty(rest),
    outputs: JSON.stringify([outputs, execution_count])
  };
}

function pretty(value: unknown): string {
  const text = JSON.stringify(value, null, 1) as string | undefined;
  return text === undefined || text === '{}' ? '' : text;
}

/** Null if one version is no notebook. */
export function compareNotebooks(
  before: string,
  after: string,
  comparer: Comparer
): readonly Section[] | null {
  const [old, current] = [read(before), read(after)];
  if (old === null || current === null) {
    return null;
  }
  const sections: Section[] = [];
  const add = (title: string, was: string, is: string): void => {
    if (was !== is && !comparer.isSpent) {
      sections.push({ title, lines: comparer.compare(was, is) });
    }
  };
  add('The notebook itself: metadata, kernel', old.rest, current.rest);
  const earlier = new Map(old.cells.map((cell, index) => [cell.id, { cell, index }]));
  const order: number[] = [];
  let outputs = 0;
  current.cells.forEach((cell, index) => {
    if (comparer.isSpent) {
      return;
    }
    const found = earlier.get(cell.id);
    earlier.delete(cell.id);
    const was = found?.cell;
    const number = `Cell ${index + 1}`;
    if (found === undefined || was === undefined) {
      sections.push({
        title: `${number} (${cell.type}), new`,
        lines: comparer.compare('', cell.source)
      });
      add(`${number}, metadata`, '', cell.rest);
      return;
    }
    order.push(found.index);
    const turned = was.type === cell.type ? '' : `, was ${was.type}`;
    if (turned || was.source !== cell.source) {
      sections.push({
        title: `${number} (${cell.type}), changed${turned}`,
        lines: comparer.compare(turned ? '' : was.source, cell.source)
      });
    }
    add(`${number}, metadata`, was.rest, cell.rest);
    outputs += was.outputs === cell.outputs ? 0 : 1;
  });
  for (const { cell } of earlier.values()) {
    if (!comparer.isSpent) {
      sections.push({
        title: `A cell (${cell.type}), removed`,
        lines: comparer.compare(cell.source, '')
      });
    }
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
