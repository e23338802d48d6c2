/** Files that a kernel has made or changed in /workspace and that end with its sandbox. */

import type { Unkept } from './contract.js';
import { element, setText, showName } from './dom.js';
import { type Timer, Wishes } from './wishes.js';

/** A cell may end while the next one begins: only the last end counts. The server keeps no answer
 *  longer than this. */
export const QUIET_SECONDS = 0.7;
export const PAUSE_SECONDS = 2.2;

/** Whether there are files to lose, or there may be some. */
export function hasFiles({ total, more }: Unkept): boolean {
  return total > 0 || more;
}

/** ``3 files``; ``at least 3 files`` where the server stopped counting. */
export function countFiles({ total, more }: Unkept): string {
  if (total === 0 && more) {
    return 'perhaps some files';
  }
  return `${more ? 'at least ' : ''}${total} ${total === 1 && !more ? 'file' : 'files'}`;
}

export function sayGone(unkept: Unkept, where = ''): string {
  const count = countFiles(unkept);
  const verb = unkept.total === 1 && !unkept.more ? 'is' : 'are';
  return `${count.charAt(0).toUpperCase()}${count.slice(1)}${where} ${verb} gone`;
}

/** The first names, one a line, and how many there are beside them. */
export function listFiles(unkept: Unkept): HTMLElement {
  const others = unkept.total - unkept.paths.length;
  return element(
    'div',
    element(
      'ul',
      { class: 'gk-files' },
      ...unkept.paths.map(path => element('li', element('bdi', showName(path))))
    ),
    others > 0
      ? element('p', `and ${unkept.more ? 'at least ' : ''}${others} more`)
      : unkept.more && element('p', unkept.total === 0 ? 'Their names are not known.' : 'and more')
  );
}

/** Seconds for which the button shows that there are more files. */
const NEWS_SECONDS = 8;
const MOST_KERNELS = 100;

/**
 * The button beside the shield; hidden while there is nothing to lose. Each further file is as visible
 * as the first one: the button names it, for a while, and a screen reader is told.
 */
export class UnkeptView {
  readonly node: HTMLElement;
  private readonly button: HTMLButtonElement;
  private readonly label = element('span');
  private readonly news = element('span', { class: 'gk-badge gk-news' });
  private readonly said = element('span', { class: 'gk-said', attributes: { role: 'status' } });
  /** What was seen last of each kernel, so that its files are no news when the person is back. */
  private readonly seen = new Map<string, Unkept>();
  private cancel: (() => void) | null = null;

  constructor(
    click: () => void,
    private readonly timer: Timer
  ) {
    this.button = element(
      'button',
      { class: 'gk-status gk-unkept', attributes: { type: 'button' }, click },
      this.label,
      this.news
    );
    this.node = element('span', { class: 'gk-unkept-item' }, this.button, this.said);
    this.update(null);
  }

  /** ``kernelId``: whose files they are; another one's are no news. */
  update(unkept: Unkept | null, kernelId = ''): void {
    this.button.hidden = unkept === null || !hasFiles(unkept);
    if (unkept === null) {
      this.show('');
      return;
    }
    const label =
      unkept.total === 0
        ? 'there may be files that are not kept'
        : `${countFiles(unkept)} not kept`;
    setText(this.label, label);
    this.tell(unkept, kernelId);
    this.button.setAttribute('aria-label', `${label}. Show changes`);
    this.button.title =
      'What the kernel made or changed in /workspace is gone when its sandbox ends.\n' +
      'Click to look at it and apply it to the folder on disk.';
  }

  private tell(unkept: Unkept, kernelId: string): void {
    const before = this.seen.get(kernelId);
    const more = unkept.total - (before?.total ?? 0);
    const fresh = unkept.paths.filter(it => before?.paths.includes(it) !== true);
    if (more > 0) {
      const name = fresh.length > 0 ? showName(fresh[0] ?? '') : `${more} more`;
      this.show(more > 1 && fresh.length > 0 ? `+${more}: ${name}, …` : `+${more}: ${name}`);
    }
    if (this.seen.size >= MOST_KERNELS) {
      this.seen.clear();
    }
    this.seen.set(kernelId, unkept);
  }

  private show(news: string): void {
    this.cancel?.();
    setText(this.news, news);
    setText(this.said, news && `Not kept: ${news}`);
    this.news.hidden = news === '';
    this.cancel = news === '' ? null : this.timer.after(NEWS_SECONDS, () => this.show(''));
  }
}

/** Asks for one kernel at a time, a moment after the last wish, and never in a hidden page. */
export class UnkeptLook {
  private kernelId: string | null = null;
  private turn = 0;
  private pending = false;
  private latest: Unkept | null = null;
  private readonly wishes: Wishes;

  constructor(
    private readonly ask: (kernelId: string) => Promise<Unkept | null>,
    private readonly show: (unkept: Unkept | null, kernelId: string) => void,
    timer: Timer,
    private readonly isVisible: () => boolean
  ) {
    this.wishes = new Wishes(QUIET_SECONDS, PAUSE_SECONDS, timer, () => void this.look());
  }

  /** The person is in a notebook with this kernel now; null: in none of ours. */
  follow(kernelId: string | null): void {
    if (kernelId !== this.kernelId) {
      this.kernelId = kernelId;
      this.forget();
      this.want();
    }
  }

  /** The kernel has died: nothing is known until it has started again, which is wished for then. */
  forget(): void {
    this.wishes.forget();
    this.pending = false;
    this.turn += 1;
    this.latest = null;
    this.show(null, this.kernelId ?? '');
  }

  /** What was seen last of the kernel that is followed; null if nothing was. */
  get last(): Unkept | null {
    return this.latest;
  }

  /** Something may have changed: a cell has ended, changes were applied, the page is seen again. */
  want(): void {
    this.pending = this.kernelId !== null;
    if (this.pending && this.isVisible()) {
      this.wishes.want();
    }
  }

  /** The page is seen again: asks what could not be asked while it was hidden. */
  seen(): void {
    if (this.pending) {
      this.want();
    }
  }

  private async look(): Promise<void> {
    const { kernelId } = this;
    if (kernelId === null || !this.isVisible()) {
      return;
    }
    this.pending = false;
    const turn = ++this.turn;
    let unkept: Unkept | null;
    try {
      unkept = await this.ask(kernelId);
    } catch {
      return; // the item beside this one says that the server does not answer
    }
    if (turn === this.turn) {
      this.latest = unkept;
      this.show(unkept, kernelId);
    }
  }
}
