/** The panel "Outputs", files that open as pages, ``show`` in a cell, and who asks a question. */

import {
  ILayoutRestorer,
  type JupyterFrontEnd,
  type JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { Dialog, ICommandPalette, IThemeManager, showDialog } from '@jupyterlab/apputils';
import { IConsoleTracker } from '@jupyterlab/console';
import { PageConfig, PathExt, URLExt } from '@jupyterlab/coreutils';
import { IDefaultFileBrowser } from '@jupyterlab/filebrowser';
import { INotebookTracker } from '@jupyterlab/notebook';
import { OutputArea } from '@jupyterlab/outputarea';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { ServerConnection } from '@jupyterlab/services';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { fileIcon } from '@jupyterlab/ui-components';
import type { Poll } from '@lumino/polling';

import { ArtifactClient } from './artifacts.js';
import type { Send } from './client.js';
import { type Trackers, sessionOf } from './current.js';
import { escapeHidden } from './dom.js';
import { FetchClient } from './fetch.js';
import type { ViewContext } from './framed_view.js';
import { readLink } from './inline.js';
import { type OutputContext, OutputFrame } from './output_frame.js';
import { SHOW_TYPE, canDraw } from './output_parts.js';
import { OutputRenderer } from './output_renderer.js';
import { type OutputsActions, OutputsView } from './outputs.js';
import { PAGE_FACTORY, openInFrames } from './page_document.js';
import { page } from './plan.js';
import { Preview, howToShow } from './preview.js';
import { type Asks, labelQuestions } from './questions.js';
import { isOurs, originOfKernel } from './specs.js';
import { VIEW_TYPE } from './widget_store.js';
import { Panel, makePoll, open, shieldIcon } from './widgets.js';

export const SHOW_OUTPUTS = 'gvisor-kernel:show-outputs';
const OPEN_PAGE = 'gvisor-kernel:open-page';

function apiUrl(app: JupyterFrontEnd): string {
  return URLExt.join(app.serviceManager.serverSettings.baseUrl, 'gvisor-kernel/api/');
}

export function makeSend(app: JupyterFrontEnd): Send {
  const settings = app.serviceManager.serverSettings;
  const api = apiUrl(app);
  return (path, init) => ServerConnection.makeRequest(api + path, init, settings);
}

export function connect(app: JupyterFrontEnd): ArtifactClient {
  const { baseUrl } = app.serviceManager.serverSettings;
  const own = URLExt.join(PageConfig.getOption('fullLabextensionsUrl'), 'gvisor-kernel');
  const send = makeSend(app);
  return new ArtifactClient(
    send,
    URLExt.join(baseUrl, 'gvisor-kernel/frame'),
    async name => {
      const response = await fetch(new URL(URLExt.join(own, name), baseUrl));
      if (!response.ok) {
        throw new Error(`The extension's file ${name} is missing: install gvisor-kernel again.`);
      }
      return await response.text();
    },
    path => apiUrl(app) + path,
    new FetchClient(send)
  );
}

/** What shows a picture that is no file of the outputs. */
export function makePreview(app: JupyterFrontEnd): Preview {
  return new Preview(connect(app), {
    confirmLink: () => undefined, // a picture has no links
    isDark: () => document.body.dataset.jpThemeLight === 'false'
  });
}

class OutputsWidget extends Panel {
  private readonly poll: Poll;

  constructor(
    readonly view: OutputsView,
    id: string,
    title: string
  ) {
    super(id, `Outputs: ${title}`);
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

export function makeViewContext(client: ArtifactClient, themes: IThemeManager | null): ViewContext {
  return {
    client,
    confirmLink: url => void confirmLink(url),
    isDark: () => typeof themes?.theme === 'string' && !themes.isLight(themes.theme),
    onThemeChange: callback => {
      themes?.themeChanged.connect(callback);
      return () => void themes?.themeChanged.disconnect(callback);
    }
  };
}

let isAsking = false;

/** Asks one question at a time: what a page wants meanwhile is not answered. */
export async function confirmLink(url: string): Promise<void> {
  if (isAsking) {
    return;
  }
  isAsking = true;
  try {
    await askAndOpen(readLink(url), url);
  } finally {
    isAsking = false;
  }
}

async function askAndOpen(found: URL | null, url: string): Promise<void> {
  const answer = await showDialog({
    title: found === null ? 'This address cannot be opened' : `Open ${found.host}?`,
    body: escapeHidden(
      found === null
        ? `Links of outputs and pages open addresses of the web alone: ${url.slice(0, 300)} is none, or is one of this server. For a file, use the file browser; to save one, let the kernel write it to outputs/.`
        : `The page wants to open ${found.href.slice(0, 300)} in a new tab. The address may tell what the page knows.`
    ),
    buttons:
      found === null
        ? [Dialog.okButton()]
        : [Dialog.cancelButton(), Dialog.okButton({ label: 'Open' })],
    defaultButton: 0
  });
  if (found !== null && answer.button.accept) {
    window.open(found.href, '_blank', 'noopener,noreferrer');
  }
}

/** A kernel, and the path of its notebook if that is known. */
interface Target {
  readonly kernelId: string;
  readonly name: string;
  readonly path: string | null;
}

function readTarget({ kernelId, name, path }: ReadonlyPartialJSONObject): Target {
  return {
    kernelId: typeof kernelId === 'string' ? kernelId : '',
    name: typeof name === 'string' ? name : '',
    path: typeof path === 'string' ? path : null
  };
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
    IThemeManager,
    ILayoutRestorer
  ],
  activate: (
    app: JupyterFrontEnd,
    notebooks: INotebookTracker | null,
    consoles: IConsoleTracker | null,
    rendermime: IRenderMimeRegistry | null,
    browser: IDefaultFileBrowser | null,
    palette: ICommandPalette | null,
    themes: IThemeManager | null,
    restorer: ILayoutRestorer | null
  ) => {
    const client = connect(app);
    const trackers: Trackers = { notebooks, consoles };
    const { commands } = app;
    const actions = makeViewContext(client, themes);
    const context: OutputContext = { ...actions, trackers };
    page.canDraw = type => type === VIEW_TYPE || canDraw(type);
    page.confirmLink = actions.confirmLink;
    page.makeFrame = (type, refused) =>
      type === VIEW_TYPE ? page.makeWidget() : new OutputFrame(type, context, refused);
    const current = (): Target | null => {
      const session = sessionOf(trackers, app.shell.currentWidget);
      const kernel = session?.session?.kernel;
      return session && kernel && isOurs(app.serviceManager.kernelspecs.specs, kernel.name)
        ? { kernelId: kernel.id, name: session.name || kernel.name, path: session.path }
        : null;
    };

    const drawIcon = (path: string): HTMLElement => {
      const node = (app.docRegistry.getFileTypesForPath(path)[0]?.icon ?? fileIcon).element({
        tag: 'span'
      });
      node.classList.add('gk-icon');
      return node;
    };
    commands.addCommand(SHOW_OUTPUTS, {
      label: ({ isMenu }) =>
        isMenu === true ? 'Sandbox Outputs' : 'Show the Outputs of This Kernel',
      icon: shieldIcon,
      isEnabled: args => typeof args.kernelId === 'string' || current() !== null,
      execute: args => {
        const found = typeof args.kernelId === 'string' ? readTarget(args) : current();
        if (found === null) {
          return;
        }
        const { kernelId, name, path } = found;
        const reveal: OutputsActions['reveal'] =
          path !== null && commands.hasCommand('filebrowser:go-to-path')
            ? file =>
                void commands.execute('filebrowser:go-to-path', {
                  path: PathExt.join(PathExt.dirname(path), 'outputs', file)
                })
            : null;
        const id = `gvisor-kernel-outputs-${kernelId}`;
        open(
          app,
          id,
          () =>
            new OutputsWidget(
              new OutputsView(client, kernelId, { ...actions, reveal, icon: drawIcon }),
              id,
              name
            ),
          { mode: 'split-right' }
        );
      }
    });
    palette?.addItem({ command: SHOW_OUTPUTS, category: 'Sandboxes' });

    const selected = (): string | null => {
      const item = browser?.selectedItems().next();
      const path = item === undefined || item.done === true ? null : item.value.path;
      return path !== null && app.serviceManager.contents.driveName(path) === '' ? path : null;
    };
    commands.addCommand(OPEN_PAGE, {
      label: 'Open as a Page Without Network',
      icon: shieldIcon,
      isVisible: () => howToShow(selected() ?? '') !== null,
      execute: () => {
        const path = selected();
        return path === null
          ? undefined
          : commands.execute('docmanager:open', {
              path,
              factory: PAGE_FACTORY,
              options: { mode: 'split-right' }
            });
      }
    });
    app.contextMenu.addItem({
      command: OPEN_PAGE,
      selector: '.jp-DirListing-item[data-isdir="false"]',
      rank: 4
    });

    openInFrames(app, restorer, () => new Preview(client, actions));
    labelQuestions(OutputArea.prototype as unknown as Asks, name => {
      const { specs } = app.serviceManager.kernelspecs;
      return originOfKernel(specs, name) === 'local'
        ? null
        : (specs?.kernelspecs[name]?.display_name ?? name);
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
