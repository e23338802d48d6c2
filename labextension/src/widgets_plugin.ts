/** Connects notebooks and consoles with the widgets of their kernels. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { IThemeManager } from '@jupyterlab/apputils';
import { IConsoleTracker } from '@jupyterlab/console';
import { INotebookTracker } from '@jupyterlab/notebook';

import { findPlace } from './earlier_outputs.js';
import { connect, makeViewContext } from './outputs_plugin.js';
import { page } from './plan.js';
import { originOfKernel } from './specs.js';
import { WidgetHost } from './widget_host.js';
import { type Home, WidgetRenderer } from './widget_view.js';

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
