/** Turns and rates: what pages ask of JupyterLab waits here, so that JupyterLab has time of its own. */

/** Lets so many tasks run at a time; the others wait for their turn. */
export class Gate {
  private running = 0;
  private readonly waiting: (() => void)[] = [];

  constructor(private readonly limit: number) {}

  async pass<T>(task: () => Promise<T>): Promise<T> {
    if (this.running >= this.limit) {
      await new Promise<void>(resolve => this.waiting.push(resolve)); // takes over a place
    } else {
      this.running += 1;
    }
    try {
      return await task();
    } finally {
      const next = this.waiting.shift();
      if (next === undefined) {
        this.running -= 1;
      } else {
        next();
      }
    }
  }
}

export interface Time {
  /** Milliseconds. */
  now(): number;
  wait(milliseconds: number): Promise<void>;
}

const realTime: Time = {
  now: () => performance.now(),
  wait: milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds))
};

/** So many bytes at once, and so many a second after that. What is spent is known afterwards: who
 *  comes next waits until it is paid. */
export class Rate {
  private left: number;
  private since: number;

  constructor(
    private readonly perSecond: number,
    private readonly atOnce: number,
    private readonly time: Time = realTime
  ) {
    this.left = atOnce;
    this.since = time.now();
  }

  /** Waits until what was spent is paid. */
  async wait(): Promise<void> {
    for (;;) {
      const now = this.time.now();
      this.left = Math.min(this.atOnce, this.left + ((now - this.since) * this.perSecond) / 1000);
      this.since = now;
      if (this.left >= 0) {
        return;
      }
      await this.time.wait(Math.ceil((-this.left * 1000) / this.perSecond));
    }
  }

  spend(bytes: number): void {
    this.left -= bytes;
  }
}
