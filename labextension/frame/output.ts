/**
 * An output of a cell, in a frame of its own.
 *
 * The extension sends what is drawn (``src/output_frame.ts``), and again when the output changes.
 */

import { messageOf } from '../src/client.js';
import { PLOTLY, type Part } from '../src/output_parts.js';
import { Drawer, plotIn } from './draw.js';
import { add, addStyle, listen, register } from './renderer.js';

interface Draw {
  readonly kind: 'draw';
  readonly parts: readonly Part[];
  /** Outputs before this one that only prepare the page. */
  readonly setups: readonly { readonly id: string; readonly parts: readonly Part[] }[];
  /** Names of libraries that the output uses without loading them. */
  readonly libraries: readonly string[];
}

register<string>((_, tools) => {
  const drawer = new Drawer(tools);
  addStyle(`
    html, body { margin: 0; padding: 0; height: auto; overflow: hidden }
    #gvisor-root { display: flow-root; overflow-x: auto }
    #gvisor-hidden { display: none }
  `);
  const hidden = add(tools.root, 'div');
  hidden.id = 'gvisor-hidden';
  const node = add(tools.root, 'div');
  node.id = 'gvisor-root';
  const holder = add(node, 'div');
  const prepared = new Set<string>();

  const draw = async ({ parts, setups, libraries }: Draw): Promise<void> => {
    await drawer.load(libraries); // which earlier outputs use, too
    for (const { id, parts: setup } of setups) {
      if (!prepared.has(id)) {
        prepared.add(id);
        await drawer.draw(setup, add(hidden, 'div'));
      }
    }
    // Until the new output is there, the old one keeps its place.
    if (parts[0]?.type !== PLOTLY || plotIn(holder) === null) {
      holder.style.minHeight = `${holder.getBoundingClientRect().height}px`;
      holder.replaceChildren();
    }
    await drawer.draw(parts, holder);
    holder.style.minHeight = '';
  };

  let last = Promise.resolve();
  listen(tools, message => {
    last = last
      .then(() => draw(message as Draw))
      .catch((error: unknown) => tools.reportError(messageOf(error)))
      .then(() => {
        tools.watchHeight(node); // until then it has the height that was expected
      });
  });
});
