/** What is added to the dialogs that JupyterLab shows when a kernel does not start. */

import { Dialog } from '@jupyterlab/apputils';
import type { ITranslator } from '@jupyterlab/translation';

import { element } from './dom.js';

/** Adds a button to the dialog that says why a kernel of ours did not start. */
export function offerDoctor(
  translator: ITranslator | null,
  isOurs: () => boolean,
  run: () => void
): void {
  const title = translator?.load('jupyterlab').__('Error Starting Kernel');
  Dialog.tracker.widgetAdded.connect((_, dialog) => {
    if (!isOurs()) {
      return;
    }
    // The dialog draws its header after it was attached.
    const observer = new MutationObserver(() => {
      const header = dialog.node.querySelector('.jp-Dialog-header');
      const footer = dialog.node.querySelector('.jp-Dialog-footer');
      if (header === null || footer === null || !header.textContent) {
        return;
      }
      observer.disconnect();
      if (header.textContent.trim() !== (title ?? 'Error Starting Kernel')) {
        return;
      }
      const click = (): void => {
        dialog.reject();
        run();
      };
      const name = 'jp-Dialog-button jp-mod-styled gk-doctor';
      footer.prepend(
        element('button', { class: name, attributes: { type: 'button' }, click }, 'Doctor')
      );
    });
    observer.observe(dialog.node, { childList: true, subtree: true, characterData: true });
    dialog.disposed.connect(() => observer.disconnect());
  });
}
