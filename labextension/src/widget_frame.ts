/**
 * A frame that shows widgets: what it holds, and what it is told, at its own pace.
 *
 * A frame that does not answer, as its page hangs, is told nothing more: of each model only the
 * names of what has changed are kept for it.
 */

import { type Model, type WidgetStore, describe } from './widget_store.js';

/** How the extension sends to a frame's bundle (``PageFrame.send``). */
export interface FramePort {
  send(data: unknown, buffers?: readonly ArrayBuffer[]): void;
}

/** Messages that a frame has not answered yet. */
const MAX_UNANSWERED = 200;
const MAX_UNANSWERED_BYTES = 64 * 1024 * 1024;
/** Custom messages that wait: no later one replaces them. */
const MAX_WAITING = 500;

export class WidgetFrame {
  /** Models that the frame has. */
  readonly models = new Set<string>();
  private unanswered = 0;
  private bytes = 0;
  private readonly changed = new Map<string, Set<string>>();
  private waiting: (() => void)[] = [];

  constructor(
    private readonly port: FramePort,
    private readonly store: WidgetStore
  ) {}

  /** Sends models that the frame does not have, and those that they need. */
  supply(ids: readonly string[]): void {
    this.sendModels(this.store.needed(ids, this.models), true);
  }

  /** Sends models of a notebook's file: no kernel has them. */
  supplySaved(saved: WidgetStore, id: string): void {
    this.sendModels(saved.needed([id]), false);
  }

  private sendModels(models: readonly Model[], live: boolean): void {
    if (models.length === 0) {
      return;
    }
    const described = models.map(model => describe(model));
    if (live) {
      for (const { id } of models) {
        this.models.add(id);
        this.changed.delete(id);
      }
    }
    const data = described.map(it => it.data);
    this.send(
      { kind: 'models', models: data, live },
      described.flatMap(it => it.buffers)
    );
  }

  /** Tells new values of attributes, now or when the frame has answered. */
  update(id: string, names: Iterable<string>): void {
    if (!this.models.has(id)) {
      return;
    }
    const changed = this.changed.get(id) ?? new Set();
    for (const name of names) {
      changed.add(name);
    }
    this.changed.set(id, changed);
    this.flush();
  }

  custom(id: string, content: unknown, buffers: readonly ArrayBuffer[]): void {
    if (this.models.has(id) && this.waiting.length < MAX_WAITING) {
      this.waiting.push(() => {
        this.send({ kind: 'custom', id, content }, buffers);
      });
      this.flush();
    }
  }

  /** Tells a frame what the kernel has made of its own message. */
  echo(
    id: string,
    state: object,
    paths: unknown,
    buffers: readonly ArrayBuffer[],
    n: number
  ): void {
    this.send({ kind: 'update', id, state: Object.entries(state), paths, echo: n }, buffers);
  }

  /** The kernel has done what a message asked for. */
  idle(n: number): void {
    this.port.send({ kind: 'idle', n });
  }

  close(id: string): void {
    if (this.models.delete(id)) {
      this.changed.delete(id);
      this.port.send({ kind: 'close', id });
    }
  }

  view(id: string): void {
    this.port.send({ kind: 'view', id });
  }

  none(id: string, text: string): void {
    this.port.send({ kind: 'none', id, text });
  }

  /** The kernel is gone, and its models with it. */
  lost(text: string): void {
    this.models.clear();
    this.changed.clear();
    this.waiting = [];
    this.port.send({ kind: 'lost', text });
  }

  /** The frame has done so many messages. */
  answered(count: unknown): void {
    if (Number.isSafeInteger(count) && (count as number) > 0) {
      this.unanswered = Math.max(0, this.unanswered - (count as number));
      this.bytes = this.unanswered === 0 ? 0 : this.bytes;
      this.flush();
    }
  }

  private hasRoom(): boolean {
    return this.unanswered < MAX_UNANSWERED && this.bytes < MAX_UNANSWERED_BYTES;
  }

  private flush(): void {
    while (this.waiting.length > 0 && this.hasRoom()) {
      this.waiting.shift()?.();
    }
    for (const [id, names] of this.changed) {
      if (!this.hasRoom()) {
        return;
      }
      this.changed.delete(id);
      const model = this.store.get(id);
      if (model !== undefined) {
        const own = [...names].flatMap(name => model.attributes.get(name)?.references ?? []);
        const missing = own.filter(it => !this.models.has(it));
        if (missing.length > 0) {
          this.supply(missing);
        }
        const { data, buffers } = describe(model, names);
        this.send(
          { kind: 'update', id, state: data.state, paths: data.paths, echo: null },
          buffers
        );
        this.bytes += [...names].reduce(
          (sum, it) => sum + (model.attributes.get(it)?.bytes ?? 0),
          0
        );
      }
    }
  }

  private send(data: unknown, buffers: readonly ArrayBuffer[]): void {
    this.unanswered += 1;
    this.port.send(data, buffers);
  }
}
