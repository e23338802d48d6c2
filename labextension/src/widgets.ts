/** The extension's views as widgets of JupyterLab's shell. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { DocumentRegistry } from '@jupyterlab/docregistry';
import { LabIcon } from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import { Poll } from '@lumino/polling';
import { Widget } from '@lumino/widgets';

import { ChangesView, type PicturePreview } from './changes.js';
import { type SandboxClient, messageOf } from './client.js';
import { SHIELD_SVG, button, element, setText } from './dom.js';
import type { History } from './history.js';
import type { Sidebar } from './sidebar.js';

export const shieldIcon = new LabIcon({ name: 'gvisor-kernel:shield', svgstr: SHIELD_SVG });

export const POLL_MILLISECONDS = 2000;
const LONGEST_BACK_OFF = 60_000;

/** The same rhythm for all: two seconds, longer after errors, and nothing in a hidden page. */
export function makePoll(name: string, look: () => Promise<void>, idle: () => boolean): Poll {
  return new Poll({
    name,
    factory: look,
    frequency: { interval: POLL_MILLISECONDS, backoff: true, max: LONGEST_BACK_OFF },
    standby: () => (idle() ? true : 'when-hidden')
  });
}

/** The clock of plots, in seconds. */
export function pageClock(): number {
  return performance.now() / 1000;
}

/** A widget that has the focus when it comes to the front, so that keys work in it at once. */
export class Panel extends Widget {
  constructor(id: string, label = '') {
    super();
    this.id = id;
    this.title.label = label;
    this.title.closable = true;
    this.addClass('gk-panel');
    this.node.tabIndex = -1;
    this.title.icon = shieldIcon;
  }

  protected override onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    if (!this.node.contains(document.activeElement)) {
      this.node.focus();
    }
  }
}

/** Shows a widget in the main area; one that is open already comes to the front. */
export function open(
  app: JupyterFrontEnd,
  id: string,
  make: () => Widget,
  options: DocumentRegistry.IOpenOptions = {}
): void {
  const { shell } = app;
  const has = (area: string): boolean => [...shell.widgets(area)].some(it => it.id === id);
  if (!has('main') && !has('right')) {
    const widget = make();
    shell.add(widget, 'main', options);
    if (!has('main')) {
      shell.add(widget, 'right'); // in Notebook 7 the notebook is alone in the main area
    }
  }
  shell.activateById(id);
}

export class SidebarWidget extends Panel {
  private readonly poll: Poll;

  constructor(
    private readonly view: Sidebar,
    client: SandboxClient,
    history: History
  ) {
    super('gvisor-kernel-sandboxes');
    this.title.caption = 'Sandboxes';
    this.title.closable = false;
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'Sandboxes');
    this.node.append(view.node);
    const look = async (): Promise<void> => {
      try {
        const answer = await client.sandboxes();
        const now = pageClock();
        for (const sandbox of answer.sandboxes) {
          history.add(sandbox, now);
        }
        history.keep(new Set(answer.sandboxes.map(sandbox => sandbox.kernel_id)));
        view.update(answer, now);
      } catch (error) {
        view.showProblem(messageOf(error));
        throw error; // the poll backs off
      }
    };
    this.poll = makePoll('gvisor-kernel:sandboxes', look, () => !this.isVisible);
  }

  refresh(): void {
    void this.poll.refresh();
  }

  runDoctor(): void {
    void this.view.runDoctor();
  }

  override dispose(): void {
    this.poll.dispose();
    super.dispose();
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this.refresh();
  }
}

export class ChangesWidget extends Panel {
  private readonly view: ChangesView;

  constructor(
    client: SandboxClient,
    kernelId: string,
    name: string,
    makePreview: () => PicturePreview,
    changed: () => void
  ) {
    super(`gvisor-kernel-changes-${kernelId}`, `Changes: ${name}`);
    this.view = new ChangesView(client, kernelId, makePreview, changed);
    this.node.append(this.view.node);
    void this.view.refresh();
  }

  override dispose(): void {
    this.view.dispose();
    super.dispose();
  }
}

/** A log or a transcript: lines to read, with a button that reads them again. */
export class LinesWidget extends Panel {
  private readonly text = element('pre', {
    class: 'gk-lines',
    attributes: { tabindex: '0', role: 'region', 'aria-label': 'Lines' }
  });

  constructor(
    id: string,
    title: string,
    private readonly read: () => Promise<readonly string[]>
  ) {
    super(id, title);
    this.node.append(
      element(
        'div',
        { class: 'gk-buttons' },
        button('Look again', () => void this.refresh())
      ),
      this.text
    );
    void this.refresh();
  }

  private async refresh(): Promise<void> {
    try {
      const lines = await this.read();
      setText(this.text, lines.length > 0 ? lines.join('\n') : 'There are no lines.');
      this.text.scrollTop = this.text.scrollHeight;
    } catch (error) {
      setText(this.text, messageOf(error));
    }
  }
}
