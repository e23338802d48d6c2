/**
 * Views of widgets in notebooks and consoles: in a frame, or by JupyterLab's manager for a kernel
 * that is known to be none of ours. Which of both is decided when the view is shown.
 */

import type { IRenderMime, IRenderMimeRegistry } from '@jupyterlab/rendermime';
import type { Kernel } from '@jupyterlab/services';
import type { Message } from '@lumino/messaging';
import { PanelLayout, Widget } from '@lumino/widgets';

import type { ArtifactClient } from './artifacts.js';
import { messageOf } from './client.js';
import { fieldsOf } from './contract.js';
import { element } from './dom.js';
import { type Framed } from './frame_pool.js';
import { frameTheme } from './frame_theme.js';
import { giveLibraries } from './libraries.js';
import { pool } from './output_frame.js';
import { PageFrame } from './page_frame.js';
import type { AttachedFrame } from './widget_comms.js';
import type { Home, WidgetHost } from './widget_host.js';
import { VIEW_TYPE, isId } from './widget_store.js';

const TARGET = 'jupyter.widget';
const RANK = -10;
const FIRST_HEIGHT = 40;
const MAX_NOTES = 5;

/** The notebook or console of a registry, as soon as that is known. */
export interface ViewHome extends Home {
  kernel(): Promise<Kernel.IKernelConnection | null>;
  /** Makes a view of JupyterLab's manager, as soon as that is there. */
  readonly theirs: Promise<() => IRenderMime.IRenderer>;
}

export interface ViewActions {
  isDark(): boolean;
  /** Calls back when the theme has changed; the function that is returned ends that. */
  onThemeChange(callback: () => void): () => void;
  confirmLink(url: string): void;
  isOther(name: string): boolean;
  /** The home of what is below this widget of JupyterLab; null if it is no home. */
  homeOf(widget: Widget): ViewHome | null;
}

let makeView: () => IRenderMime.IRenderer | null = () => null;

export function setWidgetViews(make: () => IRenderMime.IRenderer): void {
  makeView = make;
}

/** Makes the view of a widget, wherever it will be; null as long as the plugin is not there. */
export function makeWidgetView(): IRenderMime.IRenderer | null {
  return makeView();
}

export class WidgetRenderer extends Widget implements IRenderMime.IRenderer, Framed {
  private frame: PageFrame | null = null;
  private attached: AttachedFrame | null = null;
  private readonly inner = new PanelLayout();
  private model: string | null = null;
  private rendered: IRenderMime.IMimeModel | null = null;
  private framed = false;
  private turn = 0;
  private readonly content = element('div');
  private readonly notes = element('div');
  private readonly stopListening: () => void;

  /** Without a home, it is that of the panel in which the view is. */
  constructor(
    private readonly host: WidgetHost,
    private readonly client: ArtifactClient,
    private readonly actions: ViewActions,
    private home: ViewHome | null
  ) {
    super();
    this.addClass('gk-widget-output');
    this.layout = this.inner;
    this.node.append(this.notes, this.content);
    this.stopListening = actions.onThemeChange(() => {
      this.frame?.send(frameTheme(actions.isDark()));
    });
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    const { model_id: id } = fieldsOf(model.data[VIEW_TYPE] ?? {});
    this.end();
    if (!isId(id)) {
      return;
    }
    this.model = id;
    this.rendered = model;
    if (this.home !== null || this.isAttached) {
      await this.decide();
    }
  }

  private async decide(): Promise<void> {
    const { model: id, rendered } = this;
    this.home ??= this.findHome();
    if (id === null || rendered === null || this.home === null) {
      return;
    }
    const { theirs } = this.home;
    const kernel = await this.home.kernel();
    if (kernel !== null && this.actions.isOther(kernel.name) && (await hasWidget(kernel, id))) {
      const renderer = (await theirs)();
      this.inner.addWidget(renderer);
      await renderer.renderModel(rendered);
      return;
    }
    this.framed = true;
    this.watch();
  }

  private findHome(): ViewHome | null {
    for (let widget = this.parent; widget !== null; widget = widget.parent) {
      const home = this.actions.homeOf(widget);
      if (home !== null) {
        return home;
      }
    }
    return null;
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    if (this.framed) {
      this.watch();
    } else if (this.home === null) {
      void this.decide();
    }
  }

  /** Browsers load a frame anew when its node is moved. */
  protected override onBeforeDetach(message: Message): void {
    pool.leave(this);
    super.onBeforeDetach(message);
  }

  override dispose(): void {
    this.stopListening();
    pool.leave(this);
    super.dispose();
  }

  private watch(): void {
    if (this.isAttached) {
      if (this.content.style.height === '') {
        this.content.style.height = `${FIRST_HEIGHT}px`;
      }
      pool.watch(this);
    }
  }

