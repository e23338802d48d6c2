/** The panel "Changes": what a kernel changed against the folder on disk, to look at and apply. */

import { type SandboxClient, type Side, ServerError, messageOf } from './client.js';
import type { Change, Changes, Refused } from './contract.js';
import { type Difference, type Section, compare } from './differences.js';
import { button, element, likeness, replace, setText, showName } from './dom.js';
import { formatBytes } from './format.js';
import type { Preview } from './preview.js';

/** What a picture is shown in, and ends when it is cleared. */
export type PicturePreview = Pick<Preview, 'node' | 'showBytes' | 'clear'>;

export type ChangesClient = Pick<SandboxClient, 'changes' | 'content' | 'apply' | 'undo'>;

const KINDS: Readonly<Record<string, string>> = {
  added: 'added',
  changed: 'changed',
  removed: 'removed',
  conflict: 'conflict'
};

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
  private alike: ReadonlySet<string> = new Set();
  private readonly force: HTMLInputElement;
  private readonly applyButton: HTMLButtonElement;
  private readonly undoButton: HTMLButtonElement;
  private changes: readonly Change[] = [];
  private readonly chosen = new Set<string>();
  private undoId: string | null = null;
  private busy = false;
  /** The change whose difference is shown, as it was listed then. */
  private looked: Change | null = null;
  private shown = 0;
  /** The pictures that are shown, each in a frame: two at most, those of one change. */
  private readonly previews: PicturePreview[] = [];

  constructor(
    private readonly client: ChangesClient,
    private readonly kernelId: string,
    private readonly makePreview: () => PicturePreview,
    private readonly changed: () => void = () => undefined
  ) {
    this.all = checkbox('All changes but those that may run by themselves', checked => {
      this.chooseAll(checked);
    });
    this.force = checkbox(FORCE, () => {
      this.showButtons();
    });
    this.applyButton = button('Apply', () => void this.apply());
    this.undoButton = button('Undo', () => void this.undo());
    this.node.append(
      element(
        'p',
        {},
        'What is not applied is gone when the sandbox ends. A backup is kept of what is overwritten.'
      ),
      element(
        'div',
        { class: 'gk-buttons' },
        this.applyButton,
        this.undoButton,
        button('Look again', () => void this.refresh()),
        element('label', {}, this.force, ` ${FORCE}`)
      ),
      this.summary,
      element(
        'div',
        { class: 'gk-table', attributes: { tabindex: '0', 'aria-label': 'Changes' } },
        element(
          'table',
          {},
          element(
            'thead',
            {},
            element(
              'tr',
              {},
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
    this.showButtons();
  }

  dispose(): void {
    this.shown += 1; // what is being read is not shown
    this.clearPictures();
  }

  private clearPictures(): void {
    for (const preview of this.previews.splice(0)) {
      preview.clear();
    }
  }

  async refresh(): Promise<void> {
    await this.work('', async () => {
      this.show(await this.client.changes(this.kernelId));
    });
  }

  private show(answer: Changes): void {
    this.changes = answer.changes;
    this.chosen.clear();
    this.all.checked = false;
    this.force.checked = false;
    const seen = new Set<string>();
    this.alike = new Set(
      answer.changes
        .map(change => likeness(change.path))
        .filter(name => seen.size === seen.add(name).size)
    );
    const isUsual = (change: Change): boolean => change.runs === null;
    replace(this.body, ...answer.changes.filter(isUsual).map(change => this.row(change)));
    const running = answer.changes.filter(change => !isUsual(change));
    const heading = element('th', { attributes: { colspan: '4', scope: 'rowgroup' } }, RUN);
    replace(
      this.running,
      running.length > 0 && element('tr', { class: 'gk-conflict' }, heading),
      ...running.map(change => this.row(change))
    );
    const shown = answer.changes.length;
    setText(
      this.summary,
      answer.more
        ? `The first ${shown} of ${answer.total} changes.`
        : shown === 0
          ? 'Nothing was changed that would not be kept.'
          : `${shown} ${shown === 1 ? 'change' : 'changes'}.`
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
    const now = this.changes.find(change => change.path === looked.path);
    if (now === undefined) {
      this.looked = null;
      this.shown += 1; // what is being read is not shown, either
      this.clearPictures();
      replace(this.difference);
    } else if (now.state !== looked.state) {
      this.difference.prepend(element('p', { class: 'gk-warning gk-outdated' }, OUTDATED));
    }
  }

  private row(change: Change): HTMLTableRowElement {
    const tick = checkbox(`Choose ${showName(change.path)}`, checked => {
      if (checked) {
        this.chosen.add(change.path);
      } else {
        this.chosen.delete(change.path);
      }
      this.showButtons();
    });
    tick.disabled = change.type === 'other';
    const sizes =
      change.kind === 'removed'
        ? formatBytes(change.oldSize ?? 0)
        : change.oldSize !== null && change.oldSize !== change.size
          ? `${formatBytes(change.oldSize)} → ${formatBytes(change.size)}`
          : formatBytes(change.size);
    return element(
      'tr',
      { class: change.conflict === null ? '' : 'gk-conflict' },
      element('td', {}, tick),
      element(
        'td',
        {},
        change.type === 'file'
          ? button(showName(change.path), () => void this.compare(change), { class: 'gk-path' })
          : element('span', { class: 'gk-path' }, showName(change.path)),
        this.alike.has(likeness(change.path))
          ? element('p', { class: 'gk-warning' }, 'Another name here looks the same.')
          : null,
        change.runs === null ? null : element('p', { class: 'gk-warning' }, change.runs),
        change.conflict === null ? null : element('p', { class: 'gk-warning' }, change.conflict),
        change.isChecked ? null : element('p', { class: 'gk-warning' }, 'Not checked: too large.')
      ),
      element(
        'td',
        {},
        KINDS[change.kind] ?? change.kind,
        change.type === 'folder' ? ' folder' : '',
        change.type === 'other' ? ' (neither file nor folder: cannot be applied)' : ''
      ),
      element('td', {}, change.type === 'file' ? sizes : '')
    );
  }

  private chooseAll(checked: boolean): void {
    const usual = this.changes.filter(change => change.runs === null);
    usual.forEach(({ path }, index) => {
      const tick = this.body.rows[index]?.querySelector('input');
      if (tick && !tick.disabled) {
        tick.checked = checked;
        this.chosen[checked ? 'add' : 'delete'](path);
      }
    });
    this.showButtons();
  }

  private showButtons(): void {
    setText(
      this.applyButton,
      this.chosen.size > 0 ? `Apply ${this.chosen.size} to the folder on disk` : 'Apply'
    );
    const focused = document.activeElement;
    this.applyButton.disabled = this.busy || this.chosen.size === 0;
    this.undoButton.disabled = this.busy || this.undoId === null;
    // A button that is switched off loses the focus, and keys would begin at the page's start.
    if ([this.applyButton, this.undoButton].some(it => it === focused && it.disabled)) {
      this.summary.focus();
    }
  }

  private async apply(): Promise<void> {
    const chosen = this.changes.filter(change => this.chosen.has(change.path));
    const force = this.force.checked;
    this.force.checked = false; // one tick is for one apply
    await this.work('Applying.', async () => {
      const answer = await this.client.apply(this.kernelId, chosen, force);
      this.undoId = answer.undo ?? this.undoId; // nothing applied: the last apply can be undone
      this.changed();
      await this.report(`${answer.applied.length} applied.`, answer.refused);
    });
  }

  /** Tells what was done, whether or not a new list comes. */
  private async report(done: string, refusals: readonly Refused[]): Promise<void> {
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
          ? `${undone.length} undone.`
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
      setText(this.summary, messageOf(error));
    } finally {
      this.busy = false;
      this.showButtons();
    }
  }

  private async compare(change: Change): Promise<void> {
    const turn = ++this.shown;
    this.looked = change;
    this.clearPictures();
    const heading = element('h2', {}, showName(change.path));
    replace(this.difference, heading, element('p', {}, 'Reading.'));
    let content: readonly Node[];
    try {
      const side = (which: Side, absent: string): Promise<ArrayBuffer> =>
        change.kind === absent
          ? Promise.resolve(new ArrayBuffer(0))
          : this.client.content(this.kernelId, change, which);
      const [old, current] = await Promise.all([side('old', 'added'), side('new', 'removed')]);
      if (turn !== this.shown) {
        return; // another file was chosen meanwhile
      }
      content = this.showDifference(compare(change.path, old, current), change.path, old, current);
    } catch (error) {
      if (turn !== this.shown) {
        return;
      }
      const large = error instanceof ServerError && error.status === 413;
      content = [
        element('p', {}, large ? 'The file is too large to be shown here.' : messageOf(error))
      ];
    }
    replace(
      this.difference,
      heading,
      change.isChecked ? null : element('p', { class: 'gk-warning' }, NOT_CHECKED),
      ...content
    );
    this.markOutdated();
  }

  private showDifference(
    it: Difference,
    path: string,
    old: ArrayBuffer,
    current: ArrayBuffer
  ): readonly Node[] {
    switch (it.kind) {
      case 'picture':
        return [this.pictures(path, old, current)];
      case 'binary':
        return [element('p', {}, 'The file is no text, so its content is not shown.')];
      case 'text':
        return [
          ...(old.byteLength + current.byteLength === 0
            ? [element('p', {}, 'The file is empty.')]
            : []),
          ...(it.late
            ? [element('p', { class: 'gk-warning' }, 'Comparing took too long and was stopped.')]
            : []),
          ...(it.cut
            ? [element('p', { class: 'gk-warning' }, 'There are more differences than are shown.')]
            : []),
          ...(it.isPicture ? [this.offerPicture(path, old, current)] : []),
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
      return element('figure', {}, element('figcaption', {}, `${title}: none`));
    }
    const preview = this.makePreview();
    this.previews.push(preview);
    void preview.showBytes(`${title}: ${path.split('/').at(-1) ?? ''}`, bytes);
    return element('figure', {}, element('figcaption', {}, title), preview.node);
  }
}

const MARKS: Readonly<Record<string, string>> = { '+': 'gk-new', '-': 'gk-old', '@': 'gk-place' };

function showSection(section: Section): HTMLElement {
  return element(
    'div',
    {},
    section.title ? element('h3', {}, section.title) : null,
    element(
      'pre',
      {},
      ...section.lines.map(({ mark, text }) =>
        element('span', { class: `gk-line-text ${MARKS[mark] ?? ''}` }, `${mark} ${text}\n`)
      )
    )
  );
}

function checkbox(label: string, change: (checked: boolean) => void): HTMLInputElement {
  const node = element('input', { attributes: { type: 'checkbox', 'aria-label': label } });
  node.addEventListener('change', () => {
    change(node.checked);
  });
  return node;
}
