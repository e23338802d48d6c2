/**
 * Whose widgets are whose: those of our kernels go to ``widget_comms.ts``, those of other kernels to
 * JupyterLab's own manager (``@jupyter-widgets/jupyterlab-manager``), which would run what a kernel
 * sends in JupyterLab's page.
 *
 * That manager attaches itself to each kernel of a notebook or console. So each connection to a
 * kernel has, from its beginning, a target of its own for comms of widgets, which looks whose
 * kernel it is. Widgets that a notebook's file has kept are nobody's: they are shown in frames.
 */

import type { INotebookModel } from '@jupyterlab/notebook';
import type { Kernel } from '@jupyterlab/services';

import { CONTROL_TARGET, KernelWidgets, TARGET } from './widget_comms.js';
import { type FramePort, WidgetFrame } from './widget_frame.js';
import { STATE_TYPE } from './widget_store.js';

type KernelName = Pick<Kernel.IKernelConnection, 'id' | 'name'>;
type OnOpen = Parameters<Kernel.IKernelConnection['registerCommTarget']>[1];
const LOST: readonly Kernel.Status[] = ['restarting', 'autorestarting', 'dead'];
const MAX_SAVED_BYTES = 16 * 1024 * 1024;

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
  guard(kernels: Pick<Kernel.IManager, 'connectTo'>): void {
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
    const own = new KernelWidgets(connection, create);
    register(TARGET, async (comm, message) => {
      if (isOther() === null) {
        await this.ready; // the kernel's messages wait
      }
      if (isOther() !== true) {
        own.open(comm, message);
      } else if (theirs !== null) {
        await theirs(comm, message);
      } else {
        throw new Error('Nothing here shows widgets: install jupyterlab_widgets.');
      }
    });
    this.kernels.set(connection.id, own);
    connection.statusChanged.connect((_, status) => {
      if (LOST.includes(status)) {
        own.lost();
      }
    });
    connection.connectionStatusChanged.connect((_, status) => {
      if (status === 'connected') {
        own.reconnected();
      }
    });
    connection.disposed.connect(() => {
      own.lost();
      if (this.kernels.get(connection.id) === own) {
        this.kernels.delete(connection.id);
      }
    });
  }

  /**
   * A view's frame begins, of this kernel or of none; what it sends is given to what this returns. A
   * frame reaches no kernel without a sandbox: a stranger's file may have kept the code in it.
   */
  attach(port: FramePort, kernel: KernelName | null, readSaved: () => unknown): WidgetFrame {
    const isOurs = kernel !== null && this.isOther(kernel.name) !== true;
    const own = isOurs ? this.kernels.get(kernel.id) : undefined;
    return own?.attach(port, readSaved) ?? new WidgetFrame(port, null, readSaved);
  }

  /**
   * Keeps the widgets of a file from JupyterLab's manager, which would make them in JupyterLab's
   * page for any kernel; and lets it save those of our kernels, when it saves.
   */
  guardMetadata(
    metadata: Pick<INotebookModel, 'getMetadata' | 'setMetadata'>,
    kernel: () => Kernel.IKernelConnection | null | undefined
  ): () => unknown {
    const get = metadata.getMetadata.bind(metadata);
    const set = metadata.setMetadata.bind(metadata);
    metadata.getMetadata = key => (key === 'widgets' ? undefined : (get(key) as unknown));
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
