/** The card of one sandbox: what it is, what it sees, how it started, and how it last died. */

import type { Sandbox } from './contract.js';
import { type Child, button, element, replace } from './dom.js';
import { describeMemory, describeStart, describeState, formatSeconds } from './format.js';

export interface Actions {
  restart(sandbox: Sandbox): void;
  stop(sandbox: Sandbox): void;
  kill(sandbox: Sandbox): void;
  log(sandbox: Sandbox): void;
  transcript(sandbox: Sandbox): void;
  changes(sandbox: Sandbox): void;
  /** Whether the server can show changes; it is asked when the page begins. */
  offersChanges(): boolean;
}

/** The actions of buttons. */
export type Action = Exclude<keyof Actions, 'offersChanges'>;

export class Card {
  readonly node = element('div', { class: 'gk-card' });
  private readonly facts = element('dl', { class: 'gk-facts' });
  private readonly heading = element('h2');
  private sandbox: Sandbox;
  private readonly changesButton: HTMLButtonElement;
  private readonly logButton: HTMLButtonElement;
  private readonly transcriptButton: HTMLButtonElement;

  constructor(
    sandbox: Sandbox,
    private readonly actions: Actions
  ) {
    this.sandbox = sandbox;
    const act = (label: string, action: Action): HTMLButtonElement =>
      button(label, () => {
        actions[action](this.sandbox);
      });
    this.changesButton = act('Changes', 'changes');
    this.logButton = act('Log', 'log');
    this.transcriptButton = act('Transcript', 'transcript');
    this.node.append(
      this.heading,
      this.facts,
      element(
        'div',
        { class: 'gk-buttons' },
        this.changesButton,
        this.logButton,
        this.transcriptButton,
        act('Restart', 'restart'),
        act('Stop', 'stop')
      )
    );
    this.update(sandbox, Date.now() / 1000);
  }

  /** ``now`` is the time of day in seconds, as the server's times are. */
  update(sandbox: Sandbox, now: number): void {
    this.sandbox = sandbox;
    this.changesButton.hidden = !this.actions.offersChanges();
    this.logButton.hidden = !sandbox.hasLog;
    this.transcriptButton.hidden = !sandbox.hasTranscript;
    replace(this.heading, sandbox.displayName || sandbox.kernelName);
    replace(this.facts, ...factsOf(sandbox, now));
  }
}

function factsOf(sandbox: Sandbox, now: number): Node[] {
  const rows: Node[] = [];
  const row = (name: string, ...value: readonly Child[]): void => {
    rows.push(element('dt', {}, name), element('dd', {}, ...value));
  };
  row('Sandbox', sandbox.identity ? `${sandbox.identity} (${sandbox.id})` : sandbox.id);
  row('State', describeState(sandbox));
  row('Memory', describeMemory(sandbox));
  if (sandbox.cpuSeconds !== null) {
    row('CPU', `${formatSeconds(sandbox.cpuSeconds)} used`);
  }
  if (sandbox.processes !== null) {
    row('Processes', `${sandbox.processes}`);
  }
  row('Image', sandbox.image || 'this computer’s Python');
  row('Folder', sandbox.folder);
  row('Mounts', sandbox.mounts.length > 0 ? mountsOf(sandbox) : 'none');
  row('Network', sandbox.egress.length > 0 ? routesOf(sandbox) : 'none');
  if (sandbox.created > 0) {
    row('Age', formatSeconds(Math.max(0, now - sandbox.created)));
  }
  if (sandbox.start !== null) {
    const { kind, seconds } = sandbox.start;
    row('Start', `${describeStart(kind)}, ${formatSeconds(seconds)}`);
  }
  if (sandbox.lastDeath !== null) {
    const { when, reason } = sandbox.lastDeath;
    row('Last death', `${formatSeconds(Math.max(0, now - when))} ago: ${reason}`);
  }
  row('Releases', `gvisor-kernel ${sandbox.release.gvisorKernel}, runsc ${sandbox.release.runsc}`);
  return rows;
}

function mountsOf(sandbox: Sandbox): HTMLElement {
  return element(
    'ul',
    {},
    ...sandbox.mounts.map(mount =>
      element(
        'li',
        {},
        element('code', {}, mount.target),
        mount.source ? ' is ' : '',
        mount.source ? element('code', {}, mount.source) : null,
        mount.readOnly ? ' (read-only)' : '',
        mount.description ? `: ${mount.description}` : ''
      )
    )
  );
}

function routesOf(sandbox: Sandbox): HTMLElement {
  return element(
    'ul',
    {},
    ...sandbox.egress.map(route =>
      element('li', {}, `${route.name} (${route.kind}): ${route.hosts.join(', ') || 'any host'}`)
    )
  );
}
