/**
 * Tells which files are gone with a sandbox that has ended. Jupyter's own ways to end a kernel
 * cannot all be asked before, and a death asks nobody: then this is what the person gets. There are
 * two sources, of which either may be missing: the server's event, and the list of running kernels.
 */

import type { SandboxClient } from './client.js';
import { type Lost, type Sandbox, type Unkept, readLost } from './contract.js';
import { escapeHidden, showName } from './dom.js';
import { countFiles } from './unkept.js';
import type { Timer } from './warm.js';

export const FILES_LOST = 'urn:gvisor-kernel:event:files-lost:v1';

/** The same news from the second source within this time is no news. */
export const AGAIN_SECONDS = 60;

/** How long the server's own news is waited for, which knows better what a dead kernel had. */
export const NEWS_SECONDS = 3;

/** JupyterLab cuts the texts of its notifications at 140 characters. */
export const LONGEST_MESSAGE = 140;

export interface RunningKernel {
  readonly id: string;
  readonly name: string;
}

export class LostFiles {
  private running = new Map<string, string>();
  private readonly agreed = new Set<string>();
  private readonly told = new Map<string, number>();
  private readonly heard = new Map<string, number>();

  constructor(
    private readonly client: Pick<SandboxClient, 'kernel'>,
    private readonly isOurs: (kernelName: string) => boolean,
    private readonly tell: (lost: Lost) => void,
    private readonly timer: Timer
  ) {}

  /** The person has seen the list and ends this kernel: no second telling. */
  agree(kernelId: string): void {
    this.agreed.add(kernelId);
  }

  /** The kernel did not end after all. */
  disagree(kernelId: string): void {
    this.agreed.delete(kernelId);
  }

  /** An event of the server, of any kind. */
  event(emission: Readonly<Record<string, unknown>>): void {
    if (emission.schema_id === FILES_LOST) {
      try {
        this.news(readLost(emission));
      } catch {
        // Not of the contract: the list of kernels is the second source.
      }
    }
  }

  /**
   * A kernel has died whose sandbox had these files when it was asked last. The sandbox may live on,
   * with the files; one that ends as a whole leaves the server nothing to tell.
   */
  died(sandbox: Sandbox, unkept: Unkept): void {
    const { kernelId, kernelName } = sandbox;
    const when = this.timer.now();
    this.timer.after(NEWS_SECONDS, () => {
      if ((this.heard.get(kernelId) ?? -Infinity) < when - NEWS_SECONDS) {
        void this.lookAgain(sandbox, { kernelId, kernelName, unkept });
      }
    });
  }

  private async lookAgain(sandbox: Sandbox, lost: Lost): Promise<void> {
    try {
      const now = await this.client.kernel(sandbox.kernelId);
      if (now === null || now.state === 'ended' || now.id !== sandbox.id) {
        this.news(lost);
      }
    } catch {
      // The server does not answer: whether the sandbox lives cannot be known.
    }
  }

  /** The kernels that run now: those of ours that are missing have ended. */
  async follow(kernels: Iterable<RunningKernel>): Promise<void> {
    const before = this.running;
    this.running = new Map(
      [...kernels].filter(it => this.isOurs(it.name)).map(it => [it.id, it.name])
    );
    const ended = [...before].filter(([id]) => !this.running.has(id));
    await Promise.all(ended.map(([id, name]) => this.lookBack(id, name)));
  }

  private async lookBack(kernelId: string, kernelName: string): Promise<void> {
    try {
      const unkept = (await this.client.kernel(kernelId))?.unkept ?? null;
      if (unkept !== null) {
        this.news({ kernelId, kernelName, unkept });
      }
    } catch {
      // The server does not answer; what it would say cannot be known.
    }
    this.agreed.delete(kernelId);
  }

  private news(lost: Lost): void {
    if ((lost.unkept.total === 0 && !lost.unkept.more) || this.agreed.has(lost.kernelId)) {
      return;
    }
    const now = this.timer.now();
    for (const times of [this.told, this.heard]) {
      for (const [key, when] of times) {
        if (now - when > AGAIN_SECONDS) {
          times.delete(key);
        }
      }
    }
    this.heard.set(lost.kernelId, now);
    const key = JSON.stringify([lost.kernelId, lost.unkept.total, lost.unkept.paths]);
    if (!this.told.has(key)) {
      this.told.set(key, now);
      this.tell(lost);
    }
  }
}

/** One line for a notification: how many, and as many names as there is room for. */
export function describeLost({ unkept }: Lost, name: string): string {
  const start = `${countFiles(unkept)} in /workspace ${unkept.total === 1 && !unkept.more ? 'is' : 'are'} gone with the sandbox of ${cut(name, 40)}`;
  const text = start.charAt(0).toUpperCase() + start.slice(1);
  const paths = unkept.paths.map(path => escapeHidden(showName(path)));
  const [first] = paths;
  const room = LONGEST_MESSAGE - text.length - ': …'.length;
  if (first === undefined || room < 8) {
    return cut(`${text}.`, LONGEST_MESSAGE);
  }
  const all = paths.join(', ');
  const complete = paths.length === unkept.total && !unkept.more && all.length <= room;
  return `${text}: ${complete ? all : cut(`${all}, `, room)}`;
}

function cut(text: string, length: number): string {
  return text.length <= length ? text : `${text.slice(0, length - 1)}…`;
}
