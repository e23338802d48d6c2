/** Saved states of a kernel: which one is meant, what a rewind does, and what it has not taken back. */

import type { Checkpoint, Rewound, Sandbox, Undoable } from './contract.js';
import { type Child, button, element, replace, showName } from './dom.js';
import { count, formatBytes } from './format.js';

/** The newest states that a list shows, and names of outputs of each kind. */
export const MOST_STATES = 100;
export const MOST_NAMES = 100;

/** In this browser's time: ``29 Nov, 14:05``. */
export function describeTime(seconds: number): string {
  return new Date(seconds * 1000).toLocaleString([], {
    day: 'numeric',
    month: 'short',
    hour: '2-digit',
    minute: '2-digit'
  });
}

/** When it was saved, after which cell, and its size. */
export function describeState({ time, what, size }: Checkpoint): string {
  return `${describeTime(time)}, ${what}, ${formatBytes(size)}`;
}

/**
 * The newest state before the cell that shows ``[number]``; null if there is none.
 *
 * What a rewind has left is not meant: cells were counted anew since.
 */
export function stateBefore(states: readonly Checkpoint[], number: number): Checkpoint | null {
  const fitting = states.filter(it => it.cell === number - 1 && it.kind !== 'before-rewind');
  return fitting.at(-1) ?? null;
}

const EFFECT = [
  'Variables, processes, /workspace and /tmp go back to that state.',
  "The notebook's cells are not touched, and files in outputs stay as they are.",
  'The present state is kept as before-rewind.'
] as const;

/** The state that was chosen, and what is undone on the disk: all of it was shown. */
export interface Choice {
  readonly name: string;
  readonly undo: readonly string[];
}

/** A list of states, the newest first, of which one is chosen; and what a rewind does. */
export class StateChoice {
  readonly node: HTMLElement;
  private readonly radios: readonly HTMLInputElement[];
  private readonly undoes = element('input', { attributes: { type: 'checkbox' } });
  private readonly since = element('div');

  constructor(
    private readonly states: readonly Checkpoint[],
    private readonly applied: readonly Undoable[] = []
  ) {
    const shown = [...states].reverse().slice(0, MOST_STATES);
    this.radios = shown.map(({ name }, index) => {
      const attributes = { type: 'radio', name: 'gk-state', id: `gk-state-${index}`, value: name };
      const radio = element('input', { attributes });
      radio.checked = index === 0;
      radio.addEventListener('change', () => this.showApplied());
      return radio;
    });
    const others = states.length - shown.length;
    this.node = element(
      'div',
      { class: 'gk-ask' },
      element(
        'fieldset',
        { class: 'gk-states' },
        element('legend', 'Go back to'),
        ...shown.map((state, index) =>
          element(
            'label',
            this.radios[index] ?? null,
            element('bdi', state.name),
            element('span', { class: 'gk-state-facts' }, describeState(state))
          )
        )
      ),
      others > 0 && element('p', `and ${others} older`),
      ...EFFECT.map(text => element('p', text)),
      this.since
    );
    this.showApplied();
  }

  getValue(): Choice {
    return {
      name: this.name,
      undo: this.undoes.checked ? this.appliedSince().map(it => it.undo) : []
    };
  }

  private get name(): string {
    return this.radios.find(it => it.checked)?.value ?? '';
  }

  private appliedSince(): readonly Undoable[] {
    const state = this.states.find(it => it.name === this.name);
    return this.applied.filter(it => state !== undefined && it.time > state.time);
  }

  /** What the person says holds for what is shown. */
  private showApplied(): void {
    const since = this.appliedSince();
    this.undoes.checked = false;
    if (since.length === 0) {
      replace(this.since);
      return;
    }
    const paths = since.flatMap(it => it.paths);
    const hidden = since.reduce((sum, it) => sum + it.count, 0) - paths.length;
    replace(
      this.since,
      element('label', this.undoes, ' Also undo on the disk what was applied since then:'),
      ...listPaths('applied since', [...new Set(paths)], hidden)
    );
  }
}

export function hasDifferences({ outputs, undone, refused }: Rewound): boolean {
  const { added, changed, removed, more } = outputs;
  return [added, changed, removed, undone, refused].some(it => it.length > 0) || more;
}

/** ``hidden``: how many there are beside them. */
function listPaths(words: string, paths: readonly string[], hidden = 0): readonly Child[] {
  const others = paths.length - MOST_NAMES + hidden;
  return [
    element(
      'ul',
      { class: 'gk-files', attributes: { tabindex: '0', 'aria-label': words } },
      ...paths.slice(0, MOST_NAMES).map(path => element('li', element('bdi', showName(path))))
    ),
    others > 0 && element('p', `and ${others} more`)
  ];
}

/** The files of outputs that a rewind has left alone and that are not as they were; what was undone. */
export function listDifferences({ outputs, undone, refused }: Rewound): HTMLElement {
  const list = (words: string, paths: readonly string[]): readonly Child[] =>
    paths.length === 0
      ? []
      : [element('p', `${count(paths.length, 'file')} ${words}:`), ...listPaths(words, paths)];
  const kinds = [
    ...list('added since', outputs.added),
    ...list('changed since', outputs.changed),
    ...list('removed since', outputs.removed)
  ];
  return element(
    'div',
    { class: 'gk-ask' },
    ...list('as before they were applied', undone),
    ...list(
      'not undone',
      refused.map(({ path, reason }) => `${path}: ${reason}`)
    ),
    (kinds.length > 0 || outputs.more) &&
      element('p', 'Files in outputs stay as they are. These are not as they were then:'),
    ...kinds,
    outputs.more && element('p', 'There may be others.')
  );
}

/** Says at a notebook's top that its kernel is on the disk. */
export function makeNotice(
  { since, size }: NonNullable<Sandbox['hibernated']>,
  resume: () => void,
  startAnew: () => void
): HTMLElement {
  return element(
    'div',
    { class: 'gk-saved', attributes: { role: 'status' } },
    element('span', `Saved state of ${describeTime(since)}, ${formatBytes(size)}`),
    button('Resume', resume, { look: 'first' }),
    button('Start anew', startAnew)
  );
}
