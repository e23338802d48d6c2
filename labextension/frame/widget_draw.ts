/** Draws what an ``Output`` widget has caught: as an output of a cell is drawn, or as text. */

import { librariesOf } from '../src/libraries.js';
import { ORDER, canDraw, isLoad, partsOf, textOf } from '../src/output_parts.js';
import { Drawer } from './draw.js';
import { addTerminal, withReturns } from './terminal.js';
import type { FrameManager } from './widget_manager.js';
import { showView } from './widget_views.js';

type Fields = Readonly<Record<string, unknown>>;

const VIEW_TYPE = 'application/vnd.jupyter.widget-view+json';

const fieldsOf = (value: unknown): Fields =>
  typeof value === 'object' && value !== null ? (value as Fields) : {};

let drawer: Drawer | null = null;
/** One after the other: scripts of two outputs do not mix. */
let last: Promise<void> = Promise.resolve();

/** Resolves when it is drawn. */
export async function drawOutput(
  output: Fields,
  node: HTMLElement,
  manager: FrameManager
): Promise<void> {
  const bundle = { data: fieldsOf(output.data), metadata: fieldsOf(output.metadata) };
  const view = fieldsOf(bundle.data[VIEW_TYPE]).model_id;
  if (typeof view === 'string') {
    showView(view, node, manager);
    return;
  }
  const type = isLoad(bundle)
    ? 'application/javascript'
    : Object.keys(bundle.data)
        .filter(it => canDraw(it) || it === 'text/plain')
        .sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b))[0];
  if (type === undefined || type === 'text/plain') {
    drawText(output, textOf(bundle.data['text/plain']), node);
    return;
  }
  const parts = partsOf(type, bundle);
  const { tools } = manager;
  last = last
    .then(async () => {
      drawer ??= new Drawer(tools);
      await drawer.load(librariesOf(parts, false));
      await drawer.draw(parts, node);
    })
    .catch((error: unknown) => {
      tools.reportError(error instanceof Error ? error.message : String(error));
    });
  await last;
}

function drawText(output: Fields, plain: string, node: HTMLElement): void {
  const { output_type: type, name, traceback, text } = output;
  const lines = Array.isArray(traceback) ? traceback.map(textOf).join('\n') : '';
  const shown = type === 'stream' ? textOf(text) : type === 'error' ? lines : plain;
  const isError = type === 'error' || (type === 'stream' && name === 'stderr');
  addTerminal(node, withReturns(shown)).classList.toggle('gk-stderr', isError);
}
