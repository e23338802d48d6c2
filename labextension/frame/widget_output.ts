/**
 * ``Output`` widgets: what one has caught is drawn as an output of a cell is, or as text. The
 * extension catches it, and keeps it in ``outputs``: so nothing of it is sent back from here.
 */

import { OutputModel as BaseModel, OutputView as BaseView } from '@jupyter-widgets/output';

import { librariesOf } from '../src/libraries.js';
import { ORDER, canDraw, isLoad, partsOf, textOf } from '../src/output_parts.js';
import { type Fields, VIEW_TYPE, recordOf } from '../src/widget_store.js';
import { addTerminal, withReturns } from './terminal.js';
import type { FrameManager } from './widget_manager.js';

export class OutputModel extends BaseModel {
  override defaults(): ReturnType<BaseModel['defaults']> {
    return { ...super.defaults(), msg_id: '', outputs: [] };
  }
}

export class OutputView extends BaseView {
  private area!: HTMLElement;
  private drawn: string[] = [];

  override render(): void {
    super.render();
    this.el.classList.add('jupyter-widgets', 'widget-output');
    this.area = document.createElement('div');
    this.area.className = 'jupyter-widgets-output-area';
    this.el.append(this.area);
    // Scripts look for their elements in the document.
    void this.displayed.then(() => {
      this.listenTo(this.model, 'change:outputs', () => this.draw());
      this.draw();
    });
  }

  /** Draws anew from the first output that is another one than before. */
  private draw(): void {
    const outputs = (this.model.get('outputs') ?? []) as readonly Fields[];
    const texts = outputs.map(output => JSON.stringify(output));
    let same = 0;
    while (same < texts.length && texts[same] === this.drawn[same]) {
      same += 1;
    }
    // Until the new outputs are there, the old ones keep their place.
    this.area.style.minHeight = `${this.area.getBoundingClientRect().height}px`;
    while (this.area.children.length > same) {
      this.area.lastElementChild?.remove();
    }
    const manager = this.model.widget_manager as unknown as FrameManager;
    const drawing = outputs.slice(same).map(output => {
      const node = document.createElement('div');
      this.area.append(node);
      return drawOutput(output, node, manager);
    });
    this.drawn = texts;
    void Promise.all(drawing).then(() => {
      if (this.drawn === texts) {
        this.area.style.minHeight = '';
      }
    });
  }
}

/** One after the other: scripts of two outputs do not mix. */
let last: Promise<void> = Promise.resolve();

async function drawOutput(output: Fields, node: HTMLElement, manager: FrameManager): Promise<void> {
  const bundle = { data: recordOf(output.data), metadata: recordOf(output.metadata) };
  const view = recordOf(bundle.data[VIEW_TYPE]).model_id;
  if (typeof view === 'string') {
    await manager.show(view, node);
    return;
  }
  const type = isLoad(bundle)
    ? 'application/javascript'
    : Object.keys(bundle.data)
        .filter(it => (canDraw(it) && it !== 'application/pdf') || it === 'text/plain')
        .sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b))[0];
  if (type === undefined || type === 'text/plain') {
    const latex = bundle.data['text/latex'];
    if (latex === undefined) {
      drawText(output, textOf(bundle.data['text/plain']), node);
    } else {
      node.textContent = textOf(latex);
      manager._rendermime.latexTypesetter.typeset(node);
    }
    return;
  }
  const parts = partsOf(type, bundle);
  last = last
    .then(async () => {
      await manager.drawer.load(librariesOf(parts, false));
      await manager.drawer.draw(parts, node);
    })
    .catch((error: unknown) => manager.reportError(error));
  await last;
}

function drawText(output: Fields, plain: string, node: HTMLElement): void {
  const { output_type: type, name, traceback, text } = output;
  const lines = Array.isArray(traceback) ? traceback.map(textOf).join('\n') : '';
  const shown = type === 'stream' ? textOf(text) : type === 'error' ? lines : plain;
  const isError = type === 'error' || (type === 'stream' && name === 'stderr');
  addTerminal(node, withReturns(shown)).classList.toggle('gk-stderr', isError);
}
