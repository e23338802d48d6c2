/**
 * The widgets of one kernel of ours: its comms of the target ``jupyter.widget``, the store of their
 * states, and the frames that show them. The rules are here; no widget runs.
 *
 * The kernel sends → ``open``, ``receive``: store → ``change``: each frame that has the model.
 * A frame sends → ``pass``: store, other frames, what is linked, and as soon as it has done with
 * what it had, the kernel. A frame opens no comm.
 */

import type { Kernel, KernelMessage } from '@jupyterlab/services';
import type { JSONObject } from '@lumino/coreutils';

import { type FramePort, WidgetFrame } from './widget_frame.js';
import { WidgetLinks } from './widget_links.js';
import { WidgetOutputs } from './widget_outputs.js';
import {
  type Attribute,
  type Buffer,
  type Fields,
  MAX_MODELS,
  WidgetStore,
  describe,
  measure,
  readBuffers,
  readLooseBuffers,
  recordOf
} from './widget_store.js';

export const TARGET = 'jupyter.widget';
export const CONTROL_TARGET = 'jupyter.widget.control';
/** Messages of frames that the kernel works at. */
const MAX_UNDER_WAY = 100;

/** What is used of a kernel's connection. */
export type Connection = Pick<
  Kernel.IKernelConnection,
  'createComm' | 'hasComm' | 'registerMessageHook' | 'removeMessageHook'
>;

export class KernelWidgets {
  readonly store = new WidgetStore();
  private readonly comms = new Map<string, Kernel.IComm>();
  private readonly frames = new Set<WidgetFrame>();
  /** Messages that the kernel works at, and the models whose attributes they tell. */
  private readonly underWay = new Map<string, string>();
  /** Attributes that the kernel is told next, by their models. */
  private readonly untold = new Map<string, Set<string>>();
  private readonly links: WidgetLinks;
  private readonly outputs: WidgetOutputs;
  private restoring: Promise<void> | null = null;

  /** ``createComm`` is the connection's, as it was before it was guarded. */
  constructor(
    private readonly connection: Connection,
    private readonly createComm: Connection['createComm']
  ) {
    const put = (id: string, name: string, attribute: Attribute): void => {
      if (this.store.put(id, new Map([[name, attribute]]))) {
        this.spread(id, [name], null);
        this.push(id, [name]);
      }
    };
    this.outputs = new WidgetOutputs(connection, put);
    this.links = new WidgetLinks(this.store, put);
  }

  attach(port: FramePort, readSaved: () => unknown): WidgetFrame {
    const frame = new WidgetFrame(port, this, readSaved);
    this.frames.add(frame);
    return frame;
  }

  detach(frame: WidgetFrame): void {
    this.frames.delete(frame);
  }

  /** The kernel has opened a comm: a new widget. */
  open(comm: Kernel.IComm, message: KernelMessage.ICommOpenMsg): void {
    const data = recordOf(message.content.data);
    this.begin(comm, data.state, readBuffers(data.buffer_paths, message.buffers));
  }

  private begin(comm: Kernel.IComm, state: unknown, buffers: readonly Buffer[] | null): void {
    const { commId: id } = comm;
    this.closed(id); // there is none, unless the kernel has it twice
    const model = buffers && this.store.open(id, state, buffers);
    if (model === null) {
      comm.dispose(); // no answer: a kernel that makes too many is not asked to close them
      return;
    }
    this.comms.set(id, comm);
    comm.onMsg = message => this.receive(id, message);
    comm.onClose = () => this.closed(id);
    this.outputs.look(model);
    this.links.look(model);
    for (const frame of this.frames) {
      frame.opened(model);
    }
  }

  private closed(id: string): void {
    this.comms.delete(id);
    this.outputs.close(id);
    this.links.close(id);
    this.untold.delete(id);
    this.store.close(id);
    for (const frame of this.frames) {
      frame.closed(id);
    }
  }

  /** A message of the kernel to the front end's side of a widget. */
  private receive(id: string, message: KernelMessage.ICommMsgMsg): void {
    const { method, state, buffer_paths: paths, content } = recordOf(message.content.data);
    if (method === 'custom') {
      const loose = readLooseBuffers(message.buffers);
      for (const frame of loose === null ? [] : this.frames) {
        frame.custom(id, content, loose ?? []);
      }
      return;
    }
    const buffers = readBuffers(paths, message.buffers);
    // What the kernel says again of a frame's message was kept, and told to others, when it was sent.
    const isEcho =
      method === 'echo_update' && this.underWay.has(String(recordOf(message.parent_header).msg_id));
    if ((method === 'update' || method === 'echo_update') && !isEcho && buffers !== null) {
      this.change(id, state, buffers, null);
    }
  }

