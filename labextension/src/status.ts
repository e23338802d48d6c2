/** The item in the status bar: a shield, a moon if the kernel hibernates, memory of its limit, the open routes; what it opens. */

import type { Sandbox } from './contract.js';
import { element, replace, setText, shield } from './dom.js';
import { NEARLY_FULL, NO_FILES, describeState, memoryShare } from './format.js';

export class StatusView {
  private readonly label = element('span', { class: 'gk-status-label' });
  private readonly fill = element('span', { class: 'gk-bar-fill' });
  private readonly bar = element('span', { class: 'gk-bar' }, this.fill);
  private readonly routes = element('span', { class: 'gk-routes' });
  private readonly moon = element('span', { attributes: { 'aria-hidden': 'true' } }, '☾');
  private readonly home = element('span', { class: 'gk-home' }, 'sees no files');
  /** Ids of kernels that this page lets hibernate just now. */
  readonly saving = new Set<string>();

  readonly node = element(
    'button',
    { class: 'gk-status', attributes: { type: 'button', 'aria-haspopup': 'dialog' } },
    shield(),
    this.moon,
    this.bar,
    this.label,
    this.home,
    this.routes
  );

  constructor() {
    this.hide();
  }

  hide(): void {
    this.node.hidden = true;
  }

  /** The kernel is one of ours, and the server does not list it yet. */
  showStarting(): void {
    this.show('starting', null, []);
  }

  update(sandbox: Sandbox): void {
    const names = sandbox.egress.map(route => route.name);
    this.show(
      this.saving.has(sandbox.kernel_id) ? 'saving' : describeState(sandbox),
      sandbox.state === 'idle' || sandbox.state === 'busy' ? memoryShare(sandbox) : null,
      names
    );
    this.moon.hidden = sandbox.hibernated === null;
    this.home.hidden = !sandbox.workspace.is_home;
    if (sandbox.workspace.is_home) {
      this.describe(`${this.node.title}\n${NO_FILES}`);
    }
  }

  /** The last answer is old: the server did not answer. */
  showUnreachable(message: string): void {
    setText(this.label, 'no answer');
    this.home.hidden = true;
    this.bar.hidden = true;
    this.describe(`Sandbox: the server did not answer. ${message}`);
  }

  private show(text: string, share: number | null, routes: readonly string[]): void {
    this.node.hidden = false;
    this.home.hidden = true;
    this.moon.hidden = true;
    setText(this.label, text);
    this.bar.hidden = share === null;
    const full = share !== null && share >= NEARLY_FULL;
    this.fill.style.width = `${((share ?? 0) * 100).toFixed(0)}%`;
    this.node.classList.toggle('gk-full', full);
    setText(this.routes, routes.length > 0 ? `⇄ ${routes.join(', ')}` : '');
    this.routes.hidden = routes.length === 0;
    const network = routes.length > 0 ? `routes: ${routes.join(', ')}` : 'no network';
    this.describe(`Sandbox: ${text}${full ? ', nearly full' : ''}; ${network}`);
  }

  private describe(text: string): void {
    this.node.title = text;
    this.node.setAttribute('aria-label', text);
  }
}

/** Pixels between the popup and the window's edge, or its button; its width in style/index.css. */
const EDGE = 4;
const POPUP_WIDTH = 480;

/** A dialog beside the button that opens it: the browser's own popover, which Escape or a click
 *  elsewhere closes. */
export class Popup {
  private readonly node: HTMLElement;

  /** ``make``: what is shown each time that it is opened; null if there is nothing to show. */
  constructor(label: string, anchor: HTMLButtonElement, make: () => Node | null) {
    this.node = element('div', {
      class: 'gk-popup',
      attributes: {
        'aria-label': label,
        autofocus: '',
        popover: 'auto',
        role: 'dialog',
        tabindex: '-1'
      }
    });
    document.body.append(this.node);
    anchor.popoverTargetElement = this.node;
    anchor.setAttribute('aria-expanded', 'false');
    this.node.addEventListener('beforetoggle', event => {
      const body = event.newState === 'open' ? make() : null;
      anchor.setAttribute('aria-expanded', String(body !== null));
      if (body !== null) {
        replace(this.node, body);
        this.place(anchor.getBoundingClientRect());
      } else if (event.newState === 'open') {
        event.preventDefault();
      }
    });
  }

  toggle(): void {
    this.node.togglePopover();
  }

  close(): void {
    this.node.hidePopover();
  }

  private place(box: DOMRect): void {
    const { style } = this.node;
    const isAbove = box.top >= window.innerHeight / 2;
    const last = window.innerWidth - POPUP_WIDTH - EDGE;
    style.left = `${Math.max(EDGE, Math.min(box.left, last))}px`;
    style.top = isAbove ? 'auto' : `${box.bottom + EDGE}px`;
    style.bottom = isAbove ? `${window.innerHeight - box.top + EDGE}px` : 'auto';
  }
}
