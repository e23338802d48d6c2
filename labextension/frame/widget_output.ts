/**
 * ``Output`` widgets. The extension catches what they are to show, and keeps it in ``outputs``: so
 * nothing of it is sent back from here.
 */

import { OutputModel as BaseModel, OutputView as BaseView } from '@jupyter-widgets/output';

import { drawOutput } from './widget_draw.js';
import type { FrameManager } from './widget_manager.js';

type Output = Readonly<Record<string, unknown>>;

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
      this.listenTo(this.model, 'change:outputs', () => {
        this.draw();
      });
      this.draw();
    });
  }

  /** Draws anew from the first output that is another one than before. */
  private draw(): void {
    const outputs = (this.model.get('outputs') ?? []) as readonly Output[];
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
