/** The plugins: which part of JupyterLab or Notebook 7 shows which view. */

import {
  ILabShell,
  type JupyterFrontEnd,
  type JupyterFrontEndPlugin
} from '@jupyterlab/application';
import {
  Dialog,
  ICommandPalette,
  ISessionContextDialogs,
  Notification,
  SessionContextDialogs,
  showDialog,
  showErrorMessage
} from '@jupyterlab/apputils';
import { IConsoleTracker } from '@jupyterlab/console';
import { PathExt } from '@jupyterlab/coreutils';
import { IDefaultFileBrowser } from '@jupyterlab/filebrowser';
import { IMainMenu } from '@jupyterlab/mainmenu';
import { INotebookTracker } from '@jupyterlab/notebook';
import { KernelAPI } from '@jupyterlab/services';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';

import type { Act, Action } from './card.js';
import { Choices } from './care.js';
import { SandboxClient, messageOf } from './client.js';
import type { Kernelspec, Lost, Sandbox } from './contract.js';
import { CurrentSandbox, type Trackers, kernelNameOf, sessionOf, sessionWith } from './current.js';
import { askBeforeEnd, askInMenus, showLost } from './ending.js';
import { escapeHidden } from './dom.js';
import { offerDoctor } from './failed_start.js';
import { History } from './history.js';
import { describeCards } from './launcher.js';
import { LostFiles, describeLost } from './lost.js';
import { SHOW_OUTPUTS, makePreview, makeSend, outputs } from './outputs_plugin.js';
import { SavedNotices } from './saved_notice.js';
import { Sidebar } from './sidebar.js';
import { isOurs, kernelToWarm } from './specs.js';
import { STATES, addStates } from './states_menu.js';
import { nameOf, rememberTitles, titles } from './titles.js';
import { hasFiles } from './unkept.js';
import { guardNotebooks } from './untrusted.js';
import { wall } from './wall.js';
import { widgets } from './widget_view.js';
import { ChangesWidget, LinesWidget, SidebarWidget, open, shieldIcon } from './widgets.js';
import { Wishes, pageTimer } from './wishes.js';

const CATEGORY = 'Sandboxes';

const Commands = {
  card: 'gvisor-kernel:show-sandbox',
  changes: 'gvisor-kernel:show-changes',
  doctor: 'gvisor-kernel:doctor',
  hibernate: 'gvisor-kernel:hibernate',
  resume: 'gvisor-kernel:resume',
  sidebar: 'gvisor-kernel:show-sandboxes',
  transcript: 'gvisor-kernel:show-transcript'
} as const;

/** What is asked before a sandbox ends, or its kernel. */
const ENDINGS = {
  restart: { title: 'Restart the kernel?', label: 'Restart', first: '' },
  stop: { title: 'End the sandbox?', label: 'End Sandbox', first: '' },
  kill: {
    title: 'End the sandbox at once?',
    label: 'End at Once',
    first: 'Nothing is waited for. '
  }
} as const;

/**
 * ``done``: a sandbox may have ended. ``changed``: changes were applied or undone. ``saving``: ids of
 * kernels that are being saved.
 */
