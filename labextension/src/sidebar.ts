/** The content of the sidebar: this server's sandboxes, what earlier ones left, and doctor. */

import { type Act, ActionButtons } from './card.js';
import { type SandboxClient, messageOf } from './client.js';
import type { Findings, Leftover, Sandbox, Sandboxes } from './contract.js';
import {
  button,
  drawing,
  element,
  escapeHidden,
  icon,
  replace,
  setText,
  skeleton,
  warning
} from './dom.js';
import {
  NEARLY_FULL,
  count,
  describeMemory,
  formatSeconds,
  memoryShare,
  nameState
} from './format.js';
import { type History, type Sample, plotPoints } from './history.js';
import { nameOf, titles } from './titles.js';

const PLOT_WIDTH = 100;
const PLOT_HEIGHT = 24;

/** A small line over the last five minutes. The figure beside it says the same in words. */
class Plot {
  readonly node: SVGElement;
  private readonly line: SVGElement;

  constructor(kind: 'memory' | 'cpu') {
    this.line = drawing('polyline', { points: '', class: `gk-line gk-line-${kind}` });
    this.node = drawing(
      'svg',
      {
        viewBox: `0 0 ${PLOT_WIDTH} ${PLOT_HEIGHT}`,
        preserveAspectRatio: 'none',
        class: 'gk-plot',
        'aria-hidden': 'true'
      },
      this.line
    );
  }

  /** ``most`` is the value at the top. */
  update(samples: readonly Sample[], now: number, most: number): void {
    this.line.setAttribute('points', plotPoints(samples, now, most, PLOT_WIDTH, PLOT_HEIGHT));
  }
}

class Row {
  readonly node: HTMLLIElement;
  private readonly heading = element('h3');
  private readonly badge = element('span', { class: 'gk-badge' });
  private readonly folder = element('p', { class: 'gk-folder' });
  private readonly state = element('span', { class: 'gk-state' });
  private readonly memory = new Plot('memory');
  private readonly cpu = new Plot('cpu');
  private readonly cpuText = element('span', { class: 'gk-state' });
  private readonly death = element('p', { class: 'gk-warning' });
  private readonly buttons: ActionButtons;

  constructor(sandbox: Sandbox, act: Act) {
    const actions = ['changes', 'outputs', 'log', 'restart', 'stop', 'kill'] as const;
    this.buttons = new ActionButtons(sandbox, actions, act, true);
    this.node = element(
      'li',
      { class: 'gk-row' },
      element('div', { class: 'gk-heading' }, icon('notebook'), this.heading, this.badge),
      this.folder,
      element('div', { class: 'gk-figure' }, this.memory.node, this.state),
      element('div', { class: 'gk-figure' }, this.cpu.node, this.cpuText),
      this.death,
      this.buttons.node
    );
  }

  update(sandbox: Sandbox, history: History, now: number): void {
    const title = titles.of(sandbox.kernel_id);
    setText(this.heading, nameOf(sandbox));
    this.heading.title = escapeHidden(title?.path ?? '');
    setText(this.badge, nameState(sandbox));
    const below = title?.path.split('/').slice(0, -1).join('/') ?? '';
    const kernel = title === null ? '' : ` · ${sandbox.display_name || sandbox.kernel_name}`;
    setText(this.folder, `${below || sandbox.folder}${kernel}`);
    this.folder.title = escapeHidden(sandbox.folder);
    setText(this.state, sandbox.waits_for || describeMemory(sandbox));
    this.node.classList.toggle('gk-full', (memoryShare(sandbox) ?? 0) >= NEARLY_FULL);
    this.memory.update(history.memory(sandbox.kernel_id), now, sandbox.memory.limit);
    const cpu = history.cpu(sandbox.kernel_id);
    this.cpu.update(cpu, now, highest(cpu));
    const last = sandbox.hibernated === null ? cpu.at(-1) : undefined;
    setText(this.cpuText, last === undefined ? 'CPU' : `CPU ${(last.value * 100).toFixed(0)} %`);
    const death = sandbox.last_death;
    this.death.hidden = death === null;
    setText(this.death, death === null ? '' : `Died last: ${death.reason}`);
    this.buttons.update(sandbox);
  }
}

/** The top of the plot of CPU: at least one core, so that idle kernels look idle. */
function highest(samples: readonly Sample[]): number {
  return samples.reduce((most, sample) => Math.max(most, sample.value), 1);
}

export class Sidebar {
  readonly node = element('div', { class: 'gk-sidebar' });
  /** The parts, each with a title of its own around it. */
  readonly sandboxes: HTMLElement;
  readonly leftovers = element('section', { attributes: { 'aria-label': 'Leftovers' } });
  readonly doctor: HTMLElement;
  private readonly waiting = skeleton();
  private readonly rows = new Map<string, Row>();
  private readonly list = element('ul', { class: 'gk-list' });
  private readonly empty = element('p', 'No kernel of this server runs in a sandbox.');
  private readonly problem = element('p', { class: 'gk-warning', attributes: { role: 'status' } });
  private readonly findings = element('div', { attributes: { 'aria-live': 'polite' } });
  private readonly doctorButton: HTMLButtonElement;
  private leftoverNames = '';
  private looking = false;

