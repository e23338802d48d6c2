/** The panel "Outputs", pages that are opened from the file browser, and ``show`` in a cell. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { Dialog, ICommandPalette, IThemeManager, showDialog } from '@jupyterlab/apputils';
import { IConsoleTracker } from '@jupyterlab/console';
import { PageConfig, PathExt, URLExt } from '@jupyterlab/coreutils';
import { IDefaultFileBrowser } from '@jupyterlab/filebrowser';
import { INotebookTracker } from '@jupyterlab/notebook';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { ServerConnection } from '@jupyterlab/services';
import type { Poll } from '@lumino/polling';
import { Widget } from '@lumino/widgets';

import { ArtifactClient, type Place } from './artifacts.js';
import { type Trackers, sessionOf } from './current.js';
import { OutputRenderer, SHOW_TYPE } from './output_renderer.js';
import { type OutputsActions, OutputsView } from './outputs.js';
import { Preview, howToShow } from './preview.js';
import { isOurs } from './specs.js';
import { makePoll, shieldIcon } from './widgets.js';

const Commands = {
  outputs: 'gvisor-kernel:show-outputs',
  page: 'gvisor-kernel:open-page'
} as const;

function connect(app: JupyterFrontEnd): ArtifactClient {
  const settings = app.serviceManager.serverSettings;
  const api = URLExt.join(settings.baseUrl, 'gvisor-kernel/api/');
  const own = URLExt.join(PageConfig.getOption('fullLabextensionsUrl'), 'gvisor-kernel');
  return new ArtifactClient(
    async ({ method, path, body }) => {
      const init = body === undefined ? { method } : { method, body: JSON.stringify(body) };
      const response = await ServerConnection.makeRequest(api + path, init, settings);
      return {
        status: response.status,
        json: () => response.json(),
        arrayBuffer: () => response.arrayBuffer(),
        header: name => response.headers.get(name)
      };
    },
    URLExt.join(settings.baseUrl, 'gvisor-kernel/frame'),
    async name => {
      const response = await fetch(new URL(URLExt.join(own, name), settings.baseUrl));
      if (!response.ok) {
        throw new Error(`The extension's file ${name} is missing: install gvisor-kernel again.`);
      }
      return await response.text();
    },
    path => api + path
  );
}

class OutputsWidget extends Widget {
  private readonly poll: Poll;

  constructor(
    readonly view: OutputsView,
    id: string,
    title: string
  ) {
    super();
    this.id = id;
    this.addClass('gk-panel');
    this.title.label = `Outputs: ${title}`;
    this.title.icon = shieldIcon;
    this.title.closable = true;
    this.node.append(view.node);
    this.poll = makePoll(
      id,
      () => view.refresh(),
      () => !this.isVisible
    );
    void view.refresh().catch(() => undefined); // the view says it
  }

  override dispose(): void {
    this.poll.dispose();
    this.view.dispose();
    super.dispose();
  }
}

class PageWidget extends Widget {
  constructor(
    private readonly preview: Preview,
    id: string,
    place: Place
  ) {
    super();
    this.id = id;
    this.addClass('gk-panel');
    this.title.label = PathExt.basename(place.path);
    this.title.caption = place.path;
    this.title.icon = shieldIcon;
    this.title.closable = true;
    this.node.append(preview.node);
    void preview.show(place);
  }

  override dispose(): void {
    this.preview.clear();
    super.dispose();
  }
}

async function confirmLink(url: string): Promise<void> {
  const known = /^https?:\/\//i.test(url);
  const answer = await showDialog({
    title: known ? 'Open this address?' : 'This address cannot be opened',
    body: known ? `The page wants to open ${url} in a new tab. It may tell what it knows.` : url,
    buttons: known
      ? [Dialog.cancelButton(), Dialog.okButton({ label: 'Open' })]
      : [Dialog.okButton()]
  });
  if (known && answer.button.accept) {
    window.open(url, '_blank', 'noopener,noreferrer');
  }
}

export const outputs: JupyterFrontEndPlugin<void> = {
  id: 'gvisor-kernel:outputs',
  description: 'Shows the outputs of kernels, and pages from them, in frames that reach nothing.',
  autoStart: true,
  optional: [
    INotebookTracker,
    IConsoleTracker,
    IRenderMimeRegistry,
    IDefaultFileBrowser,
    ICommandPalette,
    IThemeManager
  ],
  activate: (
    app: JupyterFrontEnd,
    notebooks: INotebookTracker | null,
    consoles: IConsoleTracker | null,
    rendermime: IRenderMimeRegistry | null,
    browser: IDefaultFileBrowser | null,
    palette: ICommandPalette | null,
    themes: IThemeManager | null
  ) => {
    const client = connect(app);
    const trackers: Trackers = { notebooks, consoles };
    const { commands } = app;
    const actions = {
      confirmLink: (url: string) => void confirmLink(url),
      isDark: () => {
        const theme = themes?.theme;
        return typeof theme === 'string' && themes?.isLight(theme) === false;
      }
    };
    const current = () => {
      const session = sessionOf(trackers, app.shell.currentWidget);
      const kernel = session?.session?.kernel;
      return session && kernel && isOurs(app.serviceManager.kernelspecs.specs, kernel.name)
        ? { session, kernel }
        : null;
    };
    const show = (widget: Widget): void => {
      if (!widget.isAttached) {
        app.shell.add(widget, 'main', { mode: 'split-right' });
      }
      app.shell.activateById(widget.id);
    };
    const find = (id: string): Widget | undefined =>
      [...app.shell.widgets('main')].find(widget => widget.id === id);

    commands.addCommand(Commands.outputs, {
      label: 'Show the Outputs of This Kernel',
      icon: shieldIcon,
      isEnabled: () => current() !== null,
      execute: () => {
        const found = current();
        if (found === null) {
          return;
        }
        const { session, kernel } = found;
        const folder = PathExt.dirname(session.path);
        const reveal: OutputsActions['reveal'] = commands.hasCommand('filebrowser:go-to-path')
          ? path =>
              void commands.execute('filebrowser:go-to-path', {
                path: PathExt.join(folder, 'outputs', path)
              })
          : null;
        const id = `gvisor-kernel-outputs-${kernel.id}`;
        const name = session.name || kernel.name;
        show(
          find(id) ??
            new OutputsWidget(new OutputsView(client, kernel.id, { ...actions, reveal }), id, name)
        );
      }
    });
    palette?.addItem({ command: Commands.outputs, category: 'Sandboxes' });

    const selected = (): string | null => {
      const item = browser?.selectedItems().next();
      const path = item === undefined || item.done === true ? null : item.value.path;
      return path !== null && app.serviceManager.contents.driveName(path) === '' ? path : null;
    };
    commands.addCommand(Commands.page, {
      label: 'Open as a Page Without Network',
      icon: shieldIcon,
      isVisible: () => howToShow(selected() ?? '').kind === 'page',
      execute: () => {
        const path = selected();
        if (path !== null) {
          const id = `gvisor-kernel-page-${path}`;
          show(find(id) ?? new PageWidget(new Preview(client, actions), id, { path }));
        }
      }
    });
    app.contextMenu.addItem({
      command: Commands.page,
      selector: '.jp-DirListing-item[data-isdir="false"]',
      rank: 4
    });

    rendermime?.addFactory(
      {
        safe: true, // whatever the notebook's trust: it names a file, which has a frame
        mimeTypes: [SHOW_TYPE],
        defaultRank: 10,
        createRenderer: () => new OutputRenderer(client, actions, trackers)
      },
      10
    );
  }
};
