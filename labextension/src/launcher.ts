/** What is added to pages that JupyterLab makes: launcher cards, and dialogs of failed starts. */

import type { ILabShell } from '@jupyterlab/application';
import { Dialog } from '@jupyterlab/apputils';
import type { ITranslator } from '@jupyterlab/translation';
import type { Widget } from '@lumino/widgets';

import { type SpecModels, describeSpec } from './specs.js';

/** Says image and limits in the titles of our cards, in each launcher that is opened. */
export function describeCards(shell: ILabShell, specs: () => SpecModels | null): () => void {
  const seen = new WeakSet<Widget>();
  const describeAll = (node: HTMLElement): void => {
    const texts = new Map<string, string>();
    for (const spec of Object.values(specs()?.kernelspecs ?? {})) {
      const text = describeSpec(spec);
      if (spec !== undefined && text !== null) {
        texts.set(spec.display_name, text);
      }
    }
    for (const card of node.querySelectorAll<HTMLElement>('.jp-LauncherCard')) {
      const text = texts.get(card.title);
      if (text !== undefined) {
        card.title = `${card.title}\n${text}`;
      }
    }
  };
  const look = (): void => {
    for (const widget of shell.widgets('main')) {
      const node = widget.node;
      if (!seen.has(widget) && node.querySelector('.jp-Launcher') !== null) {
        seen.add(widget);
        const observer = new MutationObserver(() => {
          describeAll(node);
        });
        observer.observe(node, { childList: true, subtree: true });
        widget.disposed.connect(() => {
          observer.disconnect();
        });
      }
      if (seen.has(widget)) {
        describeAll(node);
      }
    }
  };
  shell.layoutModified.connect(look);
  return look;
}

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
      const node = document.createElement('button');
      node.type = 'button';
      node.className = 'jp-Dialog-button jp-mod-styled gk-doctor';
      node.textContent = 'Doctor';
      node.addEventListener('click', () => {
        dialog.reject();
        run();
      });
      footer.prepend(node);
    });
    observer.observe(dialog.node, { childList: true, subtree: true, characterData: true });
    dialog.disposed.connect(() => {
      observer.disconnect();
    });
  });
}
