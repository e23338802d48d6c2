/**
 * The widgets of one kernel of ours: its comms of the target ``jupyter.widget``, the store of their
 * states, and the frames that show them. The rules are here; no widget runs.
 *
 * A frame is as little trusted as the kernel. It names models that it was given, and what it sends
 * goes to this kernel's comm of that model and to other frames that have the model: nowhere else.
 * It opens no comm.
 */

import type { Kernel, KernelMessage } from '@jupyterlab/services';
import type { JSONObject } from '@lumino/coreutils';

import { WidgetFrame } from './widget_frame.js';
import {
  type Buffers,
  type WidgetStore as Store,
  WidgetStore,
  isId,
  measure,
  readBuffers,
  readLooseBuffers
} from './widget_store.js';
import { WidgetOutputs } from './widget_outputs.js';

export const TARGET = 'jupyter.widget';
export const CONTROL_TARGET = 'jupyter.widget.control';
/** The kernel answers that soon if it knows the question; ipywidgets 7 does not. */
const CONTROL_MILLISECONDS = 4000;
/** Models that are asked for one by one, of ipywidgets 7. */
const MAX_ASKED = 1000;
/** Messages of frames that the kernel works at, and those of one frame in a second. */
const MAX_UNDER_WAY = 100;
const MAX_PER_SECOND = 200;
/** Views of widgets that a file has kept, which a frame asks for. */
const MAX_SAVED_VIEWS = 20;
const RERUN = 'run the cell again.';

/** What is used of a kernel's connection; ``createComm`` as it was before it was guarded. */
export type Connection = Pick<
  Kernel.IKernelConnection,
  'createComm' | 'hasComm' | 'registerMessageHook' | 'removeMessageHook' | 'requestCommInfo'
>;

const recordOf = (value: unknown): Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};

/** What the extension gives to the view of a frame. */
export interface AttachedFrame {
  receive(data: unknown, buffers: readonly ArrayBuffer[]): void;
  dispose(): void;
}

export class KernelWidgets {
  readonly store: Store = new WidgetStore();
  private readonly comms = new Map<string, Kernel.IComm>();
  private readonly frames = new Set<WidgetFrame>();
  /** Messages of frames that the kernel works at, by their id. */
  private readonly sent = new Map<string, { readonly frame: WidgetFrame; readonly n: number }>();
  private readonly outputs: WidgetOutputs;
  private restoring: Promise<void> | null = null;

  constructor(private readonly connection: Connection) {
    this.outputs = new WidgetOutputs(
      connection,
      (id, outputs) => {
        this.change(id, { outputs }, { paths: [], buffers: [] }, null);
      },
      (id, outputs) => {
        const data = { method: 'update', state: { outputs }, buffer_paths: [] };
        return this.send(id, data as unknown as JSONObject)?.done ?? null;
      }
    );
  }

  /** The kernel has opened a comm: a new widget. */
  open(comm: Kernel.IComm, message: KernelMessage.ICommOpenMsg): void {
    const data = recordOf(message.content.data);
    const buffers = readBuffers(data.buffer_paths, message.buffers);
    if (buffers === null || !this.store.open(comm.commId, data.state, buffers)) {
      comm.dispose(); // no answer: a kernel that makes too many is not asked to close them
      return;
    }
    this.follow(comm);
    this.opened(comm.commId);
  }

  private follow(comm: Kernel.IComm): void {
    this.comms.set(comm.commId, comm);
    comm.onMsg = message => {
      this.receive(comm.commId, message);
    };
    comm.onClose = () => {
      this.closed(comm.commId);
    };
  }

  private opened(id: string): void {
    this.outputs.look(id, this.store);
    for (const frame of this.frames) {
      if (this.store.links(id).some(end => frame.models.has(end))) {
        frame.supply([id]);
      }
    }
  }

  private closed(id: string): void {
    this.comms.delete(id);
    this.outputs.close(id);
    this.store.close(id);
    for (const frame of this.frames) {
      frame.close(id);
    }
  }

