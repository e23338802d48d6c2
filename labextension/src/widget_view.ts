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
import { PageFrame } from './page_frame.js';
import type { AttachedFrame } from './widget_comms.js';
import type { Home, WidgetHost } from './widget_host.js';
import { VIEW_TYPE, isId } from './widget_store.js';

const TARGET = 'jupyter.widget';
const RANK = -10;

/** The notebook or console of a registry, as soon as that is known. */
export interface ViewHome extends Home {
  readonly kernel: Promise<Kernel.IKernelConnection | null>;
  /** Makes a view of JupyterLab's manager, as soon as that is there. */
  readonly theirs: Promise<() => IRenderMime.IRenderer>;
}

export interface ViewActions {
  isDark(): boolean;
  confirmLink(url: string): void;
  isOther(name: string): boolean;
  /** The home of what is below this widget of JupyterLab; null if it is no home. */
  homeOf(widget: Widget): ViewHome | null;
}

export class WidgetRenderer extends Widget implements IRenderMime.IRenderer {
  private frame: PageFrame | null = null;
  private attached: AttachedFrame | null = null;
  private readonly inner = new PanelLayout();
  private model: string | null = null;
  private rendered: IRenderMime.IMimeModel | null = null;
  private framed = false;

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
    const { kernel: promise, theirs } = this.home;
    const kernel = await promise;
    if (kernel !== null && this.actions.isOther(kernel.name) && (await hasWidget(kernel, id))) {
      const renderer = (await theirs)();
      this.inner.addWidget(renderer);
      await renderer.renderModel(rendered);
      return;
    }
    this.framed = true;
    if (this.isAttached) {
      await this.begin();
    }
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
      void this.begin();
    } else if (this.home === null) {
      void this.decide();
    }
  }

  protected override onBeforeDetach(message: Message): void {
    this.end();
    super.onBeforeDetach(message);
  }

  override dispose(): void {
    this.end();
    super.dispose();
  }

  private end(): void {
    this.attached?.dispose();
    this.frame?.dispose();
    this.attached = null;
    this.frame = null;
    this.node.replaceChildren();
  }

  private async begin(): Promise<void> {
    this.end();
    const say = (text: string): void => {
      this.node.prepend(element('p', { class: 'gk-widget-error' }, text));
    };
    try {
      const script = await this.client.script('widgets');
      const { model: id, home } = this;
      if (!this.isAttached || id === null || home === null || this.frame !== null) {
        return;
      }
      const bytes = new TextEncoder().encode(id).buffer;
      const frame: PageFrame = new PageFrame(
        this.client,
        {
          type: 'widget',
          name: 'Widget',
          file: { bytes, type: 'text/plain', ticket: '' },
          isText: true,
          scripts: [script],
          sized: true
        },
        {
          error: (text, place) => {
            say(place === '' ? text : `${text} (${place})`);
          },
          link: url => {
            this.actions.confirmLink(url);
          },
          blocked: url => {
            say(`Not loaded: ${url}`);
          },
          shown: () => undefined,
          ended: say,
          talk: () => undefined,
          message: (data, buffers) => {
            this.attached?.receive(fieldsOf(data).widgets, buffers);
          },
          size: height => {
            frame.node.style.height = `${height}px`;
          }
        },
        this.actions.isDark()
      );
      this.frame = frame;
      this.attached = this.host.attach(
        {
          send: (message, buffers) => {
            frame.send({ widgets: message }, buffers);
          }
        },
        home
      );
      this.node.append(frame.node);
    } catch (error) {
      say(messageOf(error));
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