  /** The pool has a place for its frame. */
  begin(): void {
    this.turn += 1;
    const { turn } = this;
    this.client.script('widgets').then(
      script => {
        if (turn === this.turn && this.model !== null && this.home !== null) {
          this.make(script, this.model, this.home);
        }
      },
      (error: unknown) => {
        this.say(messageOf(error));
      }
    );
  }

  /** Its frame is given to others. The widget is the kernel's, and comes again as it is then. */
  end(): void {
    this.turn += 1;
    this.attached?.dispose();
    this.frame?.dispose();
    this.attached = null;
    this.frame = null;
    this.content.replaceChildren();
  }

  private make(script: string, id: string, home: ViewHome): void {
    this.notes.replaceChildren();
    const give = giveLibraries(this.client);
    const frame = new PageFrame(
      this.client,
      {
        type: 'widget',
        name: 'Widget',
        file: { bytes: new TextEncoder().encode(id).buffer, type: 'text/plain', ticket: '' },
        isText: true,
        scripts: [script],
        answer: async (method, args) => {
          if (method !== 'library') {
            throw new Error('A widget has no files, keeps nothing, and has no network.');
          }
          return await give(args);
        }
      },
      {
        error: (text, place) => {
          this.say(place === '' ? text : `${text} (${place})`);
        },
        link: url => {
          this.actions.confirmLink(url);
        },
        blocked: url => {
          const host = URL.canParse(url) ? new URL(url).host : url;
          this.say(`Not loaded, as widgets have no network: ${host}`); // a map asks for many tiles
        },
        shown: () => undefined,
        ended: reason => {
          this.say(reason);
        },
        talk: () => undefined,
        renewed: () => {
          start();
        },
        message: (data, buffers) => {
          const { widgets } = (data ?? {}) as { widgets?: unknown };
          this.attached?.receive(widgets, buffers);
        },
        size: height => {
          this.content.style.height = `${height}px`;
        }
      },
      this.actions.isDark()
    );
    this.frame = frame;
    this.content.replaceChildren(frame.node);
    const send = (message: unknown, buffers?: readonly ArrayBuffer[]): void => {
      frame.send({ widgets: message }, buffers);
    };
    const start = (): void => {
      this.attached?.dispose();
      frame.send(frameTheme(this.actions.isDark()));
      this.attached = this.host.attach({ send }, home);
    };
    start();
  }

  /** A widget may say the same thing a thousand times. */
  private say(text: string): void {
    const present = [...this.notes.children];
    if (present.length < MAX_NOTES && !present.some(node => node.textContent === text)) {
      this.notes.append(element('p', { class: 'gk-warning' }, text));
    }
  }
}

/** Whether a kernel has a widget: a file may name any. */
async function hasWidget(kernel: Kernel.IKernelConnection, id: string): Promise<boolean> {
  if (kernel.hasComm(id)) {
    return true; // it was made in this page's time; a busy kernel would answer late
  }
  const { content } = await kernel.requestCommInfo({ target_name: TARGET });
  return content.status === 'ok' && Object.hasOwn(content.comms, id);
}

/**
 * Makes a registry ask for views here. JupyterLab's manager puts its own factory into the registry
 * of each notebook, which is kept for other kernels.
 */
export function guardRegistry(
  registry: IRenderMimeRegistry,
  make: () => IRenderMime.IRenderer
): Promise<() => IRenderMime.IRenderer> {
  const add = registry.addFactory.bind(registry);
  const remove = registry.removeMimeType.bind(registry);
  const create = registry.createRenderer.bind(registry);
  let bound: IRenderMime.IRendererFactory | null = null;
  let resolve = (): void => undefined;
  const isBound = new Promise<void>(done => {
    resolve = done;
  });
  const theirs = async (): Promise<() => IRenderMime.IRenderer> => {
    await isBound;
    return () => {
      // Their factory wants what the registry gives to each.
      remove(VIEW_TYPE);
      add(bound ?? own, RANK);
      try {
        return create(VIEW_TYPE);
      } finally {
        add(own, RANK);
      }
    };
  };
  const own: IRenderMime.IRendererFactory = {
    safe: true, // whatever the notebook's trust: it names a widget, which has a frame
    mimeTypes: [VIEW_TYPE],
    createRenderer: make
  };
  remove(VIEW_TYPE); // their placeholder
  add(own, RANK);
  registry.removeMimeType = type => {
    if (type !== VIEW_TYPE) {
      remove(type);
    }
  };
  registry.addFactory = (factory, rank) => {
    if (!factory.mimeTypes.includes(VIEW_TYPE)) {
      add(factory, rank);
    } else if (factory !== own) {
      bound = factory;
      resolve();
    }
  };
  return theirs();
}
