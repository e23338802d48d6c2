/** A notice at the top of a notebook that is opened while its kernel hibernates. */

import type { ISessionContext } from '@jupyterlab/apputils';
import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { Widget } from '@lumino/widgets';

import type { Act } from './card.js';
import type { SandboxClient } from './client.js';
import type { Sandbox } from './contract.js';
import { makeNotice } from './states.js';

interface Notice {
  readonly kernelId: string;
  readonly widget: Widget;
}

export class SavedNotices {
  private readonly notices = new Map<NotebookPanel, Notice>();

  /** ``made``: ids of kernels that have no notice: branches that the person has just made. */
  constructor(
    notebooks: INotebookTracker,
    private readonly client: Pick<SandboxClient, 'kernel'>,
    private readonly isOurs: (session: ISessionContext) => Promise<boolean>,
    private readonly act: Act,
    private readonly made: ReadonlySet<string>
  ) {
    notebooks.widgetAdded.connect((_, panel) => this.follow(panel));
    notebooks.forEach(panel => this.follow(panel));
  }

  /** A sandbox was looked at: a notice goes when its kernel has woken. */
  update(sandbox: Sandbox): void {
    for (const [panel, { kernelId }] of this.notices) {
      if (kernelId === sandbox.kernel_id && sandbox.hibernated === null) {
        this.remove(panel);
      }
    }
  }

  private follow(panel: NotebookPanel): void {
    const session = panel.sessionContext;
    session.kernelChanged.connect(() => void this.look(panel));
    session.statusChanged.connect(() => {
      if (this.notices.has(panel)) {
        void this.look(panel);
      }
    });
    panel.disposed.connect(() => this.remove(panel));
    void this.look(panel);
  }

  private async look(panel: NotebookPanel): Promise<void> {
    const session = panel.sessionContext;
    const id = session.session?.kernel?.id;
    if (this.notices.has(panel) && this.notices.get(panel)?.kernelId !== id) {
      this.remove(panel);
    }
    if (id === undefined || this.made.has(id) || !(await this.isOurs(session))) {
      return;
    }
    let sandbox: Sandbox | null;
    try {
      sandbox = await this.client.kernel(id);
    } catch {
      return; // the item in the status bar says that the server does not answer
    }
    if (sandbox === null || panel.isDisposed || session.session?.kernel?.id !== id) {
      return;
    }
    if (sandbox.hibernated === null) {
      this.update(sandbox);
    } else if (!this.notices.has(panel)) {
      this.show(panel, sandbox, sandbox.hibernated);
    }
  }

  private show(
    panel: NotebookPanel,
    sandbox: Sandbox,
    hibernated: NonNullable<Sandbox['hibernated']>
  ): void {
    const node = makeNotice(
      hibernated,
      () => this.act('resume', sandbox),
      () => this.act('restart', sandbox)
    );
    const widget = new Widget({ node });
    this.notices.set(panel, { kernelId: sandbox.kernel_id, widget });
    panel.contentHeader.addWidget(widget);
  }

  private remove(panel: NotebookPanel): void {
    const widget = this.notices.get(panel)?.widget;
    this.notices.delete(panel);
    if (widget === undefined) {
      return;
    }
    const hadFocus = widget.node.contains(document.activeElement);
    widget.dispose();
    if (hadFocus && !panel.isDisposed) {
      panel.content.activate(); // a keyboard goes on in the notebook
    }
  }
}
