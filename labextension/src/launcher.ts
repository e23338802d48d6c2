/** What is added to the cards of JupyterLab's launcher. */

import type { ILabShell } from '@jupyterlab/application';
import type { Widget } from '@lumino/widgets';

import type { Kernelspec } from './contract.js';
import { type SpecModels, describeSpec, isOurs } from './specs.js';

/** What the cards are about; both may be asked again at any time. */
export interface Facts {
  readonly specs: () => SpecModels | null;
  /** Our kernelspecs by name. */
  readonly kernelspecs: () => ReadonlyMap<string, Kernelspec>;
  /** Whether the folder has notebooks that this person has neither saved nor trusted. */
  readonly hasUntrusted: (folder: string) => Promise<boolean>;
}

/**
 * Says image and limits in the titles of our cards, in each launcher that is opened, and shows ours
 * first in a folder that has notebooks from elsewhere. The returned function looks again.
 */
export function describeCards(shell: ILabShell, facts: Facts): () => void {
  const seen = new Map<Widget, { folder: string | null; first: boolean }>();
  const describe = (widget: Widget): void => {
    const texts = new Map<string, string | null>();
    for (const [name, spec] of Object.entries(facts.specs()?.kernelspecs ?? {})) {
      if (spec !== undefined && isOurs(facts.specs(), name)) {
        texts.set(spec.display_name, describeSpec(facts.kernelspecs().get(name)));
      }
    }
    const first = seen.get(widget)?.first === true;
    for (const card of widget.node.querySelectorAll<HTMLElement>('.jp-LauncherCard')) {
      const [title = ''] = card.title.split('\n');
      const text = texts.get(title);
      if (text !== undefined) {
        const wanted = [title, text, first ? ELSEWHERE : null].filter(Boolean).join('\n');
        if (card.title !== wanted) {
          card.title = wanted;
        }
        // The elements are JupyterLab's, which draws them again: they keep their places there.
        card.style.order = first ? '-1' : '';
      }
    }
  };
  const describeAndAsk = async (widget: Widget): Promise<void> => {
    describe(widget);
    const known = seen.get(widget);
    const folder = folderOf(widget);
    if (known === undefined || folder === null || folder === known.folder) {
      return;
    }
    known.folder = folder;
    try {
      const first = await facts.hasUntrusted(folder);
      if (known.folder === folder) {
        known.first = first;
        describe(widget);
      }
    } catch {
      known.folder = null; // asked again when the launcher is drawn next
    }
  };
  const look = (): void => {
    for (const widget of shell.widgets('main')) {
      const node = widget.node;
      if (!seen.has(widget) && node.querySelector('.jp-Launcher') !== null) {
        seen.set(widget, { folder: null, first: false });
        const observer = new MutationObserver(() => void describeAndAsk(widget));
        observer.observe(node, { childList: true, subtree: true });
        widget.disposed.connect(() => {
          observer.disconnect();
          seen.delete(widget);
        });
      }
      if (seen.has(widget)) {
        void describeAndAsk(widget);
      }
    }
  };
  shell.layoutModified.connect(look);
  return look;
}

const ELSEWHERE = 'First, since this folder has notebooks that you have neither saved nor trusted.';

/** The folder that a launcher starts kernels in; null if this is known no more. */
function folderOf(widget: Widget): string | null {
  const { content } = widget as Widget & { content?: { cwd?: unknown } };
  return typeof content?.cwd === 'string' ? content.cwd : null;
}
