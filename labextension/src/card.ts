/** The card of one sandbox: what a person wants to know of it, what they can do, and folded the rest. */

import type { Mount, Sandbox, Unkept } from './contract.js';
import { type Child, button, element, iconButton, replace, setText, warning } from './dom.js';
import {
  NO_FILES,
  describeHibernated,
  describeMemory,
  describeStart,
  formatSeconds
} from './format.js';
import { nameOf, titles } from './titles.js';
import { countFiles, hasFiles, listFiles } from './unkept.js';

/** What can be done with a sandbox: what its button says, and its icon of JupyterLab's. */
const ACTIONS = {
  changes: ['Changes', 'edit'],
  outputs: ['Outputs', 'folder'],
  log: ['Log', 'list'],
  transcript: ['Transcript', 'history'],
  hibernate: ['Hibernate', 'stop'],
  resume: ['Resume', 'run'],
  restart: ['Restart Kernel', 'refresh'],
  stop: ['End Sandbox', 'close'],
  kill: ['End at Once', 'offline-bolt']
} as const;

export type Action = keyof typeof ACTIONS | 'project';
export type Act = (action: Action, sandbox: Sandbox) => void;

/** Buttons of one sandbox. They stay the same elements, so the focus survives each answer. */
export class ActionButtons {
  readonly node = element('div', { class: 'gk-buttons' });
  private readonly buttons: readonly (readonly [keyof typeof ACTIONS, HTMLButtonElement])[];

  /** ``icons``: without words, for a list that tells which sandbox each is for. */
  constructor(
    private sandbox: Sandbox,
    actions: readonly (keyof typeof ACTIONS)[],
    act: Act,
    private readonly icons = false
  ) {
    this.buttons = actions.map(action => {
      const [label, icon] = ACTIONS[action];
      const click = (): void => act(action, this.sandbox);
      const look = action === 'stop' ? 'danger' : 'usual';
      return [action, icons ? iconButton(icon, label, click) : button(label, click, { look })];
    });
    this.node.append(...this.buttons.map(([, node]) => node));
  }

  update(sandbox: Sandbox): void {
    this.sandbox = sandbox;
    for (const [action, node] of this.buttons) {
      const awake = sandbox.state === 'idle' && sandbox.hibernated === null;
      node.hidden =
        (action === 'hibernate' && !awake) ||
        (action === 'resume' && sandbox.hibernated === null) ||
        (action === 'outputs' && sandbox.workspace.outputs === null) ||
        ((action === 'log' || action === 'transcript') && !sandbox[action]);
      if (this.icons) {
        const [label] = ACTIONS[action];
        node.setAttribute('aria-label', `${label} of ${nameOf(sandbox)}`);
      }
    }
  }
}

/** One fact: its name, and what is drawn only if the text has changed. */
interface Fact {
  readonly name: string;
  readonly key: string;
  readonly draw: () => Child;
}

/** Draws only what is new: a list that was unfolded, and the focus in it, stay. */
class FactList {
  readonly node = element('dl', { class: 'gk-facts' });
  private names = '';
  private values: { readonly node: HTMLElement; key: string | null }[] = [];

