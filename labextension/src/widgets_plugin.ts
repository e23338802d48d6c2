/** Connects notebooks and consoles with the widgets of their kernels. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { type ISessionContext, IThemeManager } from '@jupyterlab/apputils';
import { type ConsolePanel, IConsoleTracker } from '@jupyterlab/console';
import { INotebookTracker, type NotebookPanel } from '@jupyterlab/notebook';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';

import type { Kernel } from '@jupyterlab/services';
import type { Widget } from '@lumino/widgets';

import { confirmLink, connect } from './outputs_plugin.js';
import { originOfKernel } from './specs.js';
import { WidgetHost } from './widget_host.js';
import { type ViewHome, WidgetRenderer, guardRegistry, setWidgetViews } from './widget_view.js';

interface Place {
  readonly session: ISessionContext;
  readonly saved: () => unknown;
}

/** A registry's home, which is made before its notebook or console is known. */
interface Entry {
  readonly home: ViewHome;
  readonly place: Promise<Place>;
  readonly tell: (place: Place) => void;
}

function makeEntry(theirs: ViewHome['theirs']): Entry {
  let tell: Entry['tell'] = () => undefined;
  const place = new Promise<Place>(resolve => {
    tell = resolve;
  });
  // A notebook may have another one later.
  const kernel = async (): Promise<Kernel.IKernelConnection | null> => {
    const { session } = await place;
    await session.ready;
    return session.session?.kernel ?? null;
  };
  let saved = (): unknown => undefined;
  void place.then(it => {
    saved = it.saved;
  });
  const kernelId = async (): Promise<string | null> => (await kernel())?.id ?? null;
  return { home: { kernel, kernelId, theirs, saved: () => saved() }, place, tell };
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
      return specs === null ? null : originOfKernel(specs, name) === 'local';
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
      isOther: (name: string) => isOther(name) === true,
      onThemeChange: (callback: () => void) => {
        themes?.themeChanged.connect(callback);
        return () => void themes?.themeChanged.disconnect(callback);
      }
    };
    const entries = new WeakMap<IRenderMimeRegistry, Entry>();
    const homeOf = (widget: Widget): ViewHome | null => {
      const panel = [notebooks, consoles].some(it => it?.has(widget))
        ? (widget as NotebookPanel | ConsolePanel)
        : null;
      const registry = panel === null ? undefined : registryOf(panel);
      return (registry && entries.get(registry)?.home) ?? null;
    };
    const all = { ...actions, homeOf };
    const guardOne = (registry: IRenderMimeRegistry): Entry => {
      const entry: Entry = makeEntry(
        guardRegistry(registry, () => new WidgetRenderer(host, client, all, entry.home))
      );
      entries.set(registry, entry);
      const clone = registry.clone.bind(registry);
      registry.clone = options => {
        const made = clone(options);
        const { tell } = guardOne(made);
        void entry.place.then(tell); // a view of this one's notebook
        return made;
      };
      return entry;
    };
    if (rendermime !== null) {
      guardOne(rendermime);
    }
    // Views behind the wall come here, too: of our kernels, and of outputs that a file has kept.
    setWidgetViews(() => new WidgetRenderer(host, client, all, null));
    notebooks?.widgetAdded.connect((_, panel: NotebookPanel) => {
      const { context, sessionContext: session } = panel;
      const saved = host.guardMetadata(context.model, () => session.session?.kernel);
      entries.get(registryOf(panel))?.tell({ session, saved });
    });
    consoles?.widgetAdded.connect((_, panel: ConsolePanel) => {
      const { sessionContext: session } = panel;
      entries.get(registryOf(panel))?.tell({ session, saved: () => undefined });
    });
  }
};

function registryOf(panel: NotebookPanel | ConsolePanel): IRenderMimeRegistry {
  return 'console' in panel ? panel.console.rendermime : panel.content.rendermime;
}
