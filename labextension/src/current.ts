/** The item in the status bar, for the notebook or console that the person is in. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { ISessionContext } from '@jupyterlab/apputils';
import type { IConsoleTracker } from '@jupyterlab/console';
import type { INotebookTracker } from '@jupyterlab/notebook';
import type { Poll } from '@lumino/polling';
import type { Widget } from '@lumino/widgets';

import { type Act, Card } from './card.js';
import { type SandboxClient, messageOf } from './client.js';
import type { Sandbox } from './contract.js';
import type { History } from './history.js';
import type { LostFiles } from './lost.js';
import { isOurs } from './specs.js';
import { Popup, StatusView } from './status.js';
import { UnkeptLook, UnkeptView } from './unkept.js';
import { pageTimer } from './wishes.js';
import { makePoll, pageClock } from './widgets.js';

export interface Trackers {
  readonly notebooks: INotebookTracker | null;
  readonly consoles: IConsoleTracker | null;
}

/** Returns the session of a notebook or console; null for any other widget. */
export function sessionOf(trackers: Trackers, widget: Widget | null): ISessionContext | null {
  if (widget === null) {
    return null;
  }
  const find = (tracker: INotebookTracker | IConsoleTracker | null): ISessionContext | null =>
    tracker?.has(widget) === true
      ? (widget as Widget & { sessionContext: ISessionContext }).sessionContext
      : null;
  return find(trackers.notebooks) ?? find(trackers.consoles);
}

/** Returns the session of an open notebook or console with this kernel. */
export function sessionWith(trackers: Trackers, kernelId: string): ISessionContext | null {
  const found =
    trackers.notebooks?.find(it => it.sessionContext.session?.kernel?.id === kernelId) ??
    trackers.consoles?.find(it => it.sessionContext.session?.kernel?.id === kernelId);
  return found?.sessionContext ?? null;
}

/** The name of the kernelspec that a session has, or will have when it has started. */
export function kernelNameOf(session: ISessionContext): string | undefined {
  return session.session?.kernel?.name ?? session.kernelPreference.name;
}

/** What Jupyter says of a session whose kernel is being started. */
const STARTING: readonly string[] = ['initializing', 'starting'];
const QUICK_MILLISECONDS = 250;
/** A start that takes longer than half a minute is looked at in the usual rhythm. */
const MOST_QUICK_LOOKS = 120;

export class CurrentSandbox {
  readonly view = new StatusView();
  /** Called with each answer about the sandbox of the notebook that the person is in. */
  onLook: (sandbox: Sandbox) => void = () => undefined;
  readonly unkept: UnkeptView;
  private readonly unkeptLook: UnkeptLook;
  private session: ISessionContext | null = null;
  private sandbox: Sandbox | null = null;
  private readonly popup: Popup;
  private card: Card | null = null;
  private quickLooks = 0;
  private readonly poll: Poll;
  private busy = false;
  private dead = false;

  private readonly changed = (): void => {
    const kernel = this.session?.session?.kernel;
    const id = kernel?.id;
    const ours = this.isOurs();
    this.unkeptLook.follow(ours ? (id ?? null) : null);
    const dead = kernel?.status === 'dead' || kernel?.status === 'autorestarting';
    if (dead && !this.dead) {
      if (this.sandbox !== null && this.unkeptLook.last !== null) {
        this.lost.died(this.sandbox, this.unkeptLook.last);
      }
      this.unkeptLook.forget();
    }
    if (this.busy && kernel?.status === 'idle') {
      this.unkeptLook.want(); // a cell has ended, or the kernel has started again
    }
    if (ours && kernel?.status === 'unknown' && kernel.connectionStatus === 'connected') {
      // The server's nudge takes "starting", and JupyterLab believes no status of its own requests.
      void kernel.requestIsComplete({ code: '' }).catch(() => null);
    }
    this.busy = kernel?.status !== 'idle';
    this.dead = dead;
    if (!ours || (this.sandbox !== null && this.sandbox.kernel_id !== id)) {
      this.forget();
    }
    if (ours) {
      void this.poll.refresh();
    }
  };

