/**
 * Tells the server which kernel and folder may come next, so that it can make the snapshot and
 * keep a spare. Folders change quickly while somebody walks through them: only the last one is
 * sent, and not more often than every ten seconds.
 */

export const QUIET_SECONDS = 0.5;
export const PAUSE_SECONDS = 10;

export interface Timer {
  now(): number;
  after(seconds: number, call: () => void): () => void;
}

export class Warmer {
  private wanted: { readonly kernelName: string; readonly path: string } | null = null;
  private sent = -Infinity;
  private cancel: (() => void) | null = null;

  constructor(
    private readonly post: (kernelName: string, path: string) => Promise<void>,
    private readonly timer: Timer
  ) {}

  want(kernelName: string, path: string): void {
    this.wanted = { kernelName, path };
    this.cancel?.();
    const wait = Math.max(QUIET_SECONDS, this.sent + PAUSE_SECONDS - this.timer.now());
    this.cancel = this.timer.after(wait, () => {
      this.cancel = null;
      this.flush();
    });
  }

  private flush(): void {
    const wanted = this.wanted;
    if (wanted === null) {
      return;
    }
    this.wanted = null;
    this.sent = this.timer.now();
    // A favour that is refused costs a slower start, which is no reason to disturb anybody.
    this.post(wanted.kernelName, wanted.path).catch(() => undefined);
  }
}

export const pageTimer: Timer = {
  now: () => performance.now() / 1000,
  after: (seconds, call) => {
    const id = window.setTimeout(call, seconds * 1000);
    return () => {
      window.clearTimeout(id);
    };
  }
};
