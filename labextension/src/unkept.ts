/** Files that a kernel has made or changed in /workspace and that end with its sandbox. */

import type { Unkept } from './contract.js';
import { element, setText, showName } from './dom.js';
import type { Timer } from './warm.js';

/** A cell may end while the next one begins: only the last end counts. */
export const QUIET_SECONDS = 0.7;

/** The server answers again what it saw in the last two seconds. */
export const PAUSE_SECONDS = 2.2;

/** ``3 files``; ``at least 3 files`` where the server stopped counting. */
export function countFiles({ total, more }: Unkept): string {
  if (total === 0 && more) {
    return 'perhaps some files';
  }
  return `${more ? 'at least ' : ''}${total} ${total === 1 && !more ? 'file' : 'files'}`;
}

/** The first names, one a line, and how many there are beside them. */
export function listFiles(unkept: Unkept): HTMLElement {
  const others = unkept.total - unkept.paths.length;
  return element(
    'div',
    {},
    element(
      'ul',
      { class: 'gk-files' },
      ...unkept.paths.map(path => element('li', {}, element('bdi', {}, showName(path))))
    ),
    others > 0 || unkept.more
      ? element(
          'p',
          {},
          others > 0
            ? `and ${unkept.more ? 'at least ' : ''}${others} more`
            : unkept.total === 0
              ? 'Their names are not known.'
              : 'and more'
        )
      : null
  );
}

/** The button beside the shield; hidden while there is nothing to lose. */
export class UnkeptView {
  readonly node: HTMLButtonElement;

  constructor(click: () => void) {
    this.node = element('button', {
      class: 'gk-status gk-unkept',
      attributes: { type: 'button' },
      click
    });
    this.update(null);
  }

  update(unkept: Unkept | null): void {
    this.node.hidden = unkept === null || (unkept.total === 0 && !unkept.more);
    if (unkept === null) {
      setText(this.node, '');
      return;
    }
    const label =
      unkept.total === 0 && unkept.more
        ? 'there may be files that are not kept'
        : `${countFiles(unkept)} not kept`;
    setText(this.node, label);
    this.node.setAttribute('aria-label', `${label}. Show changes`);
    this.node.title =
      'What the kernel made or changed in /workspace is gone when its sandbox ends.\n' +
      'Click to look at it and apply it to the folder on disk.';
  }
}

/** Asks for one kernel at a time, a moment after the last wish, and never in a hidden page. */
export class UnkeptLook {
  private kernelId: string | null = null;
  private turn = 0;
  private cancel: (() => void) | null = null;
  private pending = false;
  private asked = -Infinity;
  private latest: Unkept | null = null;

  constructor(
    private readonly ask: (kernelId: string) => Promise<Unkept | null>,
    private readonly show: (unkept: Unkept | null) => void,
    private readonly timer: Timer,
    private readonly isVisible: () => boolean
  ) {}

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
    this.cancel?.();
    this.cancel = null;
    this.pending = false;
    this.turn += 1;
    this.asked = -Infinity;
    this.latest = null;
    this.show(null);
  }

  /** What was seen last of the kernel that is followed; null if nothing was. */
  get last(): Unkept | null {
    return this.latest;
  }

  /** Something may have changed: a cell has ended, changes were applied, the page is seen again. */
  want(): void {
    this.cancel?.();
    this.cancel = null;
    this.pending = this.kernelId !== null;
    if (this.pending && this.isVisible()) {
      const wait = Math.max(QUIET_SECONDS, this.asked + PAUSE_SECONDS - this.timer.now());
      this.cancel = this.timer.after(wait, () => {
        this.cancel = null;
        void this.look();
      });
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
    this.asked = this.timer.now();
    const turn = ++this.turn;
    let unkept: Unkept | null;
    try {
      unkept = await this.ask(kernelId);
    } catch {
      return; // the item beside this one says that the server does not answer
    }
    if (turn === this.turn) {
      this.latest = unkept;
      this.show(unkept);
    }
  }
}
