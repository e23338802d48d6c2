/**
 * Whose widgets are whose: those of our kernels go to ``widget_comms.ts``, those of other kernels to
 * JupyterLab's own manager (``@jupyter-widgets/jupyterlab-manager``), which would run what a kernel
 * sends in JupyterLab's page.
 *
 * That manager attaches itself to each kernel of a notebook or console. So each connection to a
 * kernel has, from its beginning, a target of its own for comms of widgets, which looks whose
 * kernel it is. Widgets that a notebook's file has kept are nobody's: they are shown in frames.
 */

import type { Kernel } from '@jupyterlab/services';

import {
  CONTROL_TARGET,
  type AttachedFrame,
  KernelWidgets,
  Saved,
  TARGET
} from './widget_comms.js';
import { type FramePort, WidgetFrame } from './widget_frame.js';
import { STATE_TYPE, WidgetStore } from './widget_store.js';

type OnOpen = Parameters<Kernel.IKernelConnection['registerCommTarget']>[1];
const LOST: readonly Kernel.Status[] = ['restarting', 'autorestarting', 'dead'];
const MAX_SAVED_BYTES = 16 * 1024 * 1024;

/** What is used of JupyterLab's kernels. */
export interface Kernels {
  connectTo(options: Kernel.IKernelConnection.IOptions): Kernel.IKernelConnection;
}

/** Which notebook or console a view is in. */
export interface Home {
  /** The id of the kernel that it has now, as soon as it has begun; null if it has none. */
  kernelId(): Promise<string | null>;
  /** What the file has kept of widgets. */
  saved(): unknown;
}

/** The part of a notebook's model that knows its metadata. */
export interface Metadata {
  getMetadata(key: string): unknown;
  setMetadata(key: string, value: unknown): void;
}

export class WidgetHost {
  private readonly kernels = new Map<string, KernelWidgets>();

  /**
   * ``isOther`` is true for a kernel that is known to be none of ours, and null as long as nothing
   * is known; ``ready`` ends when something is.
   */
  constructor(
    private readonly isOther: (name: string) => boolean | null,
    private readonly ready: Promise<unknown>
  ) {}

  /** Guards all connections that are made from now on. */
  guard(kernels: Kernels): void {
    const connect = kernels.connectTo.bind(kernels);
    kernels.connectTo = options => {
      const connection = connect(options);
      this.guardConnection(connection);
      return connection;
    };
  }

  guardConnection(connection: Kernel.IKernelConnection): void {
    if (!connection.handleComms) {
      return; // another connection to this kernel has its comms
    }
    const register = connection.registerCommTarget.bind(connection);
    const remove = connection.removeCommTarget.bind(connection);
    const create = connection.createComm.bind(connection);
    const isOther = (): boolean | null => this.isOther(connection.name);
    let theirs: OnOpen | null = null;
    connection.registerCommTarget = (name, onOpen) => {
      if (name === TARGET) {
        theirs = onOpen;
      } else {
        register(name, onOpen);
      }
    };
    connection.removeCommTarget = (name, onOpen) => {
      if (name !== TARGET) {
        remove(name, onOpen);
      } else if (theirs === onOpen) {
        theirs = null;
      }
    };
    connection.createComm = (name, id) => {
      if ((name === TARGET || name === CONTROL_TARGET) && isOther() !== true) {
        throw new Error('The widgets of kernels in sandboxes are shown in frames.');
      }
      return id === undefined ? create(name) : create(name, id);
    };
    let own: KernelWidgets | null = null;
    const ours = (): KernelWidgets => {
      own ??= new KernelWidgets({
        createComm: create,
        hasComm: id => connection.hasComm(id),
        registerMessageHook: (id, hook) => {
          connection.registerMessageHook(id, hook);
        },
        removeMessageHook: (id, hook) => {
          connection.removeMessageHook(id, hook);
        },
        requestCommInfo: content => connection.requestCommInfo(content)
      });
      return own;
    };
    register(TARGET, async (comm, message) => {
      if (isOther() === null) {
        await this.ready; // the kernel's messages wait
      }
      if (isOther() !== true) {
        ours().open(comm, message);
      } else if (theirs !== null) {
        await theirs(comm, message);
      } else {
        throw new Error('Nothing here shows widgets: install jupyterlab_widgets.');
      }
    });
    this.kernels.set(connection.id, ours());
    connection.statusChanged.connect((_, status) => {
      if (LOST.includes(status)) {
        own?.lost();
      }
    });
    connection.connectionStatusChanged.connect((_, status) => {
      if (status === 'connected') {
        own?.reconnected();
      }
    });
    connection.disposed.connect(() => {
      own?.lost();
      if (this.kernels.get(connection.id) === own) {
        this.kernels.delete(connection.id);
      }
    });
  }

  /** A view's frame begins; what it sends is to be given to what this returns. */
  attach(port: FramePort, home: Home): AttachedFrame {
    let attached: AttachedFrame | null = null;
    let waiting: [unknown, readonly ArrayBuffer[]][] | null = [];
    const start = (id: string | null): void => {
      const kernel = id === null ? undefined : this.kernels.get(id);
      attached =
        kernel?.attach(new WidgetFrame(port, kernel.store), () => home.saved()) ??
        attachSaved(new WidgetFrame(port, new WidgetStore()), () => home.saved());
      for (const [data, buffers] of waiting ?? []) {
        attached.receive(data, buffers);
      }
      waiting = [];
    };
    home.kernelId().then(
      id => {
        if (waiting !== null) {
          start(id);
        }
      },
      () => {
        start(null);
      }
    );
    return {
      receive: (data, buffers) => {
        if (attached !== null) {
          attached.receive(data, buffers);
        } else if (waiting !== null && waiting.length < 100) {
          waiting.push([data, buffers]);
        }
      },
      dispose: () => {
        waiting = null;
        attached?.dispose();
      }
    };
  }

  /**
   * Keeps the widgets of a file from JupyterLab's manager, which would make them in JupyterLab's
   * page for any kernel; and lets it save those of our kernels, when it saves.
   */
  guardMetadata(metadata: Metadata, kernel: () => Kernel.IKernelConnection | null | undefined) {
    const get = metadata.getMetadata.bind(metadata);
    const set = metadata.setMetadata.bind(metadata);
    metadata.getMetadata = key => (key === 'widgets' ? undefined : get(key));
    metadata.setMetadata = (key, value) => {
      const current = kernel();
      const own = current ? this.kernels.get(current.id) : undefined;
      const isOwn = key === 'widgets' && current && this.isOther(current.name) !== true;
      if (!isOwn) {
        set(key, value);
      } else if (own !== undefined && own.store.size > 0) {
        set(key, { [STATE_TYPE]: own.store.save(MAX_SAVED_BYTES) });
      }
    };
    return (): unknown => (get('widgets') as Record<string, unknown> | undefined)?.[STATE_TYPE];
  }
}

function attachSaved(frame: WidgetFrame, read: () => unknown): AttachedFrame {
  const saved = new Saved(frame, read);
  return {
    receive: data => {
      const { kind, id, n } = data as Record<string, unknown>;
      if (kind === 'want' && typeof id === 'string') {
        saved.show(id, 'The file has not kept this widget: run the cell.');
      } else if (Number.isSafeInteger(n)) {
        frame.idle(n as number);
      }
    },
    dispose: () => undefined
  };
}
