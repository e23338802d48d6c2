/** The card of one sandbox: what it is, what it sees, how it started, and how it last died. */

import type { Mount, Sandbox } from './contract.js';
import { type Child, button, element, replace, setText } from './dom.js';
import { NO_FILES, describeMemory, describeStart, describeState, formatSeconds } from './format.js';

export interface Actions {
  restart(sandbox: Sandbox): void;
  stop(sandbox: Sandbox): void;
  kill(sandbox: Sandbox): void;
  log(sandbox: Sandbox): void;
  transcript(sandbox: Sandbox): void;
  changes(sandbox: Sandbox): void;
  outputs(sandbox: Sandbox): void;
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
  private names = '';
  private values: { readonly node: HTMLElement; key: string | null }[] = [];
  private readonly changesButton: HTMLButtonElement;
  private readonly outputsButton: HTMLButtonElement;
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
    this.outputsButton = act('Outputs', 'outputs');
    this.logButton = act('Log', 'log');
    this.transcriptButton = act('Transcript', 'transcript');
    this.node.append(
      this.heading,
      this.facts,
      element(
        'div',
        { class: 'gk-buttons' },
        this.changesButton,
        this.outputsButton,
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
    this.outputsButton.hidden = sandbox.outputs === null;
    this.logButton.hidden = !sandbox.hasLog;
    this.transcriptButton.hidden = !sandbox.hasTranscript;
    setText(this.heading, sandbox.displayName || sandbox.kernelName);
    this.showFacts(factsOf(sandbox, now));
  }

  /** Draws only what is new: a list that was unfolded, and the focus in it, stay. */
  private showFacts(facts: readonly Fact[]): void {
    const names = facts.map(fact => fact.name).join('\n');
    if (names !== this.names) {
      this.names = names;
      this.values = facts.map(() => ({ node: element('dd'), key: null }));
      replace(
        this.facts,
        ...facts.flatMap((fact, index) => [
          element('dt', {}, fact.name),
          this.values[index]?.node ?? null
        ])
      );
    }
    facts.forEach((fact, index) => {
      const value = this.values[index];
      if (value !== undefined && value.key !== fact.key) {
        value.key = fact.key;
        replace(value.node, fact.draw());
      }
    });
  }
}

/** One fact: its name, and what is drawn only if the text has changed. */
interface Fact {
  readonly name: string;
  readonly key: string;
  readonly draw: () => Child;
}

function factsOf(sandbox: Sandbox, now: number): readonly Fact[] {
  const facts: Fact[] = [];
  const add = (name: string, text: string, draw?: () => Node): void => {
    facts.push({ name, key: text, draw: draw ?? (() => text) });
  };
  add('Sandbox', sandbox.id);
  if (sandbox.identity && sandbox.identity !== sandbox.id) {
    add('Identity', sandbox.identity);
  }
  add('State', sandbox.state === 'starting' ? describeState(sandbox) : sandbox.state);
  add('Memory', describeMemory(sandbox));
  if (sandbox.cpuSeconds !== null) {
    add('CPU', `${formatSeconds(sandbox.cpuSeconds)} used`);
  }
  if (sandbox.processes !== null) {
    add('Processes', `${sandbox.processes}`);
  }
  if (sandbox.node !== null) {
    add('Machine', sandbox.node);
  }
  add('Image', sandbox.image === 'host' ? 'host: the programs of this computer' : sandbox.image);
  add('Folder', sandbox.folder);
  if (sandbox.workspaceIsHome) {
    add('Files', NO_FILES, () => element('p', { class: 'gk-warning' }, NO_FILES));
  }
  add('Mounts', JSON.stringify(sandbox.mounts), () => mountsOf(sandbox));
  if (sandbox.egress.length > 0) {
    add('Network', JSON.stringify(sandbox.egress), () => routesOf(sandbox));
  } else {
    add('Network', 'none');
  }
  if (sandbox.created > 0) {
    add('Age', formatSeconds(Math.max(0, now - sandbox.created)));
  }
  if (sandbox.start !== null) {
    const { kind, seconds } = sandbox.start;
    add('Start', `${describeStart(kind)}, ${formatSeconds(seconds)}`);
  }
  if (sandbox.lastDeath !== null) {
    const { when, reason } = sandbox.lastDeath;
    add('Last death', `${formatSeconds(Math.max(0, now - when))} ago: ${reason}`);
  }
  add('Releases', `gvisor-kernel ${sandbox.release.gvisorKernel}, runsc ${sandbox.release.runsc}`);
  return facts;
}

/** What is shown at its own path are programs of this computer: many, and seldom looked at. */
function mountsOf(sandbox: Sandbox): HTMLElement {
  const same = sandbox.mounts.filter(mount => mount.readOnly && mount.source === mount.target);
  const others = sandbox.mounts.filter(mount => !same.includes(mount));
  return element(
    'div',
    {},
    others.length > 0 ? element('ul', {}, ...others.map(showMount)) : null,
    same.length > 0
      ? element(
          'details',
          {},
          element('summary', {}, `${same.length} of this computer, read-only, at the same path`),
          element(
            'ul',
            {},
            ...same.map(mount => element('li', {}, element('code', {}, mount.target)))
          )
        )
      : null
  );
}

function showMount(mount: Mount): HTMLElement {
  return element(
    'li',
    {},
    element('code', {}, mount.target),
    mount.source ? ' is ' : '',
    mount.source ? element('code', {}, mount.source) : null,
    mount.readOnly ? ' (read-only)' : '',
    mount.description ? `: ${mount.description}` : ''
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
