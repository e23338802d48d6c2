/** ipywidgets: a frame that shows one widget, and those that it names. */

import { addStyle, register } from './renderer.js';
import { askForTiles } from './tiles.js';
import { FrameManager } from './widget_manager.js';
import { loseAll, showView } from './widget_views.js';
import style from './widgets.css';

type Message = Readonly<Record<string, unknown>>;

/** A frame may send so many messages in a second, and no more. */
const ANSWER_MILLISECONDS = 10;

register<string>((id, tools) => {
  addStyle(style);
  const theme = document.head.appendChild(document.createElement('style'));
  const node = document.createElement('div');
  node.id = 'gvisor-root';
  tools.root.append(node);
  tools.watchHeight(node);
  const manager = new FrameManager(tools);
  askForTiles(tools);
  let done = 0;
  const receive = (packet: readonly Message[]): void => {
    for (const message of packet) {
      manager.receive(message).catch((error: unknown) => {
        manager.reportError(error);
      });
      if (message.kind === 'lost') {
        loseAll(String(message.text));
      }
    }
    if (done === 0) {
      setTimeout(() => {
        tools.send({ kind: 'done', count: done }); // the extension sends more
        done = 0;
      }, ANSWER_MILLISECONDS);
    }
    done += 1;
  };
  tools.onMessage(data => {
    const message = data as Message;
    if (message.kind === 'theme') {
      theme.textContent = String(message.style);
      document.documentElement.style.colorScheme = message.dark === true ? 'dark' : 'light';
    } else {
      receive(message.packet as readonly Message[]);
    }
  });
  void showView(id, node, manager);
});
