/**
 * A frame that shows widgets, as the extension sees it: which models it has, what it is told, at its
 * own pace, and what it asks for.
 *
 * A frame is as little trusted as the kernel. It has a kernel's models, or those that a file has
 * kept; what it sends goes to this kernel's widgets that it has, and nowhere else.
 */

import type { KernelWidgets } from './widget_comms.js';
import { type Fields, type Model, describe, isId, measure, recordOf } from './widget_store.js';

/** How the extension sends to a frame's bundle (``PageFrame.send``). */
export interface FramePort {
  send(data: unknown): void;
}

/** What waits for a frame, beside changes: no later message replaces it. */
const MAX_WAITING = 2000;
const MAX_WAITING_BYTES = 64 * 1024 * 1024;
/** Models of one frame. */
const MAX_MODELS = 5000;

export class WidgetFrame {
  readonly models = new Set<string>();
  /** Messages, and ids of models with the attributes that have changed; null: it begins. */
  private queue = new Map<Fields | string, Set<string> | null>();
  private bytes = 0;
  /** One packet is not answered yet. Of a frame that hangs, names of what changes are kept. */
  private isBusy = false;
  private saved: Fields | null = null;
  private hasScene = false;

  /** ``readSaved`` returns what the notebook's file has kept of its widgets. */
  constructor(
    private readonly port: FramePort,
    private readonly kernel: KernelWidgets | null,
    private readonly readSaved: () => unknown
  ) {}

  /** Whether all of it is of a kernel, and nothing of a file. */
  get isOfKernel(): boolean {
    return this.models.size > 0 && this.saved === null;
  }

  /** A message of the frame. */
  receive(data: unknown, buffers: readonly ArrayBuffer[]): void {
    const message = recordOf(data);
    const { kind, id, ids } = message;
    if (kind === 'done') {
      this.isBusy = false;
      this.flush();
    } else if (kind === 'want') {
      // Each id once, however often it is asked for.
      const wanted = new Set(Array.isArray(ids) ? ids.slice(0, MAX_MODELS).filter(isId) : []);
      void this.supply([...wanted]);
    } else if (isId(id) && this.models.has(id)) {
      this.kernel?.pass(this, id, message, buffers);
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

  /** Lets the frame have a model of the kernel. */
  private open(id: string): boolean {
    const model = this.kernel?.store.get(id);
    if (model !== undefined && !this.models.has(id) && this.models.size < MAX_MODELS) {
      this.models.add(id);
      this.queue.set(id, null);
      if (!this.hasScene && isOfScene(model)) {
        this.hasScene = true;
        this.kernel?.store.ids().forEach(it => this.opened(this.kernel?.store.get(it)));
      }
    }
    return this.models.has(id);
  }

  /** A model has begun; parts of a scene name one another by numbers of their own. */
  opened(model: Model | undefined): void {
    if (model !== undefined && this.hasScene && isOfScene(model) && this.open(model.id)) {
      this.flush();
    }
  }

  private openSaved(id: string): void {
    this.saved ??= recordOf(recordOf(this.readSaved()).state); // which may take half a second
    const model = Object.hasOwn(this.saved, id) ? this.saved[id] : undefined;
    const text =
      this.kernel === null
        ? 'The file has not kept this widget: run the cell.'
        : 'The kernel does not have this widget any more: run the cell again.';
    const isSaved = model !== undefined && measure(model) !== Infinity;
    this.say(isSaved ? { kind: 'saved', id, model } : { kind: 'none', id, text });
  }

  /** Tells new values of attributes. */
  update(id: string, names: readonly string[]): void {
    if (this.models.has(id)) {
      const waiting = this.queue.get(id);
      if (waiting !== null) {
        this.queue.set(id, new Set([...(waiting ?? []), ...names]));
      }
      this.flush();
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
    if (
      this.queue.size < MAX_WAITING + this.models.size &&
      this.bytes + bytes < MAX_WAITING_BYTES
    ) {
      this.bytes += bytes;
      this.queue.set(message, null);
      this.flush();
    }
  }

  private flush(): void {
    if (!this.isBusy && this.queue.size > 0) {
      const packet = [...this.queue].flatMap(([it, names]) =>
        typeof it === 'string' ? this.describe(it, names) : [it]
      );
      this.queue.clear();
      this.bytes = 0;
      this.isBusy = true;
      this.port.send({ kind: 'packet', packet });
    }
  }

  private describe(id: string, names: Set<string> | null): Fields[] {
    const model = this.kernel?.store.get(id);
    const kind = names === null ? 'open' : 'update';
    return model === undefined // closed meanwhile
      ? []
      : [{ kind, id, ...describe(model, names ?? undefined) }];
  }

  dispose(): void {
    this.kernel?.detach(this);
  }
}

/** Of k3d, whose plots name their objects by no reference. */
const isOfScene = ({ attributes }: Model): boolean =>
  String(attributes.get('_anywidget_id')?.value).startsWith('k3d.');