  show(facts: readonly Fact[]): void {
    const names = facts.map(fact => fact.name).join('\n');
    if (names !== this.names) {
      this.names = names;
      this.values = facts.map(() => ({ node: element('dd'), key: null }));
      const rows = facts.flatMap((fact, index) => [
        element('dt', fact.name),
        this.values[index]?.node ?? null
      ]);
      replace(this.node, ...rows);
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

export class Card {
  readonly node: HTMLElement;
  private readonly name = element('span');
  private readonly state = element('span', { class: 'gk-badge' });
  private readonly first = new FactList();
  private readonly rest = new FactList();
  private readonly buttons: ActionButtons;

  constructor(
    sandbox: Sandbox,
    private readonly act: Act,
    unkept: Unkept | null = null
  ) {
    const actions = [
      'changes',
      'outputs',
      'log',
      'transcript',
      'hibernate',
      'resume',
      'restart',
      'stop'
    ] as const;
    this.buttons = new ActionButtons(sandbox, actions, act);
    this.node = element(
      'div',
      { class: 'gk-card' },
      element('h2', this.name, ' ', this.state),
      this.first.node,
      this.buttons.node,
      element('details', element('summary', 'Details'), this.rest.node)
    );
    this.update(sandbox, Date.now() / 1000, unkept);
  }

  /** ``now`` is the time of day in seconds, as the server's times are. */
  update(sandbox: Sandbox, now: number, unkept: Unkept | null = null): void {
    this.buttons.update(sandbox);
    setText(this.name, nameOf(sandbox));
    setText(
      this.state,
      sandbox.hibernated === null ? sandbox.waits_for || sandbox.state : 'Hibernated'
    );
    this.first.show(firstFacts(sandbox, unkept, () => this.act('project', sandbox)));
    this.rest.show(otherFacts(sandbox, now));
  }
}

function fact(name: string, key: string | null, draw?: () => Node): readonly Fact[] {
  return key === null ? [] : [{ name, key, draw: draw ?? (() => key) }];
}

function known<T>(value: T | null, say: (it: T) => string): string | null {
  return value === null ? null : say(value);
}

function firstFacts(
  sandbox: Sandbox,
  unkept: Unkept | null,
  showProject: () => void
): readonly Fact[] {
  const { egress, folder, workspace, kernel_id } = sandbox;
  const project = sandbox.project;
  const mayChoose = titles.of(kernel_id) !== null; // the choice is for a folder of the server
  return [
    ...(sandbox.hibernated === null
      ? fact('Memory', describeMemory(sandbox))
      : fact('Hibernated', describeHibernated(sandbox.hibernated))),
    ...(egress.length > 0
      ? fact('Network', JSON.stringify(egress), () => routesOf(sandbox))
      : fact('Network', 'none')),
    ...fact('Folder', folder),
    ...fact('Files', workspace.is_home ? NO_FILES : null, () => warning(NO_FILES)),
    ...fact('Project', project && JSON.stringify([project, mayChoose]), () =>
      element(
        'div',
        project?.shown
          ? `${project.folder} is shown`
          : `${project?.folder} is not shown: the kernel sees the notebook's folder alone.`,
        mayChoose &&
          element(
            'div',
            button(project?.shown ? 'Show the folder alone' : 'Show the project', showProject)
          )
      )
    ),
    ...fact('Not kept', known(unkept, JSON.stringify), () =>
      unkept !== null && hasFiles(unkept)
        ? element(
            'details',
            element('summary', `${countFiles(unkept)}, gone when the sandbox ends`),
            listFiles(unkept)
          )
        : element('span', 'nothing')
    )
  ];
}

function otherFacts(sandbox: Sandbox, now: number): readonly Fact[] {
  const { id, image, mounts, created, start, last_death, release } = sandbox;
  const since = (when: number): string => formatSeconds(Math.max(0, now - when));
  return [
    ...fact('Kernel', sandbox.display_name || sandbox.kernel_name),
    ...fact(
      'CPU',
      known(sandbox.cpu_seconds, it => `${formatSeconds(it)} used`)
    ),
    ...fact('Processes', known(sandbox.processes, String)),
    ...fact('Machine', sandbox.node),
    ...fact('Image', image === 'host' ? 'host: the programs of this computer' : image),
    ...fact('Mounts', JSON.stringify(mounts), () => mountsOf(sandbox)),
    ...fact('Age', known(created, since)),
    ...fact(
      'Start',
      known(start, it => `${describeStart(it.kind)}, ${formatSeconds(it.seconds)}`)
    ),
    ...fact(
      'Last death',
      known(last_death, it => `${since(it.when)} ago: ${it.reason}`)
    ),
    ...fact('Sandbox', id),
    ...fact('Versions', `gvisor-kernel ${release.gvisor_kernel}, runsc ${release.runsc}`)
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

/** Where a route leads that names no host: one to packages. */
const INDEXES = 'the package indexes of this computer';

function routesOf(sandbox: Sandbox): HTMLElement {
  return element(
    'ul',
    ...sandbox.egress.map(route =>
      element('li', `${route.name} (${route.kind}): ${route.hosts.join(', ') || INDEXES}`)
    )
  );
}
