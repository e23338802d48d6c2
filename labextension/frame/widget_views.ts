/** Places for views of widgets: each asks the extension for its model, and shows it when it comes. */

import { MessageLoop } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';

import type { FrameManager, Post } from './widget_manager.js';

interface Place {
  readonly id: string;
  readonly node: HTMLElement;
  readonly manager: FrameManager;
  shown: boolean;
}

const places: Place[] = [];
const shownWidgets = new Set<Widget>();
let post: Post = () => undefined;

export function setPost(value: Post): void {
  post = value;
}

window.addEventListener('resize', () => {
  for (const widget of shownWidgets) {
    MessageLoop.postMessage(widget, Widget.ResizeMessage.UnknownSize);
  }
});

export function showView(id: string, node: HTMLElement, manager: FrameManager): void {
  places.push({ id, node, manager, shown: false });
  post({ kind: 'want', id });
}

/** The model is there. */
export function showWanted(id: string): void {
  for (const place of places) {
    if (place.id === id && !place.shown) {
      place.shown = true;
      void show(place);
    }
  }
}

async function show({ id, node, manager }: Place): Promise<void> {
  try {
    const model: object = await manager.get_model(id);
    const view = await manager.create_view(model as never);
    const { luminoWidget: widget } = view as unknown as { luminoWidget: Widget };
    node.replaceChildren();
    Widget.attach(widget, node);
    shownWidgets.add(widget);
    widget.disposed.connect(() => {
      shownWidgets.delete(widget);
    });
  } catch (error) {
    addNote(node, error instanceof Error ? error.message : String(error));
  }
}

/** There is no such model, and the text says why. */
export function refuse(id: string, text: string): void {
  for (const { node } of places.filter(place => place.id === id && !place.shown)) {
    node.replaceChildren();
    addNote(node, text);
  }
}

/** The kernel is gone: what is shown stays, and does nothing any more. */
export function loseAll(text: string): void {
  for (const { node, shown } of places) {
    if (shown && node.isConnected) {
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
