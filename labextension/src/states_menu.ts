/** Branches and checkpoints of the kernel that the person is with, in the menus. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import {
  Dialog,
  InputDialog,
  Notification,
  showDialog,
  showErrorMessage
} from '@jupyterlab/apputils';
import type { ICodeCellModel } from '@jupyterlab/cells';
import type { IMainMenu } from '@jupyterlab/mainmenu';
import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { Widget } from '@lumino/widgets';

import { copyBeside } from './notebook_copy.js';
import { type SandboxClient, messageOf } from './client.js';
import type { Checkpoint, Checkpoints, Sandbox } from './contract.js';
import { type CurrentSandbox, sessionWith } from './current.js';
import { StateChoice, hasDifferences, listDifferences, stateBefore } from './states.js';
import { nameOf } from './titles.js';

const Commands = {
  branch: 'gvisor-kernel:branch',
  save: 'gvisor-kernel:save-checkpoint',
  rewind: 'gvisor-kernel:rewind'
} as const;
const CellCommands = {
  rewind: 'gvisor-kernel:rewind-before-cell',
  branch: 'gvisor-kernel:branch-before-cell'
} as const;
/** Those of the palette. */
export const STATES: readonly string[] = Object.values(Commands);

interface Places {
  readonly notebooks: INotebookTracker | null;
  readonly menu: IMainMenu | null;
  /** Whether the page shows notifications. */
  readonly notifies: boolean;
}

