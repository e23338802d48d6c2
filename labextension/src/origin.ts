/**
 * From where an output came: which kernel sent it to this page. What is known lives in memory only.
 * No mark in a file counts, as a kernel or a stranger could have written it there.
 *
 * Each message that a kernel sends gets a secret of this page in its ``transient`` part, which
 * Jupyter passes on to the output's model, also through copies, and never saves.
 */

import type { Kernel, KernelMessage } from '@jupyterlab/services';

/** ``local``: a kernel without a sandbox; ``sandbox``: one of ours; ``unknown``: anything else. */
export type Origin = 'local' | 'sandbox' | 'unknown';

const KEY = 'gvisor-kernel:origin';
const SENDER = 'gvisor-kernel:sender';
const SECRETS: Readonly<Record<Exclude<Origin, 'unknown'>, string>> = {
  local: crypto.randomUUID(),
  sandbox: crypto.randomUUID()
};

/** The part of a kernels' manager through which each connection of a page is made. */
export interface Connects {
  connectTo(options: Kernel.IKernelConnection.IOptions): Kernel.IKernelConnection;
}

/** Marks what kernels send from now on. A connection that was made otherwise stays unknown. */
export function followKernels(kernels: Connects, originOf: (kernelName: string) => Origin): void {
  const connect = kernels.connectTo.bind(kernels);
  kernels.connectTo = options => {
    const kernel = connect(options);
    kernel.anyMessage.connect((_, { msg, direction }) => {
      if (direction === 'recv') {
        mark(msg, originOf(kernel.name), kernel.id);
      }
    });
    return kernel;
  };
}

/** Exported for tests. The content of a message belongs to the page alone, so it may be changed. */
export function mark(message: KernelMessage.IMessage, origin: Origin, sender = ''): void {
  const content = message.content as { transient?: unknown };
  if (!('data' in content)) {
    return; // text, an error, or no output at all
  }
  content.transient = {
    ...(content.transient as object | undefined),
    [KEY]: origin === 'unknown' ? null : SECRETS[origin],
    [SENDER]: sender
  };
}

function transientOf(model: object): Readonly<Record<string, unknown>> {
  const { transient } = (model as { _raw?: { transient?: unknown } })._raw ?? {};
  return (transient ?? {}) as Readonly<Record<string, unknown>>;
}

/** The id of the sandbox's kernel that has sent a model of an output; null if none has. */
export function senderOf(model: object): string | null {
  return originOf(model) === 'sandbox' ? String(transientOf(model)[SENDER]) : null;
}

/** Of a model of an output. */
export function originOf(model: object): Origin {
  const secret = transientOf(model)[KEY];
  return secret === SECRETS.local ? 'local' : secret === SECRETS.sandbox ? 'sandbox' : 'unknown';
}
