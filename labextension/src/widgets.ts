/** The extension's views as widgets of JupyterLab's shell. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { ISessionContext } from '@jupyterlab/apputils';
import type { DocumentRegistry } from '@jupyterlab/docregistry';
import { AccordionToolbar, LabIcon, PanelWithToolbar, SidePanel } from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import { Poll } from '@lumino/polling';
import { AccordionPanel, Widget } from '@lumino/widgets';

import { ChangesView, type PicturePreview } from './changes.js';
import { type SandboxClient, messageOf } from './client.js';
import { SHIELD_SVG, element, iconButton, icons, setText } from './dom.js';
import type { History } from './history.js';
import type { Sidebar } from './sidebar.js';
import { PAUSE_SECONDS, QUIET_SECONDS } from './unkept.js';
import { Wishes, pageTimer } from './wishes.js';

export const shieldIcon = new LabIcon({ name: 'gvisor-kernel:shield', svgstr: SHIELD_SVG });

icons.draw = name => LabIcon.resolve({ icon: `ui-components:${name}` }).element({ tag: 'span' });

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
    focusIn(this.node);
  }
}

function focusIn(node: HTMLElement): void {
  if (!node.contains(document.activeElement)) {
    node.focus();
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

/** A part of the sidebar, with a title that folds it. */
class Section extends PanelWithToolbar {
  constructor(title: string, node: HTMLElement) {
    super();
    this.title.label = title;
    this.addClass('gk-section');
    this.addWidget(new Widget({ node }));
  }
}

export class SidebarWidget extends SidePanel {
  private readonly poll: Poll;
  private readonly accordion: AccordionPanel;
  private readonly leftovers: Section;

  constructor(
    private readonly view: Sidebar,
    client: SandboxClient,
    history: History
  ) {
    const accordion = new AccordionPanel({ layout: AccordionToolbar.createLayout({}) });
    super({ content: accordion });
    this.accordion = accordion;
    this.id = 'gvisor-kernel-sandboxes';
    this.addClass('gk-panel');
    this.title.caption = 'Sandboxes';
    this.title.icon = shieldIcon;
    this.node.tabIndex = -1;
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'Sandboxes');
    const sandboxes = new Section('Sandboxes', view.sandboxes);
    const refresh = iconButton('refresh', 'Refresh', () => this.refresh());
    sandboxes.toolbar.addItem('refresh', new Widget({ node: refresh }));
    this.addWidget(sandboxes);
    this.leftovers = new Section('Leftovers', view.leftovers);
    this.addWidget(new Section('Doctor', view.doctor));
    accordion.setRelativeSizes([3, 1]);
    const look = async (): Promise<void> => {
      try {
        const answer = await client.sandboxes();
        const now = pageClock();
        for (const sandbox of answer.sandboxes) {
          history.add(sandbox, now);
        }
        history.keep(new Set(answer.sandboxes.map(sandbox => sandbox.kernel_id)));
        view.update(answer, now);
        this.showLeftovers(answer.leftovers.length > 0);
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
    this.accordion.expand(this.widgets.length - 1);
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

  protected override onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    focusIn(this.node);
  }

  private showLeftovers(are: boolean): void {
    if (are && this.leftovers.parent === null) {
      this.insertWidget(1, this.leftovers);
    } else if (!are) {
      this.leftovers.parent = null;
    }
  }
}

export class ChangesWidget extends Panel {
  private readonly view: ChangesView;
  private readonly cells: Wishes;

  constructor(
    private readonly client: SandboxClient,
    private readonly kernelId: string,
    name: string,
    makePreview: () => PicturePreview,
    changed: () => void,
    /** The session of the kernel's notebook, if this page has it. */
    private readonly session: ISessionContext | null
  ) {
    super(`gvisor-kernel-changes-${kernelId}`, `Changes: ${name}`);
    this.view = new ChangesView(client, kernelId, makePreview, changed);
    this.node.append(this.view.node);
    void this.view.refresh();
    this.cells = new Wishes(QUIET_SECONDS, PAUSE_SECONDS, pageTimer, () => void this.follow());
    session?.statusChanged.connect(this.onStatus);
  }

  override dispose(): void {
    this.session?.statusChanged.disconnect(this.onStatus);
    this.cells.forget();
    this.view.dispose();
    super.dispose();
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    void this.view.follow(true);
  }

  private readonly onStatus = (_: unknown, status: string): void => {
    if (status === 'idle') {
      this.cells.want();
    }
  };

  /** Hidden, it looks when it is shown again. */
  private async follow(): Promise<void> {
    // Nobody has asked for it, so a kernel that hibernates is not woken.
    const sandbox = await this.client.kernel(this.kernelId).catch(() => null);
    if (this.isVisible && sandbox?.hibernated === null) {
      await this.view.follow();
    }
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
        { class: 'gk-toolbar jp-Toolbar' },
        iconButton('refresh', 'Refresh', () => void this.refresh())
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