/** Adds the entries. Returns the ids of kernels that are branches made here. */
export function addStates(
  app: JupyterFrontEnd,
  client: SandboxClient,
  current: CurrentSandbox,
  { notebooks, menu, notifies }: Places
): ReadonlySet<string> {
  const { commands, contextMenu, serviceManager } = app;
  const made = new Set<string>();
  /** The states of one kernel, as they were listed last. */
  let known: { readonly kernelId: string; readonly found: Checkpoints } | null = null;

  const list = async (kernelId: string): Promise<Checkpoints> => {
    const found = await client.checkpoints(kernelId);
    known = { kernelId, found };
    return found;
  };
  /** Does something that takes a while, and says so; null if it failed, which is said, too. */
  const attempt = async <T>(
    text: string,
    failure: string,
    work: () => Promise<T>
  ): Promise<T | null> => {
    const id = notifies ? Notification.emit(text, 'in-progress', { autoClose: false }) : null;
    const dismiss = (): void => {
      if (id !== null) {
        Notification.dismiss(id);
      }
    };
    try {
      return await work();
    } catch (error) {
      dismiss(); // not only when the dialog is closed
      await showErrorMessage(failure, messageOf(error));
      return null;
    } finally {
      dismiss();
    }
  };
  const say = async (text: string): Promise<void> => {
    if (notifies) {
      Notification.emit(text, 'success', { autoClose: 5000 });
    } else {
      await showDialog({ title: text, buttons: [Dialog.okButton()] });
    }
  };

  const currentPanel = (): NotebookPanel | null => {
    const panel = notebooks?.currentWidget ?? null;
    const id = panel?.sessionContext.session?.kernel?.id;
    const isIt = panel === app.shell.currentWidget && id === current.current?.kernel_id;
    return isIt && id !== undefined ? panel : null;
  };
  const stateOfCell = (): Checkpoint | null => {
    const panel = currentPanel();
    const model = panel?.content.activeCell?.model;
    if (model?.type !== 'code' || known?.kernelId !== panel?.sessionContext.session?.kernel?.id) {
      return null;
    }
    const number = (model as ICodeCellModel).executionCount;
    return number === null ? null : stateBefore(known?.found.checkpoints ?? [], number);
  };

  const branch = async (from: string | null): Promise<void> => {
    const panel = currentPanel();
    const id = panel?.sessionContext.session?.kernel?.id;
    if (panel === null || id === undefined) {
      return;
    }
    const opened = await attempt('Branching…', 'The kernel was not branched', async () => {
      const copy = await copyBeside(serviceManager.contents, panel.context);
      try {
        made.add(await client.branch(id, copy.local, from));
      } catch (error) {
        await copy.remove();
        throw error;
      }
      return copy.path;
    });
    if (opened !== null) {
      await commands.execute('docmanager:open', {
        path: opened,
        factory: 'Notebook',
        options: { mode: 'split-right', ref: panel.id }
      });
    }
  };

  const save = async (it: Sandbox): Promise<void> => {
    const answer = await InputDialog.getText({
      title: 'Save a checkpoint of the kernel',
      label: 'Name: letters, digits, “.”, “_” and “-” (empty: one that is free)',
      okLabel: 'Save'
    });
    if (!answer.button.accept) {
      return;
    }
    const name = await attempt('Saving…', 'The checkpoint was not saved', () =>
      client.saveCheckpoint(it.kernel_id, (answer.value ?? '').trim())
    );
    if (name !== null) {
      void list(it.kernel_id).catch(() => null);
      await say(`Checkpoint ${name} is saved`);
    }
  };

  const rewind = async (
    it: Sandbox,
    states: readonly Checkpoint[],
    applied: Checkpoints['applied']
  ): Promise<void> => {
    const choice = new StateChoice(states, applied);
    const body = new Widget({ node: choice.node });
    const answer = await showDialog({
      title: `Rewind the kernel of ${nameOf(it)}?`,
      body: Object.assign(body, { getValue: () => choice.getValue() }),
      buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: 'Rewind' })],
      focusNodeSelector: 'input:checked'
    });
    if (!answer.button.accept || answer.value === null || answer.value.name === '') {
      return;
    }
    const { name, undo } = answer.value;
    const state = states.find(one => one.name === name) ?? { name };
    const done = await attempt('Rewinding…', 'The kernel was not rewound', () =>
      client.rewind(it.kernel_id, state, undo)
    );
    if (done === null) {
      return;
    }
    current.refresh();
    // Widgets in the page show the state that was given up: connected anew, it asks for them.
    const session = sessionWith({ notebooks, consoles: null }, it.kernel_id)?.session;
    void session?.kernel?.reconnect().catch(() => null);
    void list(it.kernel_id).catch(() => null);
    if (hasDifferences(done)) {
      await showDialog({
        title: `The kernel went back to ${name}`,
        body: new Widget({ node: listDifferences(done) }),
        buttons: [Dialog.okButton()]
      });
    } else {
      await say(`The kernel went back to ${name}`);
    }
  };
  const chooseState = async (it: Sandbox): Promise<void> => {
    const title = 'Rewind the kernel';
    try {
      const { checkpoints, applied } = await list(it.kernel_id);
      if (checkpoints.length > 0) {
        await rewind(it, checkpoints, applied);
      } else {
        const body =
          'This kernel has no checkpoints. To make one, choose Save Checkpoint of Kernel… in the ' +
          'menu Kernel.';
        await showDialog({ title, body, buttons: [Dialog.okButton()] });
      }
    } catch (error) {
      await showErrorMessage(title, messageOf(error));
    }
  };

  const withCurrent = (label: string, does: (it: Sandbox) => Promise<void>) => ({
    label,
    isEnabled: () => current.current !== null,
    execute: () => current.use(does)
  });
  commands.addCommand(Commands.branch, {
    label: 'Branch Notebook…',
    caption: 'Opens a copy of the notebook whose kernel goes on from the same state',
    isEnabled: () => currentPanel() !== null,
    execute: () => branch(null)
  });
  commands.addCommand(Commands.save, withCurrent('Save Checkpoint of Kernel…', save));
  commands.addCommand(Commands.rewind, withCurrent('Rewind Kernel…', chooseState));
  menu?.kernelMenu.addGroup(
    STATES.map(command => ({ command })),
    89.5
  );

  commands.addCommand(CellCommands.rewind, {
    label: 'Rewind to before This Cell…',
    isVisible: () => stateOfCell() !== null,
    execute: () => {
      const state = stateOfCell();
      return state && current.use(it => rewind(it, [state], known?.found.applied ?? []));
    }
  });
  commands.addCommand(CellCommands.branch, {
    label: 'Branch from Here',
    caption: 'Opens a copy of the notebook whose kernel goes on from the state before this cell',
    isVisible: () => stateOfCell() !== null,
    execute: () => branch(stateOfCell()?.name ?? null)
  });
  const selector = '.jp-Notebook .jp-CodeCell';
  contextMenu.addItem({ type: 'separator', selector, rank: 8.4 });
  Object.values(CellCommands).forEach((command, index) => {
    contextMenu.addItem({ command, selector, rank: 8.5 + index / 10 });
  });
  // What is listed when the menu opens is shown in it as soon as it is known.
  document.addEventListener(
    'contextmenu',
    event => {
      const isCell =
        event.target instanceof Element && event.target.closest('.jp-CodeCell') !== null;
      const id = isCell ? currentPanel()?.sessionContext.session?.kernel?.id : undefined;
      if (id !== undefined) {
        void list(id).then(
          () => showAgain(contextMenu.menu),
          () => null
        );
      }
    },
    true
  );
  return made;
}

/** Draws an open menu again, whose entries are more than they were, within the window. */
function showAgain(menu: Widget): void {
  if (!menu.isAttached) {
    return;
  }
  menu.update();
  requestAnimationFrame(() => {
    menu.node.style.marginTop = '';
    const below = menu.node.getBoundingClientRect().bottom - window.innerHeight;
    menu.node.style.marginTop = below > 0 ? `${-below}px` : '';
  });
}
