/**
 * The manager of the widgets in a frame. Its models are copies of those that the extension keeps
 * (``src/widget_store.ts``), and their comms end there: one of another kernel has no name here.
 */

import * as base from '@jupyter-widgets/base';
import { ManagerBase } from '@jupyter-widgets/base-manager';
import * as controls from '@jupyter-widgets/controls';

import * as anywidget from './anywidget.js';
import type { Tools } from './renderer.js';
import * as output from './widget_output.js';

type Message = Readonly<Record<string, unknown>>;
type Class = typeof base.WidgetModel | typeof base.WidgetView;
type Exports = Readonly<Record<string, unknown>>;
/** Sends to the extension. */
export type Post = (message: Message, buffers?: readonly ArrayBuffer[]) => void;

export interface ModelData {
  readonly id: string;
  readonly name: string;
  readonly module: string;
  readonly version: string;
  readonly state: readonly (readonly [string, unknown])[];
  readonly paths: (string | number)[][];
}

export const BUNDLED: Readonly<Record<string, Exports>> = {
  '@jupyter-widgets/base': base,
  '@jupyter-widgets/controls': controls,
  '@jupyter-widgets/output': output,
  anywidget: anywidget
};

const bufferOf = (value: ArrayBuffer | ArrayBufferView): ArrayBuffer =>
  value instanceof ArrayBuffer
    ? value
    : new Uint8Array(value.buffer, value.byteOffset, value.byteLength).slice().buffer;

/** A comm whose other side is the extension, which passes what it says to the kernel. */
class FrameComm implements base.IClassicComm {
  readonly target_name = 'jupyter.widget';
  private onMessage: ((message: unknown) => unknown) | null = null;
  private onClose: ((message: unknown) => void) | null = null;

  constructor(
    readonly comm_id: string,
    private readonly pass: (
      message: Message,
      callbacks: base.ICallbacks | undefined,
      buffers: readonly ArrayBuffer[]
    ) => string
  ) {}

  open(): string {
    return ''; // the kernel has opened it
  }

  send(
    data: unknown,
    callbacks?: base.ICallbacks,
    _metadata?: unknown,
    buffers: readonly (ArrayBuffer | ArrayBufferView)[] = []
  ): string {
    const { method, state, buffer_paths: paths, content } = data as Message;
    const message = { kind: method, id: this.comm_id, state, paths, content };
    return this.pass(message, callbacks, buffers.map(bufferOf));
  }

  close(): string {
    return ''; // a view ends; the model is the kernel's
  }

  on_msg(callback: (message: unknown) => unknown): void {
    this.onMessage = callback;
  }

  on_close(callback: (message: unknown) => void): void {
    this.onClose = callback;
  }

  async receive(data: Message, buffers: readonly ArrayBuffer[], parent: string): Promise<void> {
    const views = buffers.map(it => new DataView(it));
    await this.onMessage?.({
      content: { data },
      buffers: views,
      parent_header: { msg_id: parent }
    });
  }

  end(): void {
    this.onClose?.({});
  }
}

export class FrameManager extends ManagerBase {
  private readonly comms = new Map<string, FrameComm>();
  private readonly waiting = new Map<number, base.ICallbacks | undefined>();
  private readonly modules = new Map<string, Promise<Exports>>();
  private count = 0;

  constructor(
    readonly tools: Tools,
    private readonly post: Post,
    private readonly readModule: (name: string, version: string) => Promise<Exports>
  ) {
    super();
  }

  async addModels(
    models: readonly ModelData[],
    buffers: readonly ArrayBuffer[],
    live: boolean
  ): Promise<void> {
    let first = 0;
    const made = models.map(({ id, name, module, version, state: entries, paths }) => {
      const own = buffers.slice(first, first + paths.length);
      first += paths.length;
      const state = Object.fromEntries(entries);
      if (this.has_model(id)) {
        return this.update(id, state, paths, own, null);
      }
      base.put_buffers(
        state as never,
        paths,
        own.map(it => new DataView(it))
      );
      const comm = live ? new FrameComm(id, this.pass) : undefined;
      if (comm !== undefined) {
        this.comms.set(id, comm);
      }
      const options = { model_name: name, model_module: module, model_module_version: version };
      // Registers the model before it waits for anything: others may name it.
      return this.new_model({ ...options, model_id: id, ...(comm ? { comm } : {}) }, state);
    });
    await Promise.all(made);
  }

  private readonly pass = (
    message: Message,
    callbacks: base.ICallbacks | undefined,
    buffers: readonly ArrayBuffer[]
  ): string => {
    const n = ++this.count;
    this.waiting.set(n, callbacks);
    this.post({ ...message, n }, buffers);
    return String(n);
  };

  async update(
    id: string,
    state: Message,
    paths: unknown,
    buffers: readonly ArrayBuffer[],
    echo: number | null
  ): Promise<void> {
    const method = echo === null ? 'update' : 'echo_update';
    const data = { method, state, buffer_paths: paths };
    await this.comms.get(id)?.receive(data, buffers, String(echo));
  }

  async custom(id: string, content: unknown, buffers: readonly ArrayBuffer[]): Promise<void> {
    if (this.has_model(id)) {
      await this.get_model(id); // its class may still be loaded
    }
    await this.comms.get(id)?.receive({ method: 'custom', content }, buffers, '');
  }

  idle(n: number): void {
    const callbacks = this.waiting.get(n);
    this.waiting.delete(n);
    callbacks?.iopub?.status?.({ content: { execution_state: 'idle' } } as never);
  }

  close(id: string): void {
    this.comms.get(id)?.end();
    this.comms.delete(id);
  }

  protected override async loadClass(
    name: string,
    module: string,
    version: string
  ): Promise<Class> {
    const bundled = Object.hasOwn(BUNDLED, module) ? BUNDLED[module] : undefined;
    const exports = bundled ?? (await this.loadModule(module, version));
    const found = exports[name];
    if (found === undefined) {
      throw new Error(`${module} ${version} has no "${name}".`);
    }
    return found as Class;
  }

  private async loadModule(module: string, version: string): Promise<Exports> {
    const known = this.modules.get(module) ?? this.readModule(module, version);
    this.modules.set(module, known);
    try {
      return await known;
    } catch (error) {
      this.tools.reportError(error instanceof Error ? error.message : String(error));
      throw error;
    }
  }

  // A new widget of a frame's own stays in the frame.
  protected override async _create_comm(): Promise<base.IClassicComm> {
    return await Promise.reject(new Error('A widget in a frame opens no comm of its own.'));
  }

  protected override async _get_comm_info(): Promise<object> {
    return await Promise.resolve({});
  }
}