function makeAct(
  app: JupyterFrontEnd,
  client: SandboxClient,
  trackers: Trackers,
  lost: LostFiles,
  done: () => void,
  changed: () => void,
  saving: () => Set<string>
): Act {
  const end = async (
    it: Sandbox,
    how: keyof typeof ENDINGS,
    call: () => Promise<unknown>
  ): Promise<void> => {
    const { title, label, first } = ENDINGS[how];
    const text = `${first}The variables of ${nameOf(it)} are lost.`;
    const unkept = how === 'restart' ? null : await client.unkept(it.kernel_id).catch(() => null);
    const answer = await askBeforeEnd({ title, text, label, unkept });
    if (answer === 'changes') {
      actions.changes(it);
    } else if (answer === 'end') {
      if (unkept !== null) {
        lost.agree(it.kernel_id);
      }
      try {
        await call();
      } catch (error) {
        lost.disagree(it.kernel_id);
        await showErrorMessage(title, messageOf(error));
      }
      done();
    }
  };
  const showLines = (it: Sandbox, of: 'log' | 'transcript', title: string): void => {
    const id = `gvisor-kernel-${of}-${it.kernel_id}`;
    open(
      app,
      id,
      () => new LinesWidget(id, `${title}: ${nameOf(it)}`, () => client.lines(it.kernel_id, of))
    );
  };
  const showProject = async (it: Sandbox): Promise<void> => {
    const { folder = '', shown: isShown = false } = it.project ?? {};
    const what = isShown
      ? "their folder alone, without the project's"
      : "all of the project's files";
    try {
      await client.showProject(PathExt.dirname(titles.of(it.kernel_id)?.path ?? ''), !isShown);
      await showDialog({
        title: `${escapeHidden(folder)} will be ${isShown ? 'hidden' : 'shown'}`,
        body:
          `Notebooks of this folder see ${what} from the next start of their kernels. ` +
          'To begin here, choose Shut Down Kernel in the menu Kernel, then run a cell.',
        buttons: [Dialog.okButton()]
      });
    } catch (error) {
      await showErrorMessage('The choice was not kept', messageOf(error));
    }
  };
  const sleep = async (it: Sandbox, how: 'hibernate' | 'resume'): Promise<void> => {
    if (how === 'hibernate') {
      saving().add(it.kernel_id);
      done();
    }
    try {
      await client.end(it.kernel_id, how).finally(() => saving().delete(it.kernel_id));
    } catch (error) {
      const what = how === 'resume' ? 'does not go on' : 'does not hibernate';
      await showErrorMessage(`The kernel ${what}`, messageOf(error));
    }
    done();
  };
  const actions: Readonly<Record<Action, (it: Sandbox) => void>> = {
    hibernate: it => void sleep(it, 'hibernate'),
    resume: it => void sleep(it, 'resume'),
    restart: it =>
      void end(
        it,
        'restart',
        // A page that shows the kernel takes part, so that its cells are not left waiting.
        () =>
          sessionWith(trackers, it.kernel_id)?.restartKernel() ??
          KernelAPI.restartKernel(it.kernel_id, app.serviceManager.serverSettings)
      ),
    stop: it => void end(it, 'stop', () => client.end(it.kernel_id, 'stop')),
    kill: it => void end(it, 'kill', () => client.end(it.kernel_id, 'kill')),
    log: it => showLines(it, 'log', 'Log'),
    transcript: it => showLines(it, 'transcript', 'Transcript'),
    outputs: it =>
      void app.commands.execute(SHOW_OUTPUTS, {
        kernelId: it.kernel_id,
        name: nameOf(it),
        path: sessionWith(trackers, it.kernel_id)?.path ?? null
      }),
    changes: it => {
      const session = sessionWith(trackers, it.kernel_id);
      const name = nameOf(it);
      open(
        app,
        `gvisor-kernel-changes-${it.kernel_id}`,
        () =>
          new ChangesWidget(client, it.kernel_id, name, () => makePreview(app), changed, session)
      );
    },
    project: it => void showProject(it)
  };
  return (action, it) => actions[action](it);
}

/** Tells which files are gone: where there is no status bar, there are no notifications either. */
function makeTell(app: JupyterFrontEnd, notifies: boolean): (lost: Lost) => void {
  return lost => {
    const specs = app.serviceManager.kernelspecs.specs?.kernelspecs;
    const kernel = specs?.[lost.kernel_name]?.display_name ?? lost.kernel_name;
    const name = nameOf({ ...lost, display_name: kernel });
    const show = (): void => void showLost(name, lost);
    if (notifies) {
      Notification.emit(describeLost(lost, name), 'error', {
        autoClose: false,
        actions: [{ label: 'Show files', callback: show }]
      });
    } else {
      show();
    }
  };
}

