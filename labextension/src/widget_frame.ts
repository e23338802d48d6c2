/**
 * A frame that shows widgets, as the extension sees it: which models it has, what it is told, at its
 * own pace, and what it asks for.
 *
 * A frame is as little trusted as the kernel. It has a kernel's models, or those that a file has
 * kept; what it sends goes to this kernel's comm of a model that it has, and nowhere else.
 */

import type { KernelWidgets } from './widget_comms.js';
import {
  type Fields,
  type Model,
  WidgetStore,
  describe,
  isId,
  measure,
  recordOf
} from './widget_store.js';

/** How the extension sends to a frame's bundle (``PageFrame.send``). */
export interface FramePort {
  send(data: unknown): void;
}

/** Packets that a frame has not answered yet. Of one that hangs, names of what changes are kept. */
const MAX_UNANSWERED = 8;
/** What waits for an answer, beside changes: no later message replaces it. */
const MAX_WAITING = 2000;
const MAX_WAITING_BYTES = 64 * 1024 * 1024;
/** Of packets that are not answered, about: no more is sent above. */
const MAX_SENT_BYTES = 64 * 1024 * 1024;
/** Models of one frame, and messages of it in a second. */
const MAX_MODELS = 5000;
const MAX_PER_SECOND = 200;

/** Attributes that have changed; null: all of a model that the frame does not have. */
interface Change {
  readonly id: string;
  names: Set<string> | null;
  /** Only frames have made it: they have done what links of it do, and tell it, too. */
  isOfFrames: boolean;
}

export class WidgetFrame {
  readonly models = new Set<string>();
  private queue: (Change | Fields)[] = [];
  private readonly changes = new Map<string, Change>();
  private bytes = 0;
  private unanswered = 0;
  private sent = 0;
  private second = 0;
  private count = 0;
  private saved: WidgetStore | null = null;

  /** ``readSaved`` returns what the notebook's file has kept of its widgets. */
  constructor(
    private readonly port: FramePort,
    private readonly kernel: KernelWidgets | null,
    private readonly readSaved: () => unknown
  ) {}

  /** A message of the frame. */
  receive(data: unknown, buffers: readonly ArrayBuffer[]): void {
    const message = recordOf(data);
    const { kind, id, ids, n, count } = message;
    if (kind === 'done') {
      const answered = Number.isSafeInteger(count) ? Math.max(0, count as number) : 0;
      this.unanswered = Math.max(0, this.unanswered - answered);
      this.sent = this.unanswered === 0 ? 0 : this.sent;
      this.flush();
      return;
    }
    const second = Math.floor(performance.now() / 1000);
    this.count = second === this.second ? this.count + 1 : 1;
    this.second = second;
    if (kind === 'want' && this.count <= MAX_PER_SECOND) {
      // Each id once: a model may be an end of thousands of links.
      const wanted = new Set(Array.isArray(ids) ? ids.slice(0, MAX_MODELS).filter(isId) : []);
      void this.supply([...wanted]);
    } else if (typeof n === 'number') {
      const isSent =
        this.count <= MAX_PER_SECOND && isId(id) && this.models.has(id)
          ? this.kernel?.pass(this, id, message, buffers)
          : undefined;
      const idle = (): void => {
        this.say({ kind: 'idle', n });
      };
      (isSent ?? Promise.resolve()).then(idle, idle);
    }
  }

  /** Sends models by their ids, as soon as they are known: of the kernel, or of the file. */
  private async supply(ids: readonly string[]): Promise<void> {
    const missing = ids.filter(id => !this.open(id));
    this.flush();
    if (missing.length > 0) {
      await this.kernel?.restore();
    }
    for (const id of missing) {
      if (!this.open(id)) {
        this.openSaved(id);
      }
    }
    this.flush();
  }

  /** Lets the frame have a model of the kernel, and the links that it is an end of. */
  private open(id: string): boolean {
    for (const one of [id, ...(this.kernel?.store.linksOf(id) ?? [])]) {
      if (!this.models.has(one) && this.kernel?.store.get(one) !== undefined) {
        if (this.models.size >= MAX_MODELS) {
          break;
        }
        this.models.add(one);
        this.change(one, null);
      }
    }
    return this.models.has(id);
  }

  /** A model has begun. One that connects models of this frame is shown by them. */
  opened({ id, ends }: Model): void {
    if (ends.some(end => this.models.has(end)) && this.open(id)) {
      this.flush();
    }
  }

  private openSaved(id: string): void {
    if (this.saved === null) {
      this.saved = new WidgetStore();
      this.saved.load(this.readSaved()); // which may take half a second
    }
    const model = this.saved.get(id);
    const text =
      this.kernel === null
        ? 'The file has not kept this widget: run the cell.'
        : 'The kernel does not have this widget any more: run the cell again.';
    this.say(
      model === undefined
        ? { kind: 'none', id, text }
        : { kind: 'open', id, live: false, ...describe(model) }
    );
  }

  /** Tells new values of attributes. */
  update(id: string, names: readonly string[], isOfFrames: boolean): void {
    if (this.models.has(id)) {
      this.change(id, names, isOfFrames);
      this.flush();
    }
  }

  private change(id: string, names: readonly string[] | null, isOfFrames = false): void {
    const waiting = this.changes.get(id);
    if (waiting === undefined) {
      const change = { id, names: names === null ? null : new Set(names), isOfFrames };
      this.changes.set(id, change);
      this.queue.push(change);
    } else if (waiting.names !== null) {
      waiting.isOfFrames &&= isOfFrames;
      waiting.names = names === null ? null : new Set([...waiting.names, ...names]);
    }
  }

  custom(id: string, content: unknown, buffers: readonly ArrayBuffer[]): void {
    if (this.models.has(id)) {
      const bytes = buffers.reduce((sum, it) => sum + it.byteLength, measure(content));
      this.say({ kind: 'custom', id, content, buffers }, bytes);
    }
  }

  closed(id: string): void {
    if (this.models.delete(id)) {
      this.say({ kind: 'close', id });
    }
  }

  /** The kernel is gone, and its models with it. */
  lost(): void {
    this.models.clear();
    this.say({ kind: 'lost', text: 'The kernel of this widget is gone: run the cell again.' });
  }

  private say(message: Fields, bytes = 0): void {
    if (this.queue.length < MAX_WAITING && this.bytes + bytes < MAX_WAITING_BYTES) {
      this.bytes += bytes;
      this.queue.push(message);
      this.flush();
    }
  }

  private flush(): void {
    const hasRoom = this.unanswered < MAX_UNANSWERED && this.sent < MAX_SENT_BYTES;
    if (hasRoom && this.queue.length > 0) {
      this.sent += this.bytes;
      const packet = this.queue.flatMap(it => ('kind' in it ? [it] : this.describe(it as Change)));
      this.queue = [];
      this.changes.clear();
      this.bytes = 0;
      this.unanswered += 1;
      this.port.send({ packet });
    }
  }

  private describe({ id, names, isOfFrames }: Change): Fields[] {
    const model = this.kernel?.store.get(id);
    if (model === undefined) {
      return []; // closed meanwhile
    }
    for (const name of names ?? model.attributes.keys()) {
      this.sent += model.attributes.get(name)?.bytes ?? 0;
    }
    return [
      names === null
        ? { kind: 'open', id, live: true, ...describe(model) }
        : { kind: 'update', id, isOfFrames, ...describe(model, names) }
    ];
  }

  dispose(): void {
    this.kernel?.detach(this);
  }
}
