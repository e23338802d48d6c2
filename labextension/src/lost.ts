/**
 * Tells which files are gone with a sandbox that has ended. Jupyter's own ways to end a kernel
 * cannot all be asked before, and a death asks nobody: then this is what the person gets. There are
 * two sources, of which either may be missing: the server's event, and the list of running kernels.
 */

import type { SandboxClient } from './client.js';
import type { Lost, Sandbox, Unkept } from './contract.js';
import { escapeHidden, showName } from './dom.js';
import { hasFiles, sayGone } from './unkept.js';
import type { Timer } from './wishes.js';

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
  /** The last news of each kernel: when it was told, and when it was heard again. */
  private readonly news = new Map<string, { key: string; told: number; heard: number }>();

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
      this.hear(emission as unknown as Lost); // the server has compared it with its schema
    }
  }

  /**
   * A kernel has died whose sandbox had these files when it was asked last. The sandbox may live on,
   * with the files; one that ends as a whole leaves the server nothing to tell.
   */
  died(sandbox: Sandbox, unkept: Unkept): void {
    const { kernel_id, kernel_name } = sandbox;
    const when = this.timer.now();
    this.timer.after(NEWS_SECONDS, () => {
      if ((this.news.get(kernel_id)?.heard ?? -Infinity) < when - NEWS_SECONDS) {
        void this.lookAgain(sandbox, { kernel_id, kernel_name, ...unkept });
      }
    });
  }

  private async lookAgain(sandbox: Sandbox, lost: Lost): Promise<void> {
    try {
      const now = await this.client.kernel(sandbox.kernel_id);
      if (now === null || now.state === 'ended' || now.id !== sandbox.id) {
        this.hear(lost);
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

  private async lookBack(kernel_id: string, kernel_name: string): Promise<void> {
    try {
      const unkept = (await this.client.kernel(kernel_id))?.unkept ?? null;
      if (unkept !== null) {
        this.hear({ kernel_id, kernel_name, ...unkept });
      }
    } catch {
      // The server does not answer; what it would say cannot be known.
    }
    this.agreed.delete(kernel_id);
  }

  private hear(lost: Lost): void {
    if (!hasFiles(lost) || this.agreed.has(lost.kernel_id)) {
      return;
    }
    const heard = this.timer.now();
    const key = JSON.stringify([lost.total, lost.paths]);
    const before = this.news.get(lost.kernel_id);
    const isAgain = before?.key === key && heard - before.told <= AGAIN_SECONDS;
    this.news.set(lost.kernel_id, { key, told: isAgain ? before.told : heard, heard });
    if (!isAgain) {
      this.tell(lost);
    }
  }
}

/** A sentence for a notification: how many, and as many names as there is room for. */
export function describeLost(unkept: Unkept, name: string): string {
  const text = `${sayGone(unkept, ' in /workspace')} with the sandbox of ${escapeHidden(showName(cut(name, 40)))}`;
  const paths = unkept.paths.map(path => escapeHidden(showName(path)));
  for (let shown = paths.length; shown > 0; shown -= 1) {
    const others = unkept.total - shown;
    const more = others > 0 ? ` and ${unkept.more ? 'at least ' : ''}${others} more` : '';
    const sentence = `${text}: ${paths.slice(0, shown).join(', ')}${more}.`;
    if (sentence.length <= LONGEST_MESSAGE) {
      return sentence;
    }
  }
  return cut(`${text}.`, LONGEST_MESSAGE);
}

function cut(text: string, length: number): string {
  return text.length <= length ? text : `${text.slice(0, length - 1)}…`;
}
