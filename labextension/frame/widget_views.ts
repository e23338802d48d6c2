/** Views of widgets, in their places of a frame. */

import { MessageLoop } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';

import type { FrameManager } from './widget_manager.js';

const shown = new Map<Widget, HTMLElement>();

window.addEventListener('resize', () => {
  for (const widget of shown.keys()) {
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
    shown.set(widget, node);
    widget.disposed.connect(() => shown.delete(widget));
  } catch (error) {
    addNote(node, error instanceof Error ? error.message : String(error));
  }
}

/** The kernel is gone: what is shown stays, and does nothing any more. */
export function loseAll(text: string): void {
  for (const node of new Set(shown.values())) {
    if (node.isConnected) {
      node.classList.add('gk-widget-lost');
      addNote(node, text);
    }
  }
}

function addNote(node: HTMLElement, text: string): void {
  const note = document.createElement('p');
  note.className = 'gk-widget-note';
  note.textContent = text;
  node.prepend(note);
}
