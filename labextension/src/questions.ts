/**
 * Says beside each question of a sandbox who asks. The question's text is the sandbox's and may look
 * like anybody's, "JupyterLab: your password", so what is said here stands outside of it.
 */

import type { KernelMessage } from '@jupyterlab/services';

import { element } from './dom.js';

/** The part of an output area that shows a question; of each one, as those of all pages share it. */
export interface Asks {
  onInputRequest(message: KernelMessage.IInputRequestMsg, future: unknown): void;
}

let count = 0;

/**
 * Shows a name beside all questions from now on.
 *
 * @param area the prototype of output areas
 * @param nameOf the name that is shown for a kernel's; null for one that has no sandbox
 */
export function labelQuestions(area: Asks, nameOf: (kernel: string) => string | null): void {
  // eslint-disable-next-line @typescript-eslint/unbound-method -- called with its own "this" below
  const show = area.onInputRequest;
  area.onInputRequest = function (this: Asks & { node?: HTMLElement }, message, future): void {
    show.call(this, message, future);
    // The message does not say which kernel it comes from.
    const kernel = (future as { _kernel?: { name: string } } | null)?._kernel?.name;
    const name = kernel === undefined ? 'A kernel' : nameOf(kernel);
    const input = [...(this.node?.querySelectorAll('.jp-Stdin-input') ?? [])].at(-1);
    if (name !== null && input !== undefined) {
      const id = `gk-question-${(count += 1)}`;
      const warning = message.content.password ? ' Type no password that it must not know.' : '';
      const text = `${name} asks, from its sandbox.${warning}`;
      input.setAttribute('aria-describedby', id);
      const note = element('div', { class: 'gk-question', attributes: { id } }, text);
      input.parentElement?.prepend(note);
    }
  };
}
