/**
 * An output of a cell, in a frame of its own.
 *
 * The extension sends what is drawn (``src/output_frame.ts``), and again when the output changes.
 */

import type { FrameTheme } from '../src/frame_theme.js';
import { PLOTLY, type Part } from '../src/output_parts.js';
import { Drawer, plotIn } from './draw.js';
import { type Tools, add, addStyle, register, takeTheme } from './renderer.js';
import { askForTiles } from './tiles.js';

interface Draw {
  readonly kind: 'draw';
  readonly parts: readonly Part[];
  /** Outputs before this one that only prepare the page. */
  readonly setups: readonly { readonly id: string; readonly parts: readonly Part[] }[];
  /** Names of libraries that the output uses without loading them. */
  readonly libraries: readonly string[];
}

register<string>((_, tools) => {
  const output = new Output(tools);
  tools.onMessage(message => {
    output.receive(message as Draw | FrameTheme);
  });
});

class Output {
  private readonly node: HTMLElement;
  private readonly holder: HTMLElement;
  private readonly hidden: HTMLElement;
  private readonly drawer: Drawer;
  private readonly prepared = new Set<string>();
  private last: Promise<void> = Promise.resolve();

  constructor(private readonly tools: Tools) {
    this.drawer = new Drawer(tools);
    askForTiles(tools);
    addStyle(`
      html, body { margin: 0; padding: 0; height: auto; overflow: hidden }
      #gvisor-root { display: flow-root; overflow-x: auto }
      #gvisor-hidden { display: none }
    `);
    this.hidden = add(tools.root, 'div');
    this.hidden.id = 'gvisor-hidden';
    this.node = add(tools.root, 'div');
    this.node.id = 'gvisor-root';
    this.holder = add(this.node, 'div');
  }

  receive(message: Draw | FrameTheme): void {
    if (message.kind === 'theme') {
      takeTheme(message);
    } else {
      this.last = this.last
        .then(() => this.draw(message))
        .catch((error: unknown) => {
          this.tools.reportError(error instanceof Error ? error.message : String(error));
        })
        .then(() => {
          this.tools.watchHeight(this.node); // until then it has the height that was expected
        });
    }
  }

  private async draw({ parts, setups, libraries }: Draw): Promise<void> {
    await this.drawer.load(libraries); // which earlier outputs use, too
    for (const { id, parts: setup } of setups) {
      if (!this.prepared.has(id)) {
        this.prepared.add(id);
        await this.drawer.draw(setup, add(this.hidden, 'div'));
      }
    }
    // Until the new output is there, the old one keeps its place.
    if (parts[0]?.type !== PLOTLY || plotIn(this.holder) === null) {
      this.holder.style.minHeight = `${this.holder.getBoundingClientRect().height}px`;
      this.holder.replaceChildren();
    }
    await this.drawer.draw(parts, this.holder);
    this.holder.style.minHeight = '';
  }
}
