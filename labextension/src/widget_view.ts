/**
 * Views of widgets in notebooks and consoles: in a frame, or by JupyterLab's manager for a kernel
 * that is known to be none of ours. Which of both is decided when the view is shown. What a view is
 * told of its kernel's widgets is in ``widget_frame.ts``.
 */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { type ISessionContext, IThemeManager } from '@jupyterlab/apputils';
import { IConsoleTracker } from '@jupyterlab/console';
import { INotebookTracker } from '@jupyterlab/notebook';
import type { IRenderMime, IRenderMimeRegistry } from '@jupyterlab/rendermime';
import type { Kernel } from '@jupyterlab/services';
import { PanelLayout, type Widget } from '@lumino/widgets';

import { findPlace } from './earlier_outputs.js';
import { FramedView, type ViewContext } from './framed_view.js';
import { connect, makeViewContext } from './outputs_plugin.js';
import type { PageFrame } from './page_frame.js';
import { page } from './plan.js';
import { originOfKernel } from './specs.js';
import { TARGET } from './widget_comms.js';
import type { WidgetFrame } from './widget_frame.js';
import { WidgetHost } from './widget_host.js';
import { VIEW_TYPE, isId, recordOf } from './widget_store.js';

/** The notebook or console that a view is in. */
interface Home {
  readonly session: ISessionContext;
  readonly rendermime: IRenderMimeRegistry;
  /** What the file has kept of widgets. */
  saved(): unknown;
}

interface ViewActions extends ViewContext {
  isOther(name: string): boolean;
  /** The home of an output; null if it is in none. */
  homeOf(view: Widget): Home | null;
}

class WidgetRenderer extends FramedView implements IRenderMime.IRenderer {
  private model: IRenderMime.IMimeModel | null = null;
  private home: Home | null = null;
  private widgets: WidgetFrame | null = null;
  private readonly inner = new PanelLayout();

  constructor(
    private readonly host: WidgetHost,
    private readonly actions: ViewActions
  ) {
    super(actions, 'widgets');
    this.addClass('gk-widget-output');
    this.layout = this.inner;
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this.end();
    this.model = model;
    await this.decide();
  }

  protected get source(): string {
    const { model_id: id } = recordOf(this.model?.data[VIEW_TYPE]);
    return isId(id) ? id : '';
  }

  private async decide(): Promise<void> {
    const { model, source: modelId } = this;
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
      this.watch();
    }
  }

  protected override onAfterAttach(): void {
    void this.decide();
  }

  /** The widget is the kernel's, and comes again as it is then. */
  override end(): void {
    this.widgets?.dispose();
    this.widgets = null;
    super.end();
  }

  protected start(frame: PageFrame): void {
    const { home } = this;
    this.widgets?.dispose();
    const kernel = home?.session.session?.kernel ?? null;
    this.widgets = this.host.attach(frame, kernel, () => home?.saved());
  }

  protected override receive(data: unknown, buffers: readonly ArrayBuffer[]): void {
    this.widgets?.receive(data, buffers);
  }

  protected get sender(): string | null {
    return this.widgets?.isOfKernel === true
      ? (this.home?.session.session?.kernel?.id ?? null)
      : null;
  }

  protected failed(message: string, place: string): void {
    this.notes.add(place === '' ? message : `${message} (${place})`);
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

/** Connects notebooks and consoles with the widgets of their kernels. */
export const widgets: JupyterFrontEndPlugin<void> = {
  id: 'gvisor-kernel:widgets',
  description: 'Shows the widgets of kernels in frames that reach nothing.',
  autoStart: true,
  optional: [INotebookTracker, IConsoleTracker, IThemeManager],
  activate: (
    app: JupyterFrontEnd,
    notebooks: INotebookTracker | null,
    consoles: IConsoleTracker | null,
    themes: IThemeManager | null
  ) => {
    const { kernelspecs, kernels } = app.serviceManager;
    // A kernel whose kernelspec is gone is not known to be another one.
    const isOther = (name: string): boolean | null => {
      const { specs } = kernelspecs;
      return specs === null ? null : originOfKernel(specs, name) === 'local';
    };
    const host = new WidgetHost(isOther, kernelspecs.ready);
    host.guard(kernels);

    const homes = new WeakMap<object, Home>(); // by their sessions
    notebooks?.widgetAdded.connect((_, { context, sessionContext: session, content }) => {
      const saved = host.guardMetadata(context.model, () => session.session?.kernel);
      homes.set(session, { session, rendermime: content.rendermime, saved });
    });
    consoles?.widgetAdded.connect((_, { sessionContext: session, console: { rendermime } }) =>
      homes.set(session, { session, rendermime, saved: () => undefined })
    );

    const actions = {
      ...makeViewContext(connect(app), themes),
      homeOf: (view: WidgetRenderer) => {
        const place = findPlace(view, { notebooks, consoles });
        return (place && homes.get(place.session)) ?? null;
      },
      isOther: (name: string) => isOther(name) === true
    };
    // Views behind the wall come here: of our kernels, and of outputs that a file has kept.
    page.makeWidget = () => new WidgetRenderer(host, actions);
  }
};