  constructor(
    private readonly client: Pick<SandboxClient, 'doctor'>,
    private readonly history: History,
    private readonly act: Act
  ) {
    this.doctorButton = button('Run doctor', () => void this.runDoctor());
    this.problem.hidden = true;
    this.empty.hidden = true;
    this.sandboxes = element(
      'section',
      { attributes: { 'aria-label': 'Sandboxes' } },
      this.problem,
      this.waiting,
      this.empty,
      this.list
    );
    this.doctor = element(
      'section',
      { attributes: { 'aria-label': 'Doctor' } },
      element('p', 'Looks at what sandboxes need on this computer.'),
      this.doctorButton,
      this.findings
    );
    this.node.append(this.sandboxes, this.leftovers, this.doctor);
  }

  /** ``now`` is the clock of the history. */
  update(answer: Sandboxes, now: number): void {
    this.problem.hidden = true;
    this.waiting.hidden = true;
    const present = new Set(answer.sandboxes.map(sandbox => sandbox.kernel_id));
    for (const [id, row] of this.rows) {
      if (!present.has(id)) {
        row.node.remove();
        this.rows.delete(id);
      }
    }
    for (const sandbox of answer.sandboxes) {
      let row = this.rows.get(sandbox.kernel_id);
      if (row === undefined) {
        row = new Row(sandbox, this.act);
        this.rows.set(sandbox.kernel_id, row);
        this.list.append(row.node);
      }
      row.update(sandbox, this.history, now);
    }
    this.empty.hidden = present.size > 0;
    this.list.hidden = present.size === 0;
    this.showLeftovers(answer.leftovers);
  }

  showProblem(message: string): void {
    this.problem.hidden = false;
    this.waiting.hidden = true;
    setText(this.problem, `The server did not answer: ${message}`);
  }

  async runDoctor(): Promise<void> {
    if (this.looking) {
      return;
    }
    this.looking = true;
    // Not ``disabled``: that would take the focus from whoever pressed it by a key.
    this.doctorButton.setAttribute('aria-disabled', 'true');
    replace(this.findings, element('p', 'Looking; this takes some seconds.'));
    try {
      replace(this.findings, ...showFindings(await this.client.doctor()));
    } catch (error) {
      replace(this.findings, warning(messageOf(error)));
    } finally {
      this.looking = false;
      this.doctorButton.removeAttribute('aria-disabled');
    }
  }

  private showLeftovers(leftovers: readonly Leftover[]): void {
    const names = leftovers.map(one => `${one.id} ${one.state} ${one.next}`).join('\n');
    if (names === this.leftoverNames) {
      return; // or a screen reader and the selection would start again every two seconds
    }
    this.leftoverNames = names;
    const now = Date.now() / 1000;
    replace(
      this.leftovers,
      element(
        'p',
        'Sandboxes whose server has gone. The next start of a kernel removes them, or ',
        element('code', 'gvisor-kernel prune'),
        '. What hibernates stays for 30 days: a server of the same folder takes it back.'
      ),
      element(
        'ul',
        ...leftovers.map(one =>
          element(
            'li',
            element('code', one.id),
            ` (${one.state}), ${one.folder}`,
            one.created > 0 ? `, ${formatSeconds(Math.max(0, now - one.created))} old` : '',
            whenRemoved(one)
          )
        )
      )
    );
  }
}

function whenRemoved(leftover: Leftover): Node | string {
  if (leftover.removed === null) {
    return '';
  }
  const day = new Date(leftover.removed * 1000).toLocaleDateString();
  if (leftover.state === 'removed') {
    return element('p', { class: 'gk-fix' }, `Its saved state was removed on ${day}.`);
  }
  return leftover.next
    ? element(
        'p',
        { class: 'gk-fix' },
        `Its saved state is removed before long, on ${day} at the latest. Start a server of its ` +
          'folder, and run a cell, to keep it.'
      )
    : `, kept until ${day}`;
}

const WORDS = { ok: 'fine', warning: 'look at this', failed: 'not fine' } as const;

/** What needs a hand first; what is fine is folded away. */
function showFindings(findings: Findings['checks']): Node[] {
  const fine = findings.filter(it => it.state === 'ok');
  const others = findings.filter(it => it.state !== 'ok');
  const show = (it: Findings['checks'][number]): HTMLElement =>
    element(
      'li',
      { class: it.state === 'ok' ? '' : 'gk-finding' },
      element('strong', it.name),
      ` (${WORDS[it.state]}): ${it.fact}`,
      it.fix ? element('p', { class: 'gk-fix' }, `What to do: ${it.fix}`) : null
    );
  return [
    others.length > 0
      ? element('ul', { class: 'gk-findings' }, ...others.map(show))
      : element('p', 'Nothing to do.'),
    element(
      'details',
      element('summary', `${count(fine.length, 'check')} ${fine.length === 1 ? 'is' : 'are'} fine`),
      element('ul', { class: 'gk-findings' }, ...fine.map(show))
    )
  ];
}
