/** The panel "Changes": what a kernel changed against the folder on disk, to look at and apply. */

import { type SandboxClient, type Side, ServerError, isChecked, messageOf } from './client.js';
import type { Applied, Change, Changes } from './contract.js';
import { type Difference, type Section, compare } from './differences.js';
import {
  type Child,
  button,
  element,
  icon,
  iconButton,
  likeness,
  replace,
  setText,
  showName,
  skeleton,
  warning
} from './dom.js';
import { count, formatBytes } from './format.js';
import type { Preview } from './preview.js';

/** What a picture is shown in, and ends when it is cleared. */
export type PicturePreview = Pick<Preview, 'node' | 'showBytes' | 'clear'>;

export type ChangesClient = Pick<SandboxClient, 'changes' | 'content' | 'apply' | 'undo'>;

const FORCE =
  'Also apply conflicts: overwrite what others have changed on disk, and apply what is not checked';
const NOT_CHECKED =
  'Not checked: the file is so large that nobody knows whether the kernel has changed it since it was listed.';
const OUTDATED =
  'Outdated: the file has changed since this difference was made. Choose it again to see what would be applied.';

const RUN =
  'May run later without being opened. Each of these is applied only if you tick it yourself:';

export class ChangesView {
  readonly node = element('div', { class: 'gk-changes' });
  private readonly summary = element('p', { attributes: { role: 'status', tabindex: '-1' } });
  private readonly all: HTMLInputElement;
  private readonly body = element('tbody');
  /** Files that may run by themselves. */
  private readonly running = element('tbody');
  private readonly difference = element('section', {
    class: 'gk-difference',
    attributes: { 'aria-label': 'Difference', tabindex: '0' }
  });
  private readonly force: HTMLInputElement;
  private readonly applyButton: HTMLButtonElement;
  private readonly restButton: HTMLButtonElement;
  private readonly undoButton: HTMLButtonElement;
  private readonly waiting = skeleton();
  /** The last list as it came, and whether a cell has ended since. */
  private listed = '';
  private isOld = false;
  /** The changes in the list, and what the person ticks there. */
  private ticks: ReadonlyMap<Change, HTMLInputElement> = new Map();
  private undoId: string | null = null;
  private busy = false;
  /** The change whose difference is read or shown, as it was listed then. */
  private looked: Change | null = null;
  /** The pictures that are shown, each in a frame: two at most, those of one change. */
  private readonly previews: PicturePreview[] = [];

  constructor(
    private readonly client: ChangesClient,
    private readonly kernelId: string,
    private readonly makePreview: () => PicturePreview,
    private readonly changed: () => void = () => undefined
  ) {
    this.all = this.checkbox('All changes but those that may run by themselves');
    this.all.addEventListener('change', () => this.chooseAll());
    this.force = this.checkbox(FORCE);
    this.applyButton = button(
      'Apply selected',
      () => void this.apply(this.chosen, this.force.checked),
      {
        look: 'first'
      }
    );
    this.restButton = button('Apply all', () => void this.apply(this.rest, false));
    this.undoButton = iconButton('undo', 'Undo', () => void this.undo());
    this.node.append(
      element(
        'div',
        { class: 'gk-toolbar jp-Toolbar' },
        iconButton('refresh', 'Refresh', () => void this.refresh()),
        this.undoButton,
        element('span', { class: 'gk-spacer' }),
        this.restButton,
        this.applyButton
      ),
      element(
        'p',
        'What is not applied is gone when the sandbox ends. A backup is kept of what is overwritten.'
      ),
      element('label', { class: 'gk-force' }, this.force, ` ${FORCE}`),
      this.summary,
      this.waiting,
      element(
        'div',
        { class: 'gk-table', attributes: { tabindex: '0', 'aria-label': 'Changes' } },
        element(
          'table',
          element(
            'thead',
            element(
              'tr',
              element('th', { attributes: { scope: 'col' } }, this.all),
              ...['File', 'Change', 'Size'].map(name =>
                element('th', { attributes: { scope: 'col' } }, name)
              )
            )
          ),
          this.body,
          this.running
        )
      ),
      this.difference
    );
    this.node.addEventListener('pointerleave', this.left);
    this.showButtons();
  }

