/**
 * One budget for all outputs of a notebook that JupyterLab's own document draws: each alone takes a
 * moment, a hundred of them would stop the page. What is above it waits for a click.
 */

import type { IRenderMime } from '@jupyterlab/rendermime';
import { PanelLayout, Widget } from '@lumino/widgets';

import { button, element } from './dom.js';
import { type Bundle, shareOf } from './plan.js';

/** What the outputs of each notebook, by its registry of renderers, have spent. */
const spent = new WeakMap<object, number>();
/** The outputs that a person wants to see: as they grow, they are not taken away again. */
const wanted = new WeakSet();

/** Draws an output by ``draw`` if its notebook's budget has room; else it waits for a click. */
export function drawWithin(
  registry: object,
  model: object,
  raw: Bundle,
  draw: () => Widget | null
): Widget | null {
  const share = shareOf(raw);
  const total = (spent.get(registry) ?? 0) + share;
  const drawNow = (): Widget | null => {
    const widget = draw();
    if (widget !== null) {
      spent.set(registry, (spent.get(registry) ?? 0) + share);
      widget.disposed.connect(() => spent.set(registry, (spent.get(registry) ?? 0) - share));
    }
    return widget;
  };
  if (total <= 1 || share < MOST_UNASKED || wanted.has(model)) {
    return drawNow();
  }
  return new Waiting(() => {
    wanted.add(model);
    return drawNow();
  });
}

/** An output so small, a line or a number, is drawn whatever others take. */
const MOST_UNASKED = 0.0005;

class Waiting extends Widget implements IRenderMime.IRenderer {
  constructor(draw: () => Widget | null) {
    super();
    this.addClass('gk-walled');
    const layout = (this.layout = new PanelLayout());
    const show = (): void => {
      this.node.replaceChildren();
      const widget = draw();
      if (widget !== null) {
        layout.addWidget(widget);
      }
    };
    this.node.append(
      element(
        'div',
        { class: 'gk-wall-line' },
        'This output is not drawn yet: those above it take what a page draws in a moment. ',
        button('Show it', show)
      )
    );
  }
  async renderModel(): Promise<void> {
    // An output area makes another one when the output changes.
  }
}
