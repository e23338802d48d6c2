/** Asks before a sandbox ends with files that are not kept. */

import { Dialog, showDialog } from '@jupyterlab/apputils';
import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { IMainMenu } from '@jupyterlab/mainmenu';
import { Widget } from '@lumino/widgets';

import type { Unkept } from './contract.js';
import { element } from './dom.js';
import { countFiles, hasFiles, listFiles, sayGone } from './unkept.js';

export type Answer = 'end' | 'changes' | 'cancel';

export interface Question {
  readonly title: string;
  readonly text: string;
  readonly label: string;
  readonly unkept: Unkept | null;
}

/** Names the files that would be gone, and offers to look at them first. */
export async function askBeforeEnd(question: Question): Promise<Answer> {
  const { title, text, label } = question;
  const unkept = question.unkept && hasFiles(question.unkept) ? question.unkept : null;
  const body = new Widget({
    node: element(
      'div',
      { class: 'gk-ask' },
      element('p', text),
      unkept !== null &&
        element(
          'p',
          `${countFiles(unkept)} in /workspace will be gone. To keep what you need, choose Changes.`
        ),
      unkept !== null && listFiles(unkept)
    )
  });
  const changes = Dialog.createButton({ label: 'Changes', actions: ['changes'] });
  const answer = await showDialog({
    title,
    body,
    defaultButton: 1, // Enter does not throw files away
    buttons: [
      Dialog.cancelButton(),
      ...(unkept === null ? [] : [changes]),
      Dialog.warnButton({ label })
    ]
  });
  if (!answer.button.accept) {
    return 'cancel';
  }
  return answer.button.actions.includes('changes') ? 'changes' : 'end';
}

/** Says which files are gone; for pages that have no notifications, and behind those that have. */
export async function showLost(kernelName: string, unkept: Unkept): Promise<void> {
  await showDialog({
    title: sayGone(unkept),
    body: new Widget({
      node: element(
        'div',
        { class: 'gk-ask' },
        element(
          'p',
          `The sandbox of ${kernelName} has ended with what was not kept in /workspace:`
        ),
        listFiles(unkept),
        element('p', 'Next time, write to outputs, or apply the changes before it ends.')
      )
    }),
    buttons: [Dialog.okButton()]
  });
}

/** Jupyter's commands that end the kernel of the notebook that the person is in. */
const ENDS = [
  ['notebook:shutdown-kernel', 'gvisor-kernel:shutdown-kernel'],
  ['notebook:close-and-shutdown', 'gvisor-kernel:close-and-shutdown']
] as const;

/**
 * Puts a question before two entries of the main menu. Menus take the first command that is enabled
 * for the widget; ours are first for notebooks with our kernels, and then run JupyterLab's.
 */
export function askInMenus(
  app: JupyterFrontEnd,
  menu: IMainMenu,
  isOurs: (widget: Widget) => boolean,
  ask: (label: string) => Promise<boolean>
): void {
  const { commands } = app;
  const places = [menu.kernelMenu.kernelUsers.shutdownKernel, menu.fileMenu.closeAndCleaners];
  ENDS.forEach(([theirs, id], index) => {
    commands.addCommand(id, {
      label: () => (commands.hasCommand(theirs) ? commands.label(theirs) : ''),
      caption: () => (commands.hasCommand(theirs) ? commands.caption(theirs) : ''),
      isEnabled: () => commands.hasCommand(theirs) && commands.isEnabled(theirs),
      execute: async () => {
        if (await ask(commands.label(theirs))) {
          await commands.execute(theirs);
        }
      }
    });
    places[index]?.add({
      id,
      rank: 0,
      isEnabled: widget => commands.hasCommand(theirs) && isOurs(widget)
    });
  });
}