  /** A message of the kernel to the front end's side of a widget. */
  private receive(id: string, message: KernelMessage.ICommMsgMsg): void {
    const data = recordOf(message.content.data);
    if (data.method === 'custom') {
      const buffers = readLooseBuffers(message.buffers);
      if (buffers !== null && measure(data.content) !== null) {
        for (const frame of this.frames) {
          frame.custom(id, data.content, buffers);
        }
      }
      return;
    }
    if (data.method !== 'update' && data.method !== 'echo_update') {
      return;
    }
    const state = recordOf(data.state);
    const buffers = readBuffers(data.buffer_paths, message.buffers);
    if (buffers === null) {
      return;
    }
    const parent = recordOf(message.parent_header).msg_id;
    const from = typeof parent === 'string' ? this.sent.get(parent) : undefined;
    if (data.method === 'echo_update' && from !== undefined) {
      if (measure(state) !== null) {
        from.frame.echo(id, state, buffers.paths, buffers.buffers, from.n);
      }
      return; // store and other frames had it when it was sent
    }
    if (this.store.get(id) === undefined) {
      if (this.store.open(id, state, buffers)) {
        this.opened(id); // the answer to request_state
      }
      return;
    }
    this.change(id, state, buffers, null);
  }

  /** Keeps new values, and tells them to the frames, without that which has sent them. */
  private change(id: string, state: object, buffers: Buffers, from: WidgetFrame | null): boolean {
    if (!this.store.update(id, state, buffers)) {
      return false;
    }
    const names = new Set(Object.keys(state));
    for (const [name] of buffers.paths) {
      names.add(String(name));
    }
    if (from === null && names.has('msg_id')) {
      this.outputs.look(id, this.store);
    }
    this.tellFrames(id, [...names], from);
    return true;
  }

  private tellFrames(id: string, names: readonly string[], from: WidgetFrame | null): void {
    for (const frame of this.frames) {
      if (frame !== from) {
        frame.update(id, names);
      }
    }
  }

  private send(id: string, data: JSONObject, buffers: readonly ArrayBuffer[] = []) {
    const comm = this.comms.get(id);
    return comm === undefined || comm.isDisposed ? null : comm.send(data, {}, [...buffers]);
  }

  /** A frame begins to show widgets; ``saved`` is what the notebook has kept of them. */
  attach(frame: WidgetFrame, read: () => unknown): AttachedFrame {
    this.frames.add(frame);
    const saved = new Saved(frame, read);
    let second = 0;
    let count = 0;
    return {
      receive: (data, buffers) => {
        const message = recordOf(data);
        const now = Math.floor(performance.now() / 1000);
        count = now === second ? count + 1 : 1;
        second = now;
        if (message.kind === 'done') {
          frame.answered(message.count);
        } else if (count <= MAX_PER_SECOND) {
          this.receiveFrom(frame, message, buffers, saved);
        } else if (Number.isSafeInteger(message.n)) {
          frame.idle(message.n as number);
        }
      },
      dispose: () => {
        this.frames.delete(frame);
      }
    };
  }

  private receiveFrom(
    frame: WidgetFrame,
    message: Readonly<Record<string, unknown>>,
    buffers: readonly ArrayBuffer[],
    saved: Saved
  ): void {
    const { kind, id, n } = message;
    if (!isId(id)) {
      return;
    }
    if (kind === 'want') {
      void this.show(frame, id, saved);
      return;
    }
    if (!Number.isSafeInteger(n)) {
      return;
    }
    const future = frame.models.has(id) ? this.pass(frame, id, message, buffers) : null;
    if (future === null) {
      frame.idle(n as number);
      return;
    }
    const messageId = future.msg.header.msg_id;
    this.sent.set(messageId, { frame, n: n as number });
    const idle = (): void => {
      this.sent.delete(messageId);
      frame.idle(n as number);
    };
    future.done.then(idle, idle);
  }

  /** Sends a frame's message to the kernel; null if it is none, or the kernel has too many. */
  private pass(
    frame: WidgetFrame,
    id: string,
    { kind, state, paths, content }: Readonly<Record<string, unknown>>,
    list: readonly ArrayBuffer[]
  ) {
    if (this.sent.size >= MAX_UNDER_WAY) {
      return null;
    }
    if (kind === 'update') {
      const buffers = readBuffers(paths, list);
      if (buffers === null || !this.change(id, recordOf(state), buffers, frame)) {
        return null;
      }
      const data = { method: 'update', state: recordOf(state), buffer_paths: buffers.paths };
      return this.send(id, data as unknown as JSONObject, buffers.buffers);
    }
    if (kind === 'custom' && measure(content) !== null) {
      return this.send(id, { method: 'custom', content: content as JSONObject }, list);
    }
    return kind === 'request_state' ? this.send(id, { method: 'request_state' }) : null;
  }