  /** Keeps new values, and tells them to the frames, without that which has sent them. Returns the
   *  names of their attributes; null if they are none. */
  private change(
    id: string,
    state: unknown,
    buffers: readonly Buffer[],
    from: WidgetFrame | null
  ): readonly string[] | null {
    const names = this.store.update(id, state, buffers);
    const model = this.store.get(id);
    if (model !== undefined && names !== null) {
      if (from === null && names.includes('msg_id')) {
        this.outputs.look(model); // no frame decides what is caught
      }
      this.spread(id, names, from);
    }
    return names;
  }

  private spread(id: string, names: readonly string[], from: WidgetFrame | null): void {
    for (const frame of this.frames) {
      if (frame !== from) {
        frame.update(id, names);
      }
    }
    this.links.follow(id, names);
  }

  private send(id: string, data: Fields, buffers: readonly ArrayBuffer[]): void {
    const comm = this.comms.get(id);
    if (comm === undefined || comm.isDisposed) {
      return;
    }
    const future = comm.send(data as JSONObject, {}, [...buffers]);
    const { msg_id: messageId } = future.msg.header;
    this.underWay.set(messageId, data.method === 'update' ? id : '');
    const done = (): void => {
      this.underWay.delete(messageId);
      this.pushAll();
    };
    future.done.then(done, done);
  }

  /** Tells the kernel attributes as they are when it has done with what it was told of the model. */
  private push(id: string, names: readonly string[]): void {
    this.untold.set(id, new Set([...(this.untold.get(id) ?? []), ...names]));
    this.pushAll();
  }

  private pushAll(): void {
    for (const [id, names] of this.untold) {
      const model = this.store.get(id);
      if (this.underWay.size >= MAX_UNDER_WAY) {
        return;
      }
      if (model !== undefined && ![...this.underWay.values()].includes(id)) {
        this.untold.delete(id);
        const { state, buffers } = describe(model, names);
        const paths = buffers.map(({ path }) => path);
        const data = { method: 'update', state: Object.fromEntries(state), buffer_paths: paths };
        const all = buffers.map(it => it.data);
        this.send(id, data, all);
      }
    }
  }

  /** A frame's message to a model that it has. */
  pass(frame: WidgetFrame, id: string, message: Fields, list: readonly ArrayBuffer[]): void {
    const { kind, state, paths, content } = message;
    const buffers = kind === 'update' ? readBuffers(paths, list) : null;
    const names = buffers && this.change(id, state, buffers, frame);
    if (names !== null && names.length > 0) {
      this.push(id, names);
    }
    const isCustom = kind === 'custom' && measure(content) !== Infinity;
    if (isCustom && this.underWay.size < MAX_UNDER_WAY) {
      this.send(id, { method: kind, content }, list);
    }
  }

  /** Asks the kernel for its widgets, once; after a reload of the page it has some already. */
  async restore(): Promise<void> {
    this.restoring ??= this.ask().catch(() => undefined);
    await this.restoring;
  }

  /** The connection was lost for a while: what the kernel has sent meanwhile is asked for. */
  reconnected(): void {
    this.restoring = null;
    if (this.store.size > 0) {
      void this.restore();
    }
  }

  private async ask(): Promise<void> {
    const answer = await this.askControl();
    const { states, buffer_paths: paths } = recordOf(answer?.content.data);
    const all = readBuffers(paths, answer?.buffers) ?? [];
    for (const [id, it] of Object.entries(recordOf(states)).slice(0, MAX_MODELS)) {
      const { state } = recordOf(it);
      const buffers = all
        .filter(({ path }) => path[0] === id)
        .map(({ path, data }) => ({ path: path.slice(2), data })) // after the id comes "state"
        .filter(({ path }) => path.length > 0);
      if (this.change(id, state, buffers, null) === null && !this.connection.hasComm(id)) {
        this.begin(this.createComm(TARGET, id), state, buffers);
      }
    }
    for (const id of answer === null ? [] : this.store.ids()) {
      if (!Object.hasOwn(recordOf(states), id)) {
        this.closed(id);
      }
    }
  }

  /** Null if the kernel does not know the question, as with ipywidgets 7. */
  private async askControl(): Promise<KernelMessage.ICommMsgMsg | null> {
    const comm = this.createComm(CONTROL_TARGET);
    let answer: KernelMessage.ICommMsgMsg | null = null;
    comm.onMsg = message => {
      answer = message;
    };
    comm.open({}, { version: '1.0.0' });
    await comm.send({ method: 'request_states' }).done;
    if (!comm.isDisposed) {
      comm.close();
    }
    return answer;
  }

  /** The kernel was restarted, or has ended. */
  lost(): void {
    this.comms.clear();
    this.outputs.clear();
    this.links.clear();
    this.store.clear();
    this.untold.clear();
    this.underWay.clear();
    this.restoring = null;
    for (const frame of this.frames) {
      frame.lost();
    }
  }
}
