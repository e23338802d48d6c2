/** Views of widgets, in their places of a frame. */

import { MessageLoop } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';

import { add } from './renderer.js';
import type { FrameManager } from './widget_manager.js';

const shown = new Set<Widget>();

window.addEventListener('resize', () => {
  for (const widget of shown) {
    MessageLoop.postMessage(widget, Widget.ResizeMessage.UnknownSize);
  }
});

export async function showView(
  id: string,
  node: HTMLElement,
  manager: FrameManager
): Promise<void> {
  try {
    const model: object = await manager.get_model(id);
    const view = await manager.create_view(model as never);
    const { luminoWidget: widget } = view as unknown as { luminoWidget: Widget };
    Widget.attach(widget, node);
    shown.add(widget);
    widget.disposed.connect(() => shown.delete(widget));
  } catch (error) {
    addNote(node, error instanceof Error ? error.message : String(error));
  }
}

export function addNote(node: HTMLElement, text: string): void {
  const note = add(node, 'p', text);
  note.className = 'gk-widget-note';
  node.prepend(note);
}