  private async show(frame: WidgetFrame, id: string, saved: Saved): Promise<void> {
    if (this.store.get(id) === undefined) {
      await this.restore();
    }
    if (this.store.get(id) !== undefined) {
      if (!frame.models.has(id)) {
        frame.supply([id]);
      }
      frame.view(id);
      return;
    }
    saved.show(id, `The kernel does not have this widget any more: ${RERUN}`);
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
    if (answer === null) {
      await this.askEach();
      return;
    }
    const { states, buffer_paths: paths } = recordOf(answer.content.data);
    const all = readBuffers(paths, answer.buffers);
    const parts = new Map<unknown, { paths: (string | number)[][]; buffers: ArrayBuffer[] }>();
    for (const [index, [id, , ...path]] of (all?.paths ?? []).entries()) {
      // Between a model's id and the path in its state is "state".
      const part = parts.get(id) ?? { paths: [], buffers: [] };
      const buffer = all?.buffers[index];
      if (buffer !== undefined) {
        part.paths.push(path);
        part.buffers.push(buffer);
        parts.set(id, part);
      }
    }
    const found = new Set<string>();
    for (const [id, it] of Object.entries(recordOf(states))) {
      const buffers = parts.get(id) ?? { paths: [], buffers: [] };
      const { state } = recordOf(it);
      if (!this.store.open(id, state, buffers)) {
        continue;
      }
      found.add(id);
      if (!this.connection.hasComm(id)) {
        this.follow(this.connection.createComm(TARGET, id));
      }
      this.opened(id);
      this.tellFrames(id, Object.keys(recordOf(state)), null);
    }
    for (const id of this.store.ids()) {
      if (!found.has(id)) {
        this.closed(id);
      }
    }
  }

  private async askControl(): Promise<KernelMessage.ICommMsgMsg | null> {
    const comm = this.connection.createComm(CONTROL_TARGET);
    try {
      return await new Promise(resolve => {
        comm.onMsg = message => {
          if (recordOf(message.content.data).method === 'update_states') {
            resolve(message);
          }
        };
        comm.onClose = () => {
          resolve(null);
        };
        comm.open({}, { version: '1.0.0' });
        comm.send({ method: 'request_states' });
        setTimeout(() => {
          resolve(null);
        }, CONTROL_MILLISECONDS);
      });
    } finally {
      if (!comm.isDisposed) {
        comm.onClose = () => undefined;
        comm.close();
      }
    }
  }

  private async askEach(): Promise<void> {
    const reply = await this.connection.requestCommInfo({ target_name: TARGET });
    const comms = recordOf(recordOf(reply.content).comms);
    const asked = Object.keys(comms).filter(id => isId(id) && !this.connection.hasComm(id));
    await Promise.all(
      asked.slice(0, MAX_ASKED).map(async id => {
        this.follow(this.connection.createComm(TARGET, id));
        await this.send(id, { method: 'request_state' })?.done;
      })
    );
  }

  /** The kernel was restarted, or has ended. */
  lost(): void {
    this.comms.clear();
    this.outputs.clear();
    this.store.clear();
    this.sent.clear();
    this.restoring = null;
    for (const frame of this.frames) {
      frame.lost(`The kernel of this widget is gone: ${RERUN}`);
    }
  }
}

/** Shows widgets as the notebook has kept them, in one frame; nobody hears what is done with them. */
export class Saved {
  private store: Store | null = null;
  private left = MAX_SAVED_VIEWS;

  constructor(
    private readonly frame: WidgetFrame,
    private readonly read: () => unknown
  ) {}

  show(id: string, text: string): void {
    if (this.left <= 0) {
      return; // a frame asks for one, and a page in its name without end
    }
    this.left -= 1;
    if (this.store === null) {
      this.store = new WidgetStore();
      this.store.load(this.read()); // which may take half a second
    }
    if (this.store.get(id) === undefined) {
      this.frame.none(id, text);
    } else {
      this.frame.supplySaved(this.store, id);
      this.frame.view(id);
    }
  }
}