  dispose(): void {
    this.clear();
  }

  /** Shows no difference, nor one that is being read. */
  private clear(): void {
    this.looked = null;
    for (const preview of this.previews.splice(0)) {
      preview.clear();
    }
    replace(this.difference);
  }

  async refresh(): Promise<void> {
    await this.work('', async () => {
      this.show(await this.client.changes(this.kernelId));
    });
  }

  /**
   * A cell has ended: shows what it has changed. What is ticked and did not change stays ticked. While
   * the person is at the list it stays as it is, so that they apply what they have looked at.
   *
   * ``always``: the list was not seen until now.
   */
  async follow(always = false): Promise<void> {
    this.isOld = true;
    if (this.isBusy()) {
      return;
    }
    let answer: Changes;
    try {
      answer = await this.client.changes(this.kernelId);
    } catch {
      return; // nobody asked for it: the list stays, and an apply of what is old is refused
    }
    const isNew = JSON.stringify(answer) !== this.listed;
    if (this.isBusy()) {
      return; // what is done meanwhile brings a new list
    }
    if (isNew && !always && this.isAtHand()) {
      setText(this.summary, 'The kernel has changed files since: refresh the list.');
      return;
    }
    this.isOld = false;
    if (isNew) {
      const kept = new Set(this.chosen.map(({ path, state }) => `${state} ${path}`));
      this.show(answer);
      for (const [{ path, state }, tick] of this.ticks) {
        tick.checked = !tick.disabled && kept.has(`${state} ${path}`);
      }
      this.showButtons();
    }
  }

  private isBusy(): boolean {
    return this.busy;
  }

  private isAtHand(): boolean {
    return this.node.matches(':hover') || this.node.contains(document.activeElement);
  }

  private readonly left = (): void => {
    if (this.isOld) {
      void this.follow();
    }
  };

  private show(answer: Changes): void {
    const { changes } = answer;
    this.listed = JSON.stringify(answer);
    this.isOld = false;
    this.waiting.hidden = true;
    this.all.checked = false;
    this.force.checked = false;
    const seen = new Set<string>();
    const alike = new Set(
      changes.map(({ path }) => likeness(path)).filter(name => seen.size === seen.add(name).size)
    );
    this.ticks = new Map(
      changes.map(change => {
        const tick = this.checkbox(`Choose ${showName(change.path)}`);
        tick.disabled = change.type === 'other';
        return [change, tick];
      })
    );
    const rowsOf = (isRunning: boolean): readonly Node[] =>
      changes
        .filter(change => (change.runs !== null) === isRunning)
        .map(change => this.row(change, alike.has(likeness(change.path))));
    replace(this.body, ...rowsOf(false));
    const running = rowsOf(true);
    const heading = element('th', { attributes: { colspan: '4', scope: 'rowgroup' } }, RUN);
    replace(
      this.running,
      running.length > 0 && element('tr', { class: 'gk-conflict' }, heading),
      ...running
    );
    const shown = changes.length;
    setText(
      this.summary,
      answer.more
        ? `The first ${shown} of ${answer.total} changes.`
        : shown === 0
          ? 'Nothing was changed that would not be kept.'
          : `${count(shown, 'change')}.`
    );
    this.markOutdated();
    this.showButtons();
  }

  /** What is shown must not pass for what the list has now, and what an apply would write. */
  private markOutdated(): void {
    const { looked } = this;
    if (looked === null || this.difference.querySelector('.gk-outdated') !== null) {
      return;
    }
    const now = [...this.ticks.keys()].find(change => change.path === looked.path);
    if (now === undefined) {
      this.clear();
    } else if (now.state !== looked.state) {
      this.difference.prepend(element('p', { class: 'gk-warning gk-outdated' }, OUTDATED));
    }
  }

