/**
 * The manager of the widgets in a frame. Its models are copies of those that the extension keeps
 * (``src/widget_store.ts``), and their comms end there: one of another kernel has no name here.
 *
 * A model comes when something here names it: a view, an attribute of another model, an output.
 */

import * as base from '@jupyter-widgets/base';
import { ManagerBase } from '@jupyter-widgets/base-manager';
import * as controls from '@jupyter-widgets/controls';
import { PromiseDelegate } from '@lumino/coreutils';

import * as anywidget from './anywidget.js';
import { Drawer } from './draw.js';
import type { Tools } from './renderer.js';
import * as output from './widget_output.js';

type Message = Readonly<Record<string, unknown>>;
type Class = typeof base.WidgetModel | typeof base.WidgetView;
type Exports = Readonly<Record<string, unknown>>;

/** A part of a state, as ``describe`` in ``src/widget_store.ts`` makes it. */
interface ModelState {
  readonly state: readonly (readonly [string, unknown])[];
  readonly buffers: readonly { readonly path: (string | number)[]; readonly data: ArrayBuffer }[];
}

const BUNDLED: Readonly<Record<string, Exports>> = {
  '@jupyter-widgets/base': base,
  '@jupyter-widgets/controls': controls,
  '@jupyter-widgets/output': output,
  anywidget: anywidget
};

/** Models that take a change of another frame, which has done what their links do. If they did it
 *  here, too, a late answer would take back what was typed there meanwhile. */
const linked = new WeakSet<base.WidgetModel>();
const link = controls.DirectionalLinkModel.prototype;
const { updateValue } = link as { updateValue: (...values: unknown[]) => void };
link.updateValue = function (source: base.WidgetModel, ...rest): void {
  if (!linked.has(source)) {
    updateValue.call(this, source, ...rest);
  }
};

/** Packages that others need. */
const NEEDED = ['jupyter-threejs', 'jupyter-vue'];

/** What the page has of scripts of outputs (``page_scripts.ts``). */
interface Page {
  readonly require: ((
    names: string[],
    done: (found: Exports) => void,
    failed: (error: unknown) => void
  ) => void) & { readonly config: (options: object) => void };
  readonly gvisorDefine: (name: string, module: unknown) => void;
  readonly gvisorTypeset: (element: HTMLElement) => void;
  readonly gvisorImport: (url: string) => Promise<Exports>;
}

const bufferOf = (value: ArrayBuffer | ArrayBufferView): ArrayBuffer =>
  value instanceof ArrayBuffer
    ? value
    : new Uint8Array(value.buffer, value.byteOffset, value.byteLength).slice().buffer;

function stateOf({ state, buffers }: ModelState): Record<string, unknown> {
  const whole = Object.fromEntries(state);
  base.put_buffers(
    whole as never,
    buffers.map(({ path }) => path),
    buffers.map(({ data }) => new DataView(data))
  );
  return whole;
}

export class FrameManager extends ManagerBase {
  private readonly waiting = new Map<number, base.ICallbacks | undefined>();
  private readonly wanted = new Map<string, PromiseDelegate<base.WidgetModel>>();
  private asked: string[] = [];
  private readonly modules = new Map<string, Promise<Exports>>();
  private made: Drawer | null = null;
  private count = 0;

  constructor(readonly tools: Tools) {
    super();
  }

  /** Draws outputs, and runs scripts. Made late, as it changes how elements are added. */
  get drawer(): Drawer {
    this.made ??= new Drawer(this.tools);
    return this.made;
  }

