/** The card of one sandbox: what it is, what it sees, how it started, and how it last died. */

import type { Mount, Sandbox } from './contract.js';
import { type Child, button, element, replace, setText, warning } from './dom.js';
import { NO_FILES, describeMemory, describeStart, describeState, formatSeconds } from './format.js';

/** What can be done with a sandbox, and what its button says. */
const LABELS = {
  changes: 'Changes',
  outputs: 'Outputs',
  log: 'Log',
  transcript: 'Transcript',
  restart: 'Restart',
  stop: 'Stop',
  kill: 'Kill'
} as const;

export type Action = keyof typeof LABELS;
export type Act = (action: Action, sandbox: Sandbox) => void;

export function nameOf(sandbox: Sandbox): string {
  return sandbox.display_name || sandbox.kernel_name;
}

/** Buttons of one sandbox. They stay the same elements, so the focus survives each answer. */
export class ActionButtons {
  readonly node = element('div', { class: 'gk-buttons' });
  private readonly buttons: readonly (readonly [Action, HTMLButtonElement])[];

  constructor(
    private sandbox: Sandbox,
    actions: readonly Action[],
    act: Act
  ) {
    this.buttons = actions.map(action => [
      action,
      button(LABELS[action], () => act(action, this.sandbox))
    ]);
    this.node.append(...this.buttons.map(([, node]) => node));
  }

  /** ``name`` tells the buttons from those of other sandboxes. */
  update(sandbox: Sandbox, name = ''): void {
    this.sandbox = sandbox;
    for (const [action, node] of this.buttons) {
      node.hidden =
        (action === 'outputs' && sandbox.workspace.outputs === null) ||
        ((action === 'log' || action === 'transcript') && !sandbox[action]);
      if (name) {
        const of = ['restart', 'stop', 'kill'].includes(action) ? '' : ' of';
        node.setAttribute('aria-label', `${LABELS[action]}${of} ${name}`);
      }
    }
  }
}

export class Card {
  readonly node = element('div', { class: 'gk-card' });
  private readonly facts = element('dl', { class: 'gk-facts' });
  private readonly heading = element('h2');
  private readonly buttons: ActionButtons;
  private names = '';
  private values: { readonly node: HTMLElement; key: string | null }[] = [];

  constructor(sandbox: Sandbox, act: Act) {
    const actions = ['changes', 'outputs', 'log', 'transcript', 'restart', 'stop'] as const;
    this.buttons = new ActionButtons(sandbox, actions, act);
    this.node.append(this.heading, this.facts, this.buttons.node);
    this.update(sandbox, Date.now() / 1000);
  }

  /** ``now`` is the time of day in seconds, as the server's times are. */
  update(sandbox: Sandbox, now: number): void {
    this.buttons.update(sandbox);
    setText(this.heading, nameOf(sandbox));
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
          element('dt', fact.name),
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

/** What a card says of a state; nothing where the status bar has more to say. */
const STATES = {
  starting: '',
  running: 'running',
  stopped: 'paused, as the kernel is idle: the next cell continues it',
  ended: 'ended'
} as const;

/** One fact: its name, and what is drawn only if the text has changed. */
interface Fact {
  readonly name: string;
  readonly key: string;
  readonly draw: () => Child;
}

function factsOf(sandbox: Sandbox, now: number): readonly Fact[] {
  const { id, identity, state, image, mounts, egress, created, start, last_death, release } =
    sandbox;
  const since = (when: number): string => formatSeconds(Math.max(0, now - when));
  const known = <T>(value: T | null, say: (it: T) => string): string | null =>
    value === null ? null : say(value);
  const fact = (name: string, key: string | null, draw?: () => Node): readonly Fact[] =>
    key === null ? [] : [{ name, key, draw: draw ?? (() => key) }];
  return [
    ...fact('Sandbox', id ?? ''),
    ...fact('Identity', identity === id ? null : identity),
    ...fact('State', STATES[state] || describeState(sandbox)),
    ...fact('Memory', describeMemory(sandbox)),
    ...fact(
      'CPU',
      known(sandbox.cpu_seconds, it => `${formatSeconds(it)} used`)
    ),
    ...fact('Processes', known(sandbox.processes, String)),
    ...fact('Machine', sandbox.node),
    ...fact('Image', image === 'host' ? 'host: the programs of this computer' : image),
    ...fact('Folder', sandbox.folder),
    ...fact('Files', sandbox.workspace.is_home ? NO_FILES : null, () => warning(NO_FILES)),
    ...fact('Mounts', JSON.stringify(mounts), () => mountsOf(sandbox)),
    ...(egress.length > 0
      ? fact('Network', JSON.stringify(egress), () => routesOf(sandbox))
      : fact('Network', 'none')),
    ...fact('Age', known(created, since)),
    ...fact(
      'Start',
      known(start, it => `${describeStart(it.kind)}, ${formatSeconds(it.seconds)}`)
    ),
    ...fact(
      'Last death',
      known(last_death, it => `${since(it.when)} ago: ${it.reason}`)
    ),
    ...fact('Releases', `gvisor-kernel ${release.gvisor_kernel}, runsc ${release.runsc}`)
  ];
}

/** What is shown at its own path are programs of this computer: many, and seldom looked at. */
function mountsOf(sandbox: Sandbox): HTMLElement {
  const same = sandbox.mounts.filter(mount => mount.read_only && mount.source === mount.target);
  const others = sandbox.mounts.filter(mount => !same.includes(mount));
  return element(
    'div',
    others.length > 0 ? element('ul', ...others.map(showMount)) : null,
    same.length > 0
      ? element(
          'details',
          element('summary', `${same.length} of this computer, read-only, at the same path`),
          element('ul', ...same.map(mount => element('li', element('code', mount.target))))
        )
      : null
  );
}

function showMount(mount: Mount): HTMLElement {
  return element(
    'li',
    element('code', mount.target),
    mount.source ? ' is ' : '',
    mount.source ? element('code', mount.source) : null,
    mount.read_only ? ' (read-only)' : '',
    mount.description ? `: ${mount.description}` : ''
  );
}

function routesOf(sandbox: Sandbox): HTMLElement {
  return element(
    'ul',
    ...sandbox.egress.map(route =>
      element('li', `${route.name} (${route.kind}): ${route.hosts.join(', ') || 'any host'}`)
    )
  );
}
