/**
 * ipywidgets: the manager, the core widgets and anywidget, in a frame of a widget's view.
 */

import { type Tools, addStyle, register } from './renderer.js';
import { BUNDLED, FrameManager, type ModelData } from './widget_manager.js';
import { readModule } from './widget_modules.js';
import { loseAll, refuse, setPost, showView, showWanted } from './widget_views.js';
import style from './widgets.css';

type Message = Readonly<Record<string, unknown>>;

interface Widgets {
  /** Shows the widget of this model in a node. */
  draw(id: string, node: HTMLElement): void;
  /** A message ``{widgets: …}`` of the extension. */
  receive(message: unknown, buffers: readonly ArrayBuffer[]): void;
}

/** The extension sends no more than it is told to have been done; so many milliseconds later. */
const ANSWER_MILLISECONDS = 20;

function makeWidgets(tools: Tools): Widgets {
  addStyle(style);
  document.documentElement.toggleAttribute('data-gk-dark', tools.dark);
  const post = (message: Message, buffers: readonly ArrayBuffer[] = []): void => {
    tools.send({ widgets: message }, buffers);
  };
  setPost(post);
  const manager = new FrameManager(tools, post, readModule(tools, BUNDLED));
  let done = 0;
  const answer = (): void => {
    if (done === 0) {
      setTimeout(() => {
        post({ kind: 'done', count: done });
        done = 0;
      }, ANSWER_MILLISECONDS);
    }
    done += 1;
  };
  const handle = async (message: Message, buffers: readonly ArrayBuffer[]): Promise<void> => {
    const id = String(message.id);
    switch (message.kind) {
      case 'models':
        await manager.addModels(message.models as ModelData[], buffers, message.live === true);
        break;
      case 'update': {
        const state = Object.fromEntries(message.state as [string, unknown][]);
        await manager.update(id, state, message.paths, buffers, message.echo as number | null);
        break;
      }
      case 'custom':
        await manager.custom(id, message.content, buffers);
        break;
    }
  };
  return {
    draw: (id, node) => {
      showView(id, node, manager);
    },
    receive: (data, buffers) => {
      const message = data as Message;
      switch (message.kind) {
        case 'idle':
          manager.idle(Number(message.n));
          break;
        case 'close':
          manager.close(String(message.id));
          break;
        case 'view':
          showWanted(String(message.id));
          break;
        case 'none':
          refuse(String(message.id), String(message.text));
          break;
        case 'lost':
          manager.disconnect();
          loseAll(String(message.text));
          break;
        default:
          handle(message, buffers).then(answer, (error: unknown) => {
            answer();
            tools.reportError(error instanceof Error ? error.message : String(error));
          });
      }
    }
  };
}

/** A frame that shows one widget, and no other output. */
register<string>((id, tools) => {
  const widgets = makeWidgets(tools);
  addStyle('html, body { margin: 0; height: auto; overflow: hidden }');
  const theme = document.head.appendChild(document.createElement('style'));
  const node = document.createElement('div');
  node.id = 'gvisor-root';
  node.style.display = 'flow-root';
  node.style.overflowX = 'auto';
  tools.root.append(node);
  tools.watchHeight(node);
  tools.onMessage((data, buffers) => {
    const message = data as Message;
    if (message.kind === 'theme') {
      theme.textContent = String(message.style);
      document.documentElement.style.colorScheme = message.dark === true ? 'dark' : 'light';
      document.documentElement.toggleAttribute('data-gk-dark', message.dark === true);
    } else {
      widgets.receive(message.widgets, buffers);
    }
  });
  widgets.draw(id, node);
});
