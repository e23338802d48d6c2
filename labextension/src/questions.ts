/**
 * Says beside each question of a sandbox who asks. The question's text is the sandbox's and may look
 * like anybody's, "JupyterLab: your password", so what is said here stands outside of it.
 */

import type { Kernel, KernelMessage } from '@jupyterlab/services';

import { element } from './dom.js';

/** The part of a kernels' manager through which each connection of a page is made. */
export interface Connects {
  connectTo(options: Kernel.IKernelConnection.IOptions): Kernel.IKernelConnection;
}

/** The part of an output area that shows a question; of each one, as those of all pages share it. */
export interface Asks {
  onInputRequest(message: KernelMessage.IInputRequestMsg, future: unknown): void;
}

/** Notes which kernel each question comes from: the message itself does not say it. */
export class Questions {
  private readonly names = new WeakMap<object, string>();

  /** ``nameOf``: the name that is shown for a kernel's; null for one that has no sandbox. */
  constructor(private readonly nameOf: (kernelName: string) => string | null) {}

  follow(kernels: Connects): void {
    const connect = kernels.connectTo.bind(kernels);
    kernels.connectTo = options => {
      const kernel = connect(options);
      kernel.anyMessage.connect((_, { msg, direction }) => {
        if (direction === 'recv' && msg.header.msg_type === 'input_request') {
          this.names.set(msg, kernel.name);
        }
      });
      return kernel;
    };
  }

  /** Shows the name beside all questions from now on. ``area``: the prototype of output areas. */
  label(area: Asks): void {
    // eslint-disable-next-line @typescript-eslint/unbound-method -- called with its own "this" below
    const show = area.onInputRequest;
    const find = (message: KernelMessage.IInputRequestMsg): string | null => {
      const kernel = this.names.get(message);
      return kernel === undefined ? 'A kernel' : this.nameOf(kernel);
    };
    area.onInputRequest = function (this: Asks & { node?: HTMLElement }, message, future): void {
      show.call(this, message, future);
      const name = find(message);
      const inputs = this.node?.querySelectorAll('.jp-Stdin-input') ?? [];
      const input = inputs[inputs.length - 1];
      if (name !== null && input !== undefined) {
        labelQuestion(input, name, message.content.password);
      }
    };
  }
}

let count = 0;

export function labelQuestion(input: Element, name: string, isPassword: boolean): void {
  const id = `gk-question-${(count += 1)}`;
  const note = isPassword
    ? `${name} asks, from its sandbox. Type no password that it must not know.`
    : `${name} asks, from its sandbox.`;
  input.setAttribute('aria-describedby', id);
  input.parentElement?.prepend(element('div', { class: 'gk-question', attributes: { id } }, note));
}