  private row(change: Change, isAlike: boolean): HTMLTableRowElement {
    const { path, kind, type, size, old_size, runs, conflict } = change;
    const isResized = kind === 'changed' && old_size !== null && old_size !== size;
    const before = isResized ? `${formatBytes(old_size)} → ` : '';
    const sizes = before + formatBytes(kind === 'removed' ? (old_size ?? 0) : size);
    return element(
      'tr',
      { class: conflict === null ? '' : 'gk-conflict' },
      element('td', this.ticks.get(change) ?? null),
      element(
        'td',
        icon(type === 'folder' ? 'folder' : 'file'),
        type === 'file'
          ? button(showName(path), () => void this.compare(change), {
              class: 'gk-path',
              attributes: { 'aria-label': showName(path) }
            })
          : element('span', { class: 'gk-path' }, showName(path)),
        isAlike && warning('Another name here looks the same.'),
        runs !== null && warning(runs),
        conflict !== null && warning(conflict),
        !isChecked(change) && warning('Not checked: too large.')
      ),
      element(
        'td',
        element('span', { class: `gk-badge gk-${kind}` }, kind),
        type === 'folder' && ' folder',
        type === 'other' && ' (neither file nor folder: cannot be applied)'
      ),
      element('td', type === 'file' && sizes)
    );
  }

  private checkbox(label: string): HTMLInputElement {
    const node = element('input', { attributes: { type: 'checkbox', 'aria-label': label } });
    node.addEventListener('change', () => this.showButtons());
    return node;
  }

  private chooseAll(): void {
    for (const [change, tick] of this.ticks) {
      if (change.runs === null && !tick.disabled) {
        tick.checked = this.all.checked;
      }
    }
    this.showButtons();
  }

  private get chosen(): readonly Change[] {
    return [...this.ticks].filter(([, tick]) => tick.checked).map(([change]) => change);
  }

  /** All but what needs a decision of its own: what may run later, a conflict, what is not checked. */
  private get rest(): readonly Change[] {
    return [...this.ticks.keys()].filter(
      it => it.type !== 'other' && it.runs === null && it.conflict === null && isChecked(it)
    );
  }

  private showButtons(): void {
    const chosen = this.chosen.length;
    setText(this.applyButton, `Apply selected${chosen > 0 ? ` (${chosen})` : ''}`);
    setText(this.restButton, this.undoId === null ? 'Apply all' : 'Apply the rest');
    const focused = document.activeElement;
    this.applyButton.disabled = this.busy || chosen === 0;
    this.restButton.disabled = this.busy || this.rest.length === 0;
    this.undoButton.disabled = this.busy || this.undoId === null;
    // A button that is switched off loses the focus, and keys would begin at the page's start.
    if (
      [this.applyButton, this.restButton, this.undoButton].some(it => it === focused && it.disabled)
    ) {
      this.summary.focus();
    }
  }

  private async apply(chosen: readonly Change[], force: boolean): Promise<void> {
    this.force.checked = false; // one tick is for one apply
    await this.work('Applying.', async () => {
      const answer = await this.client.apply(this.kernelId, chosen, force);
      this.undoId = answer.undo ?? this.undoId; // nothing applied: the last apply can be undone
      this.changed();
      await this.report(`${count(answer.applied.length, 'change')} applied.`, answer.refused);
    });
  }

  /** Tells what was done, whether or not a new list comes. */
  private async report(done: string, refusals: Applied['refused']): Promise<void> {
    let failure = '';
    try {
      this.show(await this.client.changes(this.kernelId));
    } catch (error) {
      failure = `The list is an old one: ${messageOf(error)}`;
    }
    const refused = refusals.map(({ path, reason }) => `${showName(path)}: ${reason}`);
    setText(
      this.summary,
      [done, ...(refused.length > 0 ? [`${refused.length} refused.`, ...refused] : []), failure]
        .filter(Boolean)
        .join('\n')
    );
  }

  private async undo(): Promise<void> {
    const { undoId } = this;
    if (undoId === null) {
      return;
    }
    await this.work('Undoing.', async () => {
      const { undone, refused } = await this.client.undo(this.kernelId, undoId);
      if (refused.length === 0) {
        this.undoId = null; // else the rest can be tried again
      }
      this.changed();
      await this.report(
        refused.length > 0
          ? `${count(undone.length, 'change')} undone.`
          : undone.length > 0
            ? 'Undone: what the last apply changed on disk is as it was before.'
            : 'Nothing was left to undo.',
        refused
      );
    });
  }