  /** What views of widgets set formulas with. */
  readonly _rendermime = {
    latexTypesetter: {
      typeset: (element: HTMLElement): void => {
        if (/\$|\\[([]/.test(element.textContent)) {
          this.drawer.load(['gvisor:own:katex']).then(
            () => {
              this.page.gvisorTypeset(element);
            },
            (error: unknown) => {
              this.reportError(error);
            }
          );
        }
      }
    }
  };

  private get page(): Page {
    this.made ??= new Drawer(this.tools);
    return window as unknown as Page;
  }

  /** Runs a module, with libraries that are there; or what lies at an address, if it is known. */
  async importModule(source: string): Promise<Exports> {
    const { gvisorImport } = this.page; // which keeps the blobs that are made from now on
    const own = new Blob([source], { type: 'text/javascript' });
    return await gvisorImport(/^https?:/.test(source) ? source : URL.createObjectURL(own));
  }

  reportError(error: unknown): void {
    this.tools.reportError(error instanceof Error ? error.message : String(error));
  }

  /** Asks for a model that is not here, together with others that are asked for at this time. */
  override async get_model(id: string): Promise<base.WidgetModel> {
    if (this.has_model(id)) {
      return await super.get_model(id);
    }
    const wanted = this.wanted.get(id) ?? new PromiseDelegate<base.WidgetModel>();
    if (!this.wanted.has(id)) {
      this.wanted.set(id, wanted);
      this.asked.push(id);
      queueMicrotask(() => {
        if (this.asked.length > 0) {
          this.tools.send({ kind: 'want', ids: this.asked });
          this.asked = [];
        }
      });
    }
    return await wanted.promise;
  }

  /** A message of the extension. */
  async receive(message: Message): Promise<void> {
    const { kind, content, n } = message;
    const id = String(message.id);
    if (kind === 'open') {
      this.open(id, message as unknown as ModelState & Message);
    } else if (kind === 'none') {
      this.wanted.get(id)?.reject(new Error(String(message.text)));
      this.wanted.delete(id);
    } else if (kind === 'idle') {
      const callbacks = this.waiting.get(Number(n));
      this.waiting.delete(Number(n));
      callbacks?.iopub?.status?.({ content: { execution_state: 'idle' } } as never);
    } else if (kind === 'lost') {
      this.disconnect();
    } else if (this.has_model(id)) {
      const model = await this.get_model(id); // its class may still be loaded
      if (kind === 'close') {
        model._handle_comm_closed({} as never);
      } else if (kind === 'custom') {
        const buffers = (message.buffers as ArrayBuffer[]).map(it => new DataView(it));
        const data = { method: kind, content };
        await model._handle_comm_msg({ content: { data }, buffers } as never);
      } else {
        const data = { method: 'update', state: stateOf(message as unknown as ModelState) };
        linked[message.isOfFrames === true ? 'add' : 'delete'](model);
        await model._handle_comm_msg({ content: { data } } as never);
        linked.delete(model);
      }
    }
  }

  private open(id: string, message: ModelState & Message): void {
    const state = stateOf(message);
    const options = {
      model_name: String(state._model_name),
      model_module: String(state._model_module),
      model_module_version: String(state._model_module_version),
      model_id: id
    };
    const comm = message.live === true ? { comm: this.makeComm(id) } : {};
    const made = this.new_model({ ...options, ...comm }, state);
    made.catch((error: unknown) => {
      this.reportError(error);
    });
    this.wanted.get(id)?.resolve(made);
    this.wanted.delete(id);
  }

  /** A comm whose other side is the extension, which passes what it says to the kernel. */
  private makeComm(id: string): base.IClassicComm {
    return {
      comm_id: id,
      target_name: 'jupyter.widget',
      open: () => '', // the kernel has opened it
      close: () => '', // a view ends; the model is the kernel's
      send: (data, callbacks, _metadata, buffers = []) => {
        const n = ++this.count;
        this.waiting.set(n, callbacks);
        const { method: kind, state, buffer_paths: paths, content } = data as Message;
        this.tools.send({ kind, id, n, state, paths, content }, buffers.map(bufferOf));
        return String(n);
      },
      on_msg: () => undefined, // see ``receive``
      on_close: () => undefined
    };
  }

  protected override async loadClass(
    name: string,
    module: string,
    version: string
  ): Promise<Class> {
    const bundled = Object.hasOwn(BUNDLED, module) ? BUNDLED[module] : undefined;
    const known = bundled ?? this.modules.get(module) ?? this.loadModule(module);
    if (known instanceof Promise) {
      this.modules.set(module, known);
    }
    const found = (await known)[name];
    if (found === undefined) {
      throw new Error(`${module} ${version} has no "${name}".`);
    }
    return found as Class;
  }

  /** A package that is not bundled: its script for the classic notebook, from the server. */
  private async loadModule(name: string): Promise<Exports> {
    const { require, gvisorDefine: define } = this.page;
    for (const [module, exports] of Object.entries(BUNDLED)) {
      define(module, exports);
    }
    const paths = [name, ...NEEDED].map(it => [it, `gvisor:nbextension-${it}`]);
    require.config({ paths: Object.fromEntries(paths) as object });
    try {
      return await new Promise((resolve, reject) => {
        require([name], resolve, reject);
      });
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      const short = name.slice(0, 100);
      const told = new Error(`The widget package "${short}" cannot be shown here. ${reason}`);
      this.reportError(told);
      throw told;
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
