/** ipywidgets: a frame that shows one widget, and those that it names. */

import { addStyle, listen, register } from './renderer.js';
import { FrameManager, addNote } from './widget_manager.js';
import style from './widgets.css';

type Message = Readonly<Record<string, unknown>>;

/** Twice, as of what a frame sends in a second, all above a number is dropped. */
const ANSWER_MILLISECONDS = [10, 1010];

register<string>((id, tools) => {
  addStyle(style);
  const node = document.createElement('div');
  node.id = 'gvisor-root';
  tools.root.append(node);
  tools.watchHeight(node);
  Object.assign(navigator, { getGamepads: () => [] }); // a frame has none, and Controller asks
  const manager = new FrameManager(tools);
  listen(tools, data => {
    const { packet } = data as { readonly packet: readonly Message[] };
    for (const message of packet) {
      manager.receive(message).catch((error: unknown) => manager.reportError(error));
      if (message.kind === 'lost') {
        node.classList.add('gk-widget-lost'); // what is shown stays, and does nothing any more
        addNote(node, String(message.text));
      }
    }
    for (const delay of ANSWER_MILLISECONDS) {
      setTimeout(() => {
        tools.send({ kind: 'done' }); // the extension sends more
      }, delay);
    }
  });
  void manager.show(id, node);
});
