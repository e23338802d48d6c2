/** Connects notebooks and consoles with the widgets of their kernels. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { type ISessionContext, IThemeManager } from '@jupyterlab/apputils';
import { type ConsolePanel, IConsoleTracker } from '@jupyterlab/console';
import { INotebookTracker, type NotebookPanel } from '@jupyterlab/notebook';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';

import { confirmLink, connect } from './outputs_plugin.js';
import { isOurs } from './specs.js';
import { WidgetHost } from './widget_host.js';
import { type ViewHome, WidgetRenderer, guardRegistry } from './widget_view.js';

interface Place {
  readonly session: ISessionContext;
  readonly saved: () => unknown;
}

/** The place of a registry, which is made before its notebook is known. */
type Homes = WeakMap<IRenderMimeRegistry, (place: Place) => void>;

function makeHome(place: Promise<Place>): ViewHome {
  const kernel = place.then(async ({ session }) => {
    await session.ready;
    return session.session?.kernel ?? null;
  });
  let saved = (): unknown => undefined;
  void place.then(it => {
    saved = it.saved;
  });
  return { kernel, kernelId: kernel.then(it => it?.id ?? null), saved: () => saved() };
}

export const widgets: JupyterFrontEndPlugin<void> = {
  id: 'gvisor-kernel:widgets',
  description: 'Shows the widgets of kernels in frames that reach nothing.',
  autoStart: true,
  optional: [INotebookTracker, IConsoleTracker, IRenderMimeRegistry, IThemeManager],
  activate: (
    app: JupyterFrontEnd,
    notebooks: INotebookTracker | null,
    consoles: IConsoleTracker | null,
    rendermime: IRenderMimeRegistry | null,
    themes: IThemeManager | null
  ) => {
    const { kernelspecs, kernels } = app.serviceManager;
    // A kernel whose kernelspec is gone is not known to be another one.
    const isOther = (name: string): boolean | null => {
      const { specs } = kernelspecs;
      return specs === null ? null : specs.kernelspecs[name] !== undefined && !isOurs(specs, name);
    };
    const host = new WidgetHost(isOther, kernelspecs.ready);
    host.guard(kernels);

    const client = connect(app);
    const actions = {
      confirmLink: (url: string) => void confirmLink(url),
      isDark: () => {
        const theme = themes?.theme;
        return typeof theme === 'string' && themes?.isLight(theme) === false;
      },
      isOther: (name: string) => isOther(name) === true
    };
    const homes: Homes = new WeakMap();
    const guardOne = (registry: IRenderMimeRegistry): void => {
      const place = new Promise<Place>(resolve => {
        homes.set(registry, resolve);
      });
      const home = makeHome(place);
      guardRegistry(registry, theirs => new WidgetRenderer(host, client, actions, home, theirs));
      const clone = registry.clone.bind(registry);
      registry.clone = options => {
        const made = clone(options);
        guardOne(made);
        const find = homes.get(made);
        void place.then(it => find?.(it)); // a view of this one's notebook
        return made;
      };
    };
    if (rendermime !== null) {
      guardOne(rendermime);
    }
    notebooks?.widgetAdded.connect((_, { content, context, sessionContext }: NotebookPanel) => {
      const saved = host.guardMetadata(context.model, () => sessionContext.session?.kernel);
      homes.get(content.rendermime)?.({ session: sessionContext, saved });
    });
    consoles?.widgetAdded.connect((_, { console, sessionContext }: ConsolePanel) => {
      homes.get(console.rendermime)?.({ session: sessionContext, saved: () => undefined });
    });
  }
};
