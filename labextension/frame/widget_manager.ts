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
import { MessageLoop } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';

import { Drawer } from './draw.js';
import { type Tools, add } from './renderer.js';
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
  '@jupyter-widgets/output': output
};
/** Packages whose script for the classic notebook is in the extension, and those that others need. */
const PATHS: Readonly<Record<string, string>> = {
  anywidget: 'gvisor:own:anywidget',
  'jupyter-threejs': 'gvisor:nbextension-jupyter-threejs',
  'jupyter-vue': 'gvisor:nbextension-jupyter-vue'
};
/** A model sends so often: what changes meanwhile is in its next message. */
const MILLISECONDS_OF_MESSAGE = 20;

/** What the page has of scripts of outputs (``page_scripts.ts``). */
interface Page {
  readonly require: ((
    names: string[],
    done: (found: Exports) => void,
    failed: (error: unknown) => void
  ) => void) & { readonly config: (options: object) => void };
  readonly gvisorDefine: (name: string, module: unknown) => void;
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

export function addNote(node: HTMLElement, text: string): void {
  const note = add(node, 'p', text);
  note.className = 'gk-widget-note';
  node.prepend(note);
}

export class FrameManager extends ManagerBase {
  private readonly wanted = new Map<string, PromiseDelegate<base.WidgetModel>>();
  private asked: string[] = [];
  /** Draws outputs, and runs scripts. */
  readonly drawer: Drawer;
  private readonly page = window as unknown as Page;
  private count = 0;
  private readonly shown = new Set<Widget>();

  constructor(readonly tools: Tools) {
    super();
    this.drawer = new Drawer(tools);
    for (const [name, exports] of Object.entries(BUNDLED)) {
      this.page.gvisorDefine(name, exports);
    }
    this.page.require.config({ paths: PATHS });
    window.addEventListener('resize', () => {
      for (const widget of this.shown) {
        MessageLoop.postMessage(widget, Widget.ResizeMessage.UnknownSize);
      }
    });
  }

  /** Puts the view of a model into its place of the frame. */
  async show(id: string, node: HTMLElement): Promise<void> {
    try {
      const model: object = await this.get_model(id);
      const view = await this.create_view(model as never);
      const { luminoWidget: widget } = view as unknown as { luminoWidget: Widget };
      Widget.attach(widget, node);
      this.shown.add(widget);
      widget.disposed.connect(() => this.shown.delete(widget));
    } catch (error) {
      addNote(node, error instanceof Error ? error.message : String(error));
    }
  }

  /** What views of widgets set formulas with. */
  readonly _rendermime = {
    latexTypesetter: { typeset: (it: HTMLElement): void => void this.drawer.typeset(it) }
  };

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
    const { kind, content } = message;
    const id = String(message.id);
    if (kind === 'open') {
      this.open(id, stateOf(message as unknown as ModelState), this.makeComm(id));
    } else if (kind === 'saved') {
      const saved = { version_major: 2, version_minor: 0, state: { [id]: message.model } };
      const made = this.set_state(saved as never).then(() => super.get_model(id));
      this.begin(id, made);
    } else if (kind === 'none') {
      this.wanted.get(id)?.reject(new Error(String(message.text)));
      this.wanted.delete(id);
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
        await model._handle_comm_msg({ content: { data } } as never);
      }
    }
  }

  private open(id: string, state: Record<string, unknown>, comm: base.IClassicComm): void {
    const options = {
      model_name: String(state._model_name),
      model_module: String(state._model_module),
      model_module_version: String(state._model_module_version),
      model_id: id,
      comm
    };
    this.begin(id, this.new_model(options, state));
  }

  private begin(id: string, made: Promise<base.WidgetModel>): void {
    made.catch((error: unknown) => this.reportError(error));
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
        const { method: kind, state, buffer_paths: paths, content } = data as Message;
        this.tools.send({ kind, id, state, paths, content }, buffers.map(bufferOf));
        setTimeout(
          () => callbacks?.iopub?.status?.({ content: { execution_state: 'idle' } } as never),
          MILLISECONDS_OF_MESSAGE
        );
        return String(++this.count);
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
    const { require } = this.page;
    if (!Object.hasOwn(PATHS, module)) {
      require.config({ paths: { [module]: `gvisor:nbextension-${module}` } }); // if it is not bundled
    }
    const exports = await new Promise<Exports>((resolve, reject) =>
      require([module], resolve, reject)
    ).catch((error: unknown) => {
      const reason = error instanceof Error ? error.message : String(error);
      const short = module.slice(0, 100);
      const told = new Error(`The widget package "${short}" cannot be shown here. ${reason}`);
      this.reportError(told);
      throw told;
    });
    const found = exports[name];
    if (found === undefined) {
      throw new Error(`${module} ${version} has no "${name}".`);
    }
    return found as Class;
  }

  // A new widget of a frame's own stays in the frame.
  protected override async _create_comm(): Promise<base.IClassicComm> {
    return await Promise.reject(new Error('A widget in a frame opens no comm of its own.'));
  }

  protected override async _get_comm_info(): Promise<object> {
    return await Promise.resolve({});
  }
}