  constructor(
    private readonly app: JupyterFrontEnd,
    private readonly trackers: Trackers,
    private readonly client: SandboxClient,
    private readonly history: History,
    act: Act,
    private readonly lost: Pick<LostFiles, 'died'>
  ) {
    this.popup = new Popup('Sandbox', this.view.node, () => {
      this.card =
        this.sandbox &&
        new Card(
          this.sandbox,
          (action, sandbox) => {
            this.popup.close();
            act(action, sandbox);
          },
          this.unkeptLook.last
        );
      return this.card?.node ?? null;
    });
    this.unkept = new UnkeptView(() => {
      if (this.sandbox !== null) {
        act('changes', this.sandbox);
      }
    }, pageTimer);
    this.unkeptLook = new UnkeptLook(
      id => client.unkept(id),
      (it, kernelId) => this.unkept.update(it, kernelId),
      pageTimer,
      () => !document.hidden
    );
    document.addEventListener('visibilitychange', () => this.unkeptLook.seen());
    this.poll = makePoll(
      'gvisor-kernel:current',
      () => this.look(),
      () => !this.isOurs()
    );
    app.shell.currentChanged?.connect(this.follow);
    // A widget that was just made is known to its tracker only after it is the current one.
    trackers.notebooks?.currentChanged.connect(this.follow);
    trackers.consoles?.currentChanged.connect(this.follow);
    app.serviceManager.kernelspecs.specsChanged.connect(this.changed);
    this.follow();
  }

  get current(): Sandbox | null {
    return this.sandbox;
  }

  /** Calls ``does`` with that one, if there is one. */
  use(does: (it: Sandbox) => unknown): unknown {
    return this.current === null ? null : does(this.current);
  }

  /** Changes were applied or undone: what is not kept is asked again. */
  lookAtUnkept(): void {
    this.unkeptLook.want();
  }

  /** Looks again now: something was done. */
  refresh(): void {
    void this.poll.refresh();
    this.unkeptLook.want();
  }

  /** Opens the card, or closes it: it belongs to the item in the status bar. */
  toggleCard(): void {
    this.popup.toggle();
  }

  private readonly follow = (): void => {
    const session = sessionOf(this.trackers, this.app.shell.currentWidget);
    if (session !== this.session) {
      for (const name of ['kernelChanged', 'statusChanged', 'connectionStatusChanged'] as const) {
        this.session?.[name].disconnect(this.changed);
        session?.[name].connect(this.changed);
      }
      this.session = session;
      this.quickLooks = 0;
      this.changed();
    }
  };

  private isOurs(): boolean {
    const { session } = this;
    return (
      session !== null &&
      !session.isDisposed &&
      isOurs(this.app.serviceManager.kernelspecs.specs, kernelNameOf(session))
    );
  }

  private forget(): void {
    this.sandbox = null;
    this.popup.close();
    this.view.hide();
  }

  private async look(): Promise<void> {
    const { session } = this;
    if (session === null) {
      return;
    }
    const id = session.session?.kernel?.id;
    let sandbox: Sandbox | null;
    try {
      sandbox = id === undefined ? await this.findStarting(session) : await this.client.kernel(id);
    } catch (error) {
      this.view.showUnreachable(messageOf(error));
      throw error; // the poll backs off
    }
    if (session !== this.session || session.session?.kernel?.id !== id) {
      return; // the answer is about a notebook that the person has left
    }
    if (id === undefined && STARTING.includes(session.kernelDisplayStatus)) {
      this.lookSoon();
    }
    if (sandbox !== null) {
      this.show(sandbox, id !== undefined);
    } else if (id === undefined && STARTING.includes(session.kernelDisplayStatus)) {
      this.view.showStarting();
    } else {
      this.forget();
      // Perhaps the server has not our half: then nothing will come, and its log stays quiet.
      throw new Error('The server knows no sandbox of this kernel.');
    }
  }

  /** A start takes a second or so: two seconds later there would be nothing left to say of it. */
  private lookSoon(): void {
    if (this.quickLooks < MOST_QUICK_LOOKS) {
      this.quickLooks += 1;
      window.setTimeout(() => {
        if (this.isOurs() && this.session?.session?.kernel?.id === undefined) {
          void this.poll.refresh();
        }
      }, QUICK_MILLISECONDS);
    }
  }

  /** While Jupyter starts a kernel, the page does not know its id yet, and the server does. */
  private async findStarting(session: ISessionContext): Promise<Sandbox | null> {
    const name = kernelNameOf(session);
    const { sandboxes } = await this.client.sandboxes();
    return sandboxes.find(it => it.state === 'starting' && it.kernel_name === name) ?? null;
  }

  private show(sandbox: Sandbox, known: boolean): void {
    this.view.update(sandbox);
    if (known) {
      this.sandbox = sandbox;
      this.onLook(sandbox);
      if (sandbox.state === 'ended') {
        this.unkeptLook.forget();
      }
      this.history.add(sandbox, pageClock());
      this.card?.update(sandbox, Date.now() / 1000, this.unkeptLook.last);
    }
  }
}