  /** One call at a time; its failure is told where results are told. */
  private async work(text: string, call: () => Promise<void>): Promise<void> {
    if (this.busy) {
      return;
    }
    this.busy = true;
    this.showButtons();
    if (text) {
      setText(this.summary, text);
    }
    try {
      await call();
    } catch (error) {
      this.waiting.hidden = true;
      setText(this.summary, messageOf(error));
    } finally {
      this.busy = false;
      this.showButtons();
    }
  }

  private async compare(change: Change): Promise<void> {
    this.clear();
    this.looked = change;
    const heading = element('h2', showName(change.path));
    replace(this.difference, heading, element('p', 'Reading.'));
    let content: () => readonly Child[];
    try {
      const side = (which: Side, absent: string): Promise<ArrayBuffer> =>
        change.kind === absent
          ? Promise.resolve(new ArrayBuffer(0))
          : this.client.content(this.kernelId, change, which);
      const [old, current] = await Promise.all([side('old', 'added'), side('new', 'removed')]);
      const difference = compare(change.path, old, current);
      content = () => this.showDifference(difference, change.path, old, current);
    } catch (error) {
      const large = error instanceof ServerError && error.status === 413;
      const text = large ? 'The file is too large to be shown here.' : messageOf(error);
      content = () => [element('p', text)];
    }
    if (change !== this.looked) {
      return; // another file was chosen meanwhile
    }
    this.clear(); // it may have been chosen twice
    this.looked = change;
    replace(this.difference, heading, !isChecked(change) && warning(NOT_CHECKED), ...content());
    this.markOutdated();
  }

  private showDifference(
    it: Difference,
    path: string,
    old: ArrayBuffer,
    current: ArrayBuffer
  ): readonly Child[] {
    switch (it.kind) {
      case 'picture':
        return [this.pictures(path, old, current)];
      case 'binary':
        return [element('p', 'The file is no text, so its content is not shown.')];
      case 'text':
        return [
          old.byteLength + current.byteLength === 0 && element('p', 'The file is empty.'),
          it.late && warning('Comparing took too long and was stopped.'),
          it.cut && warning('There are more differences than are shown.'),
          it.isPicture && this.offerPicture(path, old, current),
          ...it.sections.map(showSection)
        ];
    }
  }

  /** Of an SVG the text is what would be applied. */
  private offerPicture(path: string, old: ArrayBuffer, current: ArrayBuffer): HTMLElement {
    const place = element('div');
    place.append(
      button('Show as picture', () => {
        replace(place, this.pictures(path, old, current));
        this.difference.focus(); // the button is gone
      })
    );
    return place;
  }

  private pictures(path: string, old: ArrayBuffer, current: ArrayBuffer): HTMLElement {
    return element(
      'div',
      { class: 'gk-pictures' },
      this.picture('Before', path, old),
      this.picture('After', path, current)
    );
  }

  private picture(title: string, path: string, bytes: ArrayBuffer): HTMLElement {
    if (bytes.byteLength === 0) {
      return element('figure', element('figcaption', `${title}: none`));
    }
    const preview = this.makePreview();
    this.previews.push(preview);
    void preview.showBytes(`${title}: ${path.split('/').at(-1) ?? ''}`, bytes);
    return element('figure', element('figcaption', title), preview.node);
  }
}

const MARKS: Readonly<Record<string, string>> = { '+': 'gk-new', '-': 'gk-old', '@': 'gk-place' };

function showSection(section: Section): HTMLElement {
  return element(
    'div',
    section.title ? element('h3', section.title) : null,
    element(
      'pre',
      ...section.lines.map(({ mark, text }) =>
        element('span', { class: `gk-line-text ${MARKS[mark] ?? ''}` }, `${mark} ${text}\n`)
      )
    )
  );
}
