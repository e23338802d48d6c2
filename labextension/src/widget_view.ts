/**
 * Views of widgets in notebooks and consoles: in a frame, or by JupyterLab's manager for a kernel
 * that is known to be none of ours. Which of both is decided when the view is shown.
 */

import type { ISessionContext } from '@jupyterlab/apputils';
import type { IRenderMime, IRenderMimeRegistry } from '@jupyterlab/rendermime';
import type { Kernel } from '@jupyterlab/services';
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
import { TARGET } from './widget_comms.js';
import type { WidgetFrame } from './widget_frame.js';
import type { WidgetHost } from './widget_host.js';
import { VIEW_TYPE, isId } from './widget_store.js';

const FIRST_HEIGHT = 40;
const MAX_NOTES = 5;

/** The notebook or console that a view is in. */
export interface Home {
  readonly session: ISessionContext;
  readonly rendermime: IRenderMimeRegistry;
  /** What the file has kept of widgets. */
  saved(): unknown;
}

export interface ViewActions {
  isDark(): boolean;
  /** Calls back when the theme has changed; the function that is returned ends that. */
  onThemeChange(callback: () => void): () => void;
  confirmLink(url: string): void;
  isOther(name: string): boolean;
  /** The home of an output; null if it is in none. */
  homeOf(view: Widget): Home | null;
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
  private model: IRenderMime.IMimeModel | null = null;
  private home: Home | null = null;
  private frame: PageFrame | null = null;
  private widgets: WidgetFrame | null = null;
  private turn = 0;
  private readonly inner = new PanelLayout();
  private readonly content = element('div');
  private readonly notes = element('div');
  private readonly stopListening: () => void;

  constructor(
    private readonly host: WidgetHost,
    private readonly client: ArtifactClient,
    private readonly actions: ViewActions
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
    this.end();
    this.model = model;
    await this.decide();
  }

  private get modelId(): string {
    const { model_id: id } = fieldsOf(this.model?.data[VIEW_TYPE] ?? {});
    return isId(id) ? id : '';
  }

  private async decide(): Promise<void> {
    const { model, modelId } = this;
    this.home = this.isAttached ? this.actions.homeOf(this) : null;
    if (model === null || modelId === '' || this.home === null) {
      return;
    }
    const { session, rendermime } = this.home;
    await session.ready;
    const kernel = session.session?.kernel;
    if (kernel && this.actions.isOther(kernel.name) && (await hasWidget(kernel, modelId))) {
      await new Promise(resolve => setTimeout(resolve)); // their manager waits for the session, too
      if (this.inner.widgets.length === 0) {
        const renderer = rendermime.createRenderer(VIEW_TYPE);
        this.inner.addWidget(renderer);
        await renderer.renderModel(model);
      }
    } else if (this.isAttached) {
      this.content.style.height ||= `${FIRST_HEIGHT}px`;
      pool.watch(this);
    }
  }

  protected override onAfterAttach(): void {
    void this.decide();
  }

  /** Browsers load a frame anew when its node is moved. */
  protected override onBeforeDetach(): void {
    pool.leave(this);
  }

  override dispose(): void {
    this.stopListening();
    pool.leave(this);
    super.dispose();
  }

  /** The pool has a place for its frame. */
  begin(): void {
    this.turn += 1;
    const { turn } = this;
    this.client.script('widgets').then(
      script => {
        if (turn === this.turn && this.home !== null) {
          this.make(script, this.home);
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
    this.widgets?.dispose();
    this.frame?.dispose();
    this.widgets = null;
    this.frame = null;
    this.content.replaceChildren();
  }

  private make(script: string, home: Home): void {
    this.notes.replaceChildren();
    const give = giveLibraries(this.client);
    const frame = new PageFrame(
      this.client,
      {
        type: 'widget',
        name: 'Widget',
        file: {
          bytes: new TextEncoder().encode(this.modelId).buffer,
          type: 'text/plain',
          ticket: ''
        },
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
          this.widgets?.receive(data, buffers);
        },
        size: height => {
          this.content.style.height = `${height}px`;
        }
      },
      this.actions.isDark()
    );
    this.frame = frame;
    this.content.replaceChildren(frame.node);
    const start = (): void => {
      this.widgets?.dispose();
      frame.send(frameTheme(this.actions.isDark()));
      const kernel = home.session.session?.kernel ?? null;
      this.widgets = this.host.attach(frame, kernel, () => home.saved());
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
