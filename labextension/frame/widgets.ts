/** ipywidgets: a frame that shows one widget, and those that it names. */

import { addStyle, register } from './renderer.js';
import { FrameManager } from './widget_manager.js';
import { loseAll, showView } from './widget_views.js';
import style from './widgets.css';

type Message = Readonly<Record<string, unknown>>;

register<string>((id, tools) => {
  addStyle(style);
  const theme = document.head.appendChild(document.createElement('style'));
  const node = document.createElement('div');
  node.id = 'gvisor-root';
  tools.root.append(node);
  tools.watchHeight(node);
  const manager = new FrameManager(tools);
  const receive = (packet: readonly Message[]): void => {
    for (const message of packet) {
      manager.receive(message).catch((error: unknown) => {
        manager.reportError(error);
      });
      if (message.kind === 'lost') {
        loseAll(String(message.text));
      }
    }
    tools.send({ kind: 'done' }); // the extension sends more
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