/** Follows the server's events and its kernels, as long as the page is open. */
function follow(app: JupyterFrontEnd, lost: LostFiles): void {
  const { events, kernels, kernelspecs } = app.serviceManager;
  events.stream.connect((_, emission) => lost.event(emission));
  const look = (): void => void lost.follow(kernels.running());
  kernels.runningChanged.connect(look);
  void Promise.all([kernels.ready, kernelspecs.ready]).then(look);
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
    ITranslator,
    IMainMenu
  ],
  activate: (
    app: JupyterFrontEnd,
    bar: IStatusBar | null,
    notebooks: INotebookTracker | null,
    consoles: IConsoleTracker | null,
    palette: ICommandPalette | null,
    labShell: ILabShell | null,
    translator: ITranslator | null,
    menu: IMainMenu | null
  ) => {
    const client = new SandboxClient(makeSend(app));
    const history = new History();
    const trackers = { notebooks, consoles };
    const { contents, kernelspecs, sessions } = app.serviceManager;
    rememberTitles(sessions, path => contents.localPath(path));
    const lost = new LostFiles(
      client,
      name => isOurs(kernelspecs.specs, name),
      makeTell(app, bar !== null),
      pageTimer
    );
    follow(app, lost);
    const act = makeAct(
      app,
      client,
      trackers,
      lost,
      () => {
        sidebar.refresh();
        current.refresh();
      },
      () => current.lookAtUnkept(),
      () => current.view.saving
    );
    const sidebar = new SidebarWidget(new Sidebar(client, history, act), client, history);
    app.shell.add(sidebar, 'left', { rank: 850, type: 'Sandboxes' });

    const current = new CurrentSandbox(app, trackers, client, history, act, lost);
    const item = new Widget();
    item.id = 'gvisor-kernel-status';
    item.addClass('gk-status-item');
    item.node.append(current.view.node, current.unkept.node);
    if (bar !== null) {
      bar.registerStatusItem('gvisor-kernel:status', { item, align: 'left', rank: 2 });
    } else {
      app.shell.add(item, 'menu', { rank: 900 }); // Notebook 7 has no status bar
    }

    const { commands } = app;
    commands.addCommand(Commands.sidebar, {
      label: 'Show Sandboxes',
      icon: shieldIcon,
      execute: () => app.shell.activateById(sidebar.id)
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
      execute: () => current.toggleCard()
    });
    for (const it of ['changes', 'transcript'] as const) {
      const word = it === 'changes' ? 'Changes' : 'Transcript';
      commands.addCommand(Commands[it], {
        label: ({ isMenu }) =>
          isMenu === true ? `Sandbox ${word}` : `Show the ${word} of This Kernel`,
        isEnabled: () => (current.current?.[it === 'changes' ? 'id' : it] ? true : false),
        execute: () => current.use(sandbox => act(it, sandbox))
      });
    }
    for (const it of ['hibernate', 'resume'] as const) {
      const isMeant = (): boolean =>
        current.current !== null && (current.current.hibernated === null) === (it === 'hibernate');
      commands.addCommand(Commands[it], {
        label: it === 'hibernate' ? 'Hibernate Kernel' : 'Resume Kernel',
        isEnabled: isMeant,
        isVisible: () => it === 'hibernate' || isMeant(),
        execute: () => current.use(sandbox => act(it, sandbox))
      });
    }
    menu?.kernelMenu.addGroup([{ command: Commands.hibernate }, { command: Commands.resume }], 89);
    const made = addStates(app, client, current, { notebooks, menu, notifies: bar !== null });
    if (notebooks !== null) {
      const notices = new SavedNotices(
        notebooks,
        client,
        async session => {
          await kernelspecs.ready;
          return isOurs(kernelspecs.specs, kernelNameOf(session));
        },
        act,
        made
      );
      current.onLook = it => notices.update(it);
    }
    const entries = [Commands.changes, SHOW_OUTPUTS, Commands.transcript].map(command => ({
      command,
      args: { isMenu: true }
    }));
    menu?.kernelMenu.addGroup(entries, 90);
    menu?.viewMenu.addGroup(entries, 90);
    for (const command of [...Object.values(Commands), ...STATES]) {
      palette?.addItem({ command, category: CATEGORY });
    }

    const isOurNotebook = (widget: Widget | null): boolean => {
      const session = sessionOf(trackers, widget);
      return session !== null && isOurs(kernelspecs.specs, kernelNameOf(session));
    };
    offerDoctor(
      translator,
      () => isOurNotebook(app.shell.currentWidget),
      () => void commands.execute(Commands.doctor)
    );
    if (menu !== null) {
      askInMenus(app, menu, isOurNotebook, async label => {
        const kernel = sessionOf(trackers, app.shell.currentWidget)?.session?.kernel;
        const unkept = kernel ? await client.unkept(kernel.id).catch(() => null) : null;
        if (!kernel || unkept === null || !hasFiles(unkept)) {
          return true; // nothing to lose, or nothing known: as without this extension
        }
        const answer = await askBeforeEnd({
          title: `${label}?`,
          text: 'The sandbox of this notebook ends.',
          label: 'Shut Down',
          unkept
        });
        if (answer === 'changes') {
          await commands.execute(Commands.changes);
        } else if (answer === 'end') {
          lost.agree(kernel.id);
        }
        return answer === 'end';
      });
    }
    if (labShell !== null) {
      let facts: ReadonlyMap<string, Kernelspec> = new Map();
      const look = describeCards(labShell, {
        specs: () => kernelspecs.specs,
        kernelspecs: () => facts,
        hasUntrusted: async folder =>
          app.serviceManager.contents.driveName(folder) === '' &&
          (await client.trust(folder)).some(it => !it.trusted)
      });
      const ask = async (): Promise<void> => {
        try {
          facts = new Map((await client.kernelspecs()).map(it => [it.name, it]));
        } catch {
          // The cards say nothing of limits, then.
        }
        look();
      };
      kernelspecs.specsChanged.connect(() => void ask());
      void app.restored.then(ask);
    }
  }
};

