/** A dialog beside the element that opened it: Escape or a click elsewhere closes it. */

import { element } from './dom.js';

/** Pixels between the popup and the window's edge, or its anchor. */
const EDGE = 4;

export class Popup {
  private readonly node: HTMLElement;
  private readonly listeners = new AbortController();

  constructor(
    body: HTMLElement,
    label: string,
    private readonly anchor: HTMLElement,
    private readonly closed: () => void
  ) {
    this.node = element(
      'div',
      {
        class: 'gk-popup',
        attributes: { role: 'dialog', 'aria-label': label, tabindex: '-1' }
      },
      body
    );
    document.body.append(this.node);
    this.place();
    anchor.setAttribute('aria-expanded', 'true');
    this.node.focus();
    const { signal } = this.listeners;
    this.node.addEventListener(
      'keydown',
      event => {
        if (event.key === 'Escape') {
          event.stopPropagation();
          this.close();
          anchor.focus();
        } else if (event.key === 'Tab') {
          this.keepFocus(event);
        }
      },
      { signal }
    );
    document.addEventListener(
      'pointerdown',
      event => {
        const target = event.target as Node | null;
        if (!this.node.contains(target) && !anchor.contains(target)) {
          this.close();
        }
      },
      { signal, capture: true }
    );
  }

  close(): void {
    if (!this.listeners.signal.aborted) {
      this.listeners.abort();
      this.node.remove();
      this.anchor.setAttribute('aria-expanded', 'false');
      this.closed();
    }
  }

  private place(): void {
    const box = this.anchor.getBoundingClientRect();
    const below = box.top < window.innerHeight / 2;
    const last = window.innerWidth - this.node.offsetWidth - EDGE;
    this.node.style.left = `${Math.max(EDGE, Math.min(box.left, last))}px`;
    this.node.style[below ? 'top' : 'bottom'] = below
      ? `${box.bottom + EDGE}px`
      : `${window.innerHeight - box.top + EDGE}px`;
  }

  /** The popup is the last of the page: without this, Tab would leave it for the browser. */
  private keepFocus(event: KeyboardEvent): void {
    const stops = [...this.node.querySelectorAll<HTMLElement>('button, a[href], summary')];
    const edge = event.shiftKey ? stops.at(0) : stops.at(-1);
    const next = event.shiftKey ? stops.at(-1) : stops.at(0);
    const active = document.activeElement;
    if (next !== undefined && (active === edge || (event.shiftKey && active === this.node))) {
      event.preventDefault();
      next.focus();
    }
  }
}
