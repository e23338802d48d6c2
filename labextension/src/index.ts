/** The plugins: which part of JupyterLab or Notebook 7 shows which view. */

import {
  ILabShell,
  type JupyterFrontEnd,
  type JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { Dialog, ICommandPalette, showDialog, showErrorMessage } from '@jupyterlab/apputils';
import { IConsoleTracker } from '@jupyterlab/console';
import { URLExt } from '@jupyterlab/coreutils';
import { IDefaultFileBrowser } from '@jupyterlab/filebrowser';
import { INotebookTracker } from '@jupyterlab/notebook';
import { KernelAPI, ServerConnection } from '@jupyterlab/services';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';

import type { Actions } from './card.js';
import { SandboxClient, messageOf } from './client.js';
import type { Sandbox } from './contract.js';
import { CurrentSandbox, type Trackers, kernelNameOf, sessionOf, sessionWith } from './current.js';
import { History } from './history.js';
import { describeCards, offerDoctor } from './launcher.js';
import { Sidebar } from './sidebar.js';
import { isOurs, kernelToWarm } from './specs.js';
import { Warmer, pageTimer } from './warm.js';
import { ChangesWidget, LinesWidget, SidebarWidget, shieldIcon } from './widgets.js';

const CATEGORY = 'Sandboxes';

const Commands = {
  card: 'gvisor-kernel:show-sandbox',
  changes: 'gvisor-kernel:show-changes',
  doctor: 'gvisor-kernel:doctor',
  sidebar: 'gvisor-kernel:show-sandboxes'
} as const;

function connect(app: JupyterFrontEnd): SandboxClient {
  const settings = app.serviceManager.serverSettings;
  const root = URLExt.join(settings.baseUrl, 'gvisor-kernel/api/');
  return new SandboxClient(({ method, path, body }) =>
    ServerConnection.makeRequest(
      root + path,
      body === undefined ? { method } : { method, body: JSON.stringify(body) },
      settings
    )
  );
}

/** Shows a widget in the main area; one that is open already comes to the front. */
function open(app: JupyterFrontEnd, id: string, make: () => Widget): void {
  const { shell } = app;
  const has = (area: string): boolean => [...shell.widgets(area)].some(it => it.id === id);
  if (!has('main') && !has('right')) {
    const widget = make();
    shell.add(widget, 'main');
    if (!has('main')) {
      shell.add(widget, 'right'); // in Notebook 7 the notebook is alone in the main area
    }
  }
  shell.activateById(id);
}

async function confirm(title: string, body: string, label: string): Promise<boolean> {
  const answer = await showDialog({
    title,
    body,
    buttons: [Dialog.cancelButton(), Dialog.warnButton({ label })]
  });
  return answer.button.accept;
}

function makeActions(
  app: JupyterFrontEnd,
  client: SandboxClient,
  trackers: Trackers,
  done: () => void
): Actions {
  const ask = async (
    title: string,
    body: string,
    label: string,
    call: () => Promise<unknown>
  ): Promise<void> => {
    if (await confirm(title, body, label)) {
      try {
        await call();
      } catch (error) {
        await showErrorMessage(title, messageOf(error));
      }
      done();
    }
  };
  let changesOffered = false;
  client.offersChanges().then(
    offered => {
      changesOffered = offered;
    },
    () => undefined // a server without our half; it answers nothing else either
  );
  const nameOf = (it: Sandbox): string => it.displayName || it.kernelName;
  return {
    restart: it =>
      void ask(
        'Restart the kernel?',
        `The variables of ${nameOf(it)} are lost.`,
        'Restart',
        // A page that shows the kernel takes part, so that its cells are not left waiting.
        () =>
          sessionWith(trackers, it.kernelId)?.restartKernel() ??
          KernelAPI.restartKernel(it.kernelId, app.serviceManager.serverSettings)
      ),
    stop: it =>
      void ask(
        'Stop the sandbox?',
        `The variables of ${nameOf(it)} are lost, and the changes in /workspace that were not applied.`,
        'Stop',
        () => client.stop(it.kernelId)
      ),
    kill: it =>
      void ask(
        'Kill the sandbox?',
        `It ends at once. The variables of ${nameOf(it)} are lost, and the changes in /workspace that were not applied.`,
        'Kill',
        () => client.kill(it.kernelId)
      ),
    log: it => {
      const id = `gvisor-kernel-log-${it.kernelId}`;
      open(app, id, () => new LinesWidget(id, `Log: ${nameOf(it)}`, () => client.log(it.kernelId)));
    },
    transcript: it => {
      const id = `gvisor-kernel-transcript-${it.kernelId}`;
      open(
        app,
        id,
        () => new LinesWidget(id, `Transcript: ${nameOf(it)}`, () => client.transcript(it.kernelId))
      );
    },
    offersChanges: () => changesOffered,
    changes: it => {
      open(
        app,
        `gvisor-kernel-changes-${it.kernelId}`,
        () => new ChangesWidget(client, it.kernelId, nameOf(it))
      );
    }
  };
}

const sandboxes: JupyterFrontEndPlugin<void> = {
  id: 'gvisor-kernel:sandboxes',
  description: 'Shows the sandboxes of kernels: status bar, sidebar, changes, doctor.',
  autoStart: true,
  optional: [
    IStatusBar,
    INotebookTracker,
    IConsoleTracker,
    ICommandPalette,
    ILabShell,
    ITranslator
  ],
  activate: (
    app: JupyterFrontEnd,
    bar: IStatusBar | null,
    notebooks: INotebookTracker | null,
    consoles: IConsoleTracker | null,
    palette: ICommandPalette | null,
    labShell: ILabShell | null,
    translator: ITranslator | null
  ) => {
    const client = connect(app);
    const history = new History();
    const trackers = { notebooks, consoles };
    const actions = makeActions(app, client, trackers, () => {
      sidebar.refresh();
    });
    const sidebar = new SidebarWidget(new Sidebar(client, history, actions), client, history);
    app.shell.add(sidebar, 'left', { rank: 850, type: 'Sandboxes' });

    const current = new CurrentSandbox(app, trackers, client, history, actions);
    const item = new Widget();
    item.id = 'gvisor-kernel-status';
    item.addClass('gk-status-item');
    item.node.append(current.view.node);
    if (bar !== null) {
      bar.registerStatusItem('gvisor-kernel:status', { item, align: 'left', rank: 2 });
    } else {
      app.shell.add(item, 'menu', { rank: 900 }); // Notebook 7 has no status bar
    }

    const { commands } = app;
    commands.addCommand(Commands.sidebar, {
      label: 'Show Sandboxes',
      icon: shieldIcon,
      execute: () => {
        app.shell.activateById(sidebar.id);
      }
    });
    commands.addCommand(Commands.doctor, {
      label: 'Run Doctor',
      execute: () => {
        app.shell.activateById(sidebar.id);
        sidebar.runDoctor();
      }
    });
    commands.addCommand(Commands.card, {
      label: 'Show the Sandbox of This Kernel',
      isEnabled: () => current.current !== null,
      execute: () => {
        current.toggleCard();
      }
    });
    commands.addCommand(Commands.changes, {
      label: 'Show the Changes of This Kernel',
      isEnabled: () => current.current !== null && actions.offersChanges(),
      execute: () => {
        if (current.current !== null) {
          actions.changes(current.current);
        }
      }
    });
    for (const command of Object.values(Commands)) {
      palette?.addItem({ command, category: CATEGORY });
    }

    const { kernelspecs } = app.serviceManager;
    offerDoctor(
      translator,
      () => {
        const session = sessionOf(trackers, app.shell.currentWidget);
        return session !== null && isOurs(kernelspecs.specs, kernelNameOf(session));
      },
      () => void commands.execute(Commands.doctor)
    );
    if (labShell !== null) {
      const look = describeCards(labShell, () => kernelspecs.specs);
      kernelspecs.specsChanged.connect(look);
      void app.restored.then(look);
    }
  }
};

const warm: JupyterFrontEndPlugin<void> = {
  id: 'gvisor-kernel:warm',
  description: 'Makes sandboxes ready for the folder that the person is in.',
  autoStart: true,
  optional: [IDefaultFileBrowser],
  activate: (app: JupyterFrontEnd, browser: IDefaultFileBrowser | null) => {
    const client = connect(app);
    const warmer = new Warmer((name, path) => client.warm(name, path), pageTimer);
    const { kernelspecs, contents } = app.serviceManager;
    const want = (): void => {
      const name = kernelToWarm(kernelspecs.specs);
      const path = browser?.model.path ?? '';
      // Folders of other drives are not on the server's disk.
      if (name !== null && contents.driveName(path) === '') {
        warmer.want(name, path);
      }
    };
    browser?.model.pathChanged.connect(want);
    app.commands.commandExecuted.connect((_, { id }) => {
      if (id === 'launcher:create') {
        want();
      }
    });
    void Promise.all([app.restored, kernelspecs.ready]).then(want);
  }
};

export default [sandboxes, warm];