const care: JupyterFrontEndPlugin<void> = {
  id: 'gvisor-kernel:care',
  description: 'Offers our kernel first for notebooks that the person has not trusted.',
  autoStart: true,
  optional: [ISessionContextDialogs, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    dialogs: ISessionContextDialogs | null,
    translator: ITranslator | null
  ) => {
    const { baseUrl } = app.serviceManager.serverSettings;
    const client = new SandboxClient(makeSend(app));
    guardNotebooks(
      app,
      dialogs ?? new SessionContextDialogs(translator === null ? {} : { translator }),
      new Choices(window.localStorage, `gvisor-kernel:chosen:${baseUrl}`),
      path => client.trusts(path).catch(() => false) // the server did not say so
    );
  }
};

const warm: JupyterFrontEndPlugin<void> = {
  id: 'gvisor-kernel:warm',
  description: 'Makes sandboxes ready for the folder that the person is in.',
  autoStart: true,
  optional: [IDefaultFileBrowser],
  activate: (app: JupyterFrontEnd, browser: IDefaultFileBrowser | null) => {
    const client = new SandboxClient(makeSend(app));
    const { kernelspecs, contents } = app.serviceManager;
    // Folders change quickly while somebody walks through them.
    const wishes = new Wishes(0.5, 10, pageTimer, () => {
      const name = kernelToWarm(kernelspecs.specs);
      const path = browser?.model.path ?? '';
      // Folders of other drives are not on the server's disk.
      if (name !== null && contents.driveName(path) === '') {
        // A favour that is refused costs a slower start, which is no reason to disturb anybody.
        client.warm(name, path).catch(() => undefined);
      }
    });
    const want = (): void => wishes.want();
    browser?.model.pathChanged.connect(want);
    app.commands.commandExecuted.connect((_, { id }) => {
      if (id === 'launcher:create') {
        want();
      }
    });
    void Promise.all([app.restored, kernelspecs.ready]).then(want);
  }
};

export default [wall, sandboxes, care, warm, outputs, widgets];
