/** Holds the session of an untrusted notebook until the person has chosen a kernel (see care.ts). */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import {
  Dialog,
  type ISessionContext,
  type ISessionContextDialogs,
  SessionContext
} from '@jupyterlab/apputils';
import type { INotebookModel, NotebookPanel } from '@jupyterlab/notebook';
import { DisposableDelegate } from '@lumino/disposable';
import type { Widget } from '@lumino/widgets';

import { type Choices, isTrusted, isUnknown, kernelToOffer, whyOffered } from './care.js';
import { element } from './dom.js';

type Context = NotebookPanel['context'];

/** Asks the server whether a notebook is trusted. */
export type Trusts = (path: string) => Promise<boolean>;

/** Every notebook that is opened from now on, in JupyterLab and Notebook 7. */
export function guardNotebooks(
  app: JupyterFrontEnd,
  dialogs: ISessionContextDialogs,
  choices: Choices,
  trusts: Trusts
): void {
  app.docRegistry.addWidgetExtension('Notebook', {
    createNew: (widget, context) => {
      const guard = new Guard(app, dialogs, choices, trusts, widget, context as unknown as Context);
      return new DisposableDelegate(() => guard.end());
    }
  });
}

class Guard {
  private readonly session: ISessionContext;
  /** The kernel that is offered, while the person has not chosen. */
  private offered: string | null = null;
  private shouldStart: boolean | undefined;

  constructor(
    private readonly app: JupyterFrontEnd,
    private readonly dialogs: ISessionContextDialogs,
    private readonly choices: Choices,
    private readonly trusts: Trusts,
    private readonly panel: Widget,
    private readonly context: Context
  ) {
    this.session = context.sessionContext;
    // Emitted first when the notebook has been read, before the session begins.
    context.fileChanged.connect(this.read);
    context.saveState.connect(this.saved);
    context.pathChanged.connect(this.moved);
  }

  end(): void {
    this.context.fileChanged.disconnect(this.read);
    this.context.saveState.disconnect(this.saved);
    this.context.pathChanged.disconnect(this.moved);
    this.forget();
  }

  private readonly read = (): void => {
    this.context.fileChanged.disconnect(this.read);
    if (this.context.isReady) {
      return; // a second view of a notebook that is open
    }
    const model: INotebookModel = this.context.model;
    const asks = isUnknown(model.cells);
    if ((isTrusted(model.cells) && !asks) || this.choices.has(this.context.path, this.version())) {
      return;
    }
    const { kernelPreference } = this.session;
    const name = model.defaultKernelName || kernelPreference.name;
    const preference = {
      ...kernelPreference,
      language: model.defaultKernelLanguage,
      ...(name ? { name } : {})
    };
    const { specs } = this.app.serviceManager.kernelspecs;
    const next = SessionContext.getDefaultKernel({ specs, preference });
    const offered = kernelToOffer(specs, preference, next);
    if (offered !== null) {
      this.shouldStart = kernelPreference.shouldStart;
      this.offered = offered;
      this.session.kernelPreferenceChanged.connect(this.hold);
      this.session.kernelChanged.connect(this.decided);
      this.hold();
      void this.offer(whyOffered(specs, next, offered), asks, next);
    }
  };

  /** The server says that the notebook is trusted: what Jupyter would have started is started. */
  private async release(next: string | null): Promise<void> {
    const shouldStart = this.shouldStart ?? true;
    this.forget();
    this.session.kernelPreference = {
      ...this.session.kernelPreference,
      ...(next === null ? {} : { name: next }),
      shouldStart
    };
    if (next === null) {
      await this.dialogs.selectKernel(this.session);
    } else {
      await this.session.changeKernel({ name: next });
    }
  }

  /** JupyterLab sets the name again that the notebook has, and settings set others. */
  private readonly hold = (): void => {
    const { kernelPreference } = this.session;
    if (
      this.offered !== null &&
      (kernelPreference.name !== this.offered || kernelPreference.shouldStart !== false)
    ) {
      this.session.kernelPreference = {
        ...kernelPreference,
        name: this.offered,
        shouldStart: false
      };
    }
  };

  private async offer(why: string, asks: boolean, next: string | null): Promise<void> {
    await this.session.ready;
    const path = this.app.serviceManager.contents.localPath(this.context.path);
    if (asks && (await this.trusts(path)) && this.offered !== null && !this.session.isDisposed) {
      await this.release(next);
      return;
    }
    await this.shown();
    if (this.offered === null || this.session.isDisposed) {
      return; // a kernel of this notebook runs already
    }
    const explain = (_: unknown, dialog: Dialog<unknown>): void => {
      const select = dialog.node.querySelector('.jp-Dialog-body select');
      if (select !== null) {
        Dialog.tracker.widgetAdded.disconnect(explain);
        const id = 'gvisor-kernel-why';
        const place = select.closest('.jp-select-wrapper') ?? select;
        place.before(element('p', { class: 'gk-why', attributes: { id } }, why));
        const label = dialog.node.querySelector('.jp-Dialog-body label')?.textContent ?? '';
        select.setAttribute('aria-label', label);
        select.setAttribute('aria-describedby', id);
      }
    };
    Dialog.tracker.widgetAdded.connect(explain);
    try {
      await this.dialogs.selectKernel(this.session);
    } finally {
      Dialog.tracker.widgetAdded.disconnect(explain);
    }
  }

  /** A notebook in a tab behind others asks when the person comes to it. */
  private async shown(): Promise<void> {
    const { shell } = this.app;
    await new Promise<void>(resolve => {
      const look = (): void => {
        if (shell.currentWidget === this.panel || this.panel.isVisible || this.panel.isDisposed) {
          shell.currentChanged?.disconnect(look);
          resolve();
        }
      };
      shell.currentChanged?.connect(look);
      look();
    });
  }

  /** There is a kernel: the person's choice, or one that ran already. */
  private readonly decided = (): void => {
    const name = this.session.session?.kernel?.name;
    if (this.offered !== null && name !== undefined) {
      this.forget();
      const shouldStart = this.shouldStart ?? true; // Jupyter's default
      this.session.kernelPreference = { ...this.session.kernelPreference, name, shouldStart };
      this.choices.add(this.context.path, this.version());
    }
  };

  private forget(): void {
    this.offered = null;
    this.session.kernelPreferenceChanged.disconnect(this.hold);
    this.session.kernelChanged.disconnect(this.decided);
  }

  private readonly saved = (_: unknown, state: string): void => {
    if (state === 'completed' && this.choices.knows(this.context.path)) {
      this.choices.add(this.context.path, this.version());
    }
  };

  private readonly moved = (): void => {
    if (this.offered === null) {
      this.saved(null, 'completed');
    }
  };

  private version(): string {
    const file = this.context.contentsModel;
    return file?.hash ?? file?.last_modified ?? '';
  }
}
