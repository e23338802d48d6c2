/** Wishes that come quickly one after the other: only the last one is followed, and not too often. */

export interface Timer {
  now(): number;
  after(seconds: number, call: () => void): () => void;
}

export const pageTimer: Timer = {
  now: () => performance.now() / 1000,
  after: (seconds, call) => {
    const id = window.setTimeout(call, seconds * 1000);
    return () => window.clearTimeout(id);
  }
};

/** Acts ``quiet`` seconds after the last wish, and ``pause`` seconds after it has acted before. */
export class Wishes {
  private acted = -Infinity;
  private cancel: (() => void) | null = null;

  constructor(
    private readonly quiet: number,
    private readonly pause: number,
    private readonly timer: Timer,
    private readonly act: () => void
  ) {}

  want(): void {
    this.cancel?.();
    const wait = Math.max(this.quiet, this.acted + this.pause - this.timer.now());
    this.cancel = this.timer.after(wait, () => {
      this.acted = this.timer.now();
      this.act();
    });
  }

  /** Nothing is wished for, and the next wish has not to wait. */
  forget(): void {
    this.cancel?.();
    this.acted = -Infinity;
  }
}
