/** A dialog beside the button that opens it: the browser's own popover, which Escape or a click
 *  elsewhere closes. */

import { element, replace } from './dom.js';

/** Pixels between the popup and the window's edge, or its button; its width in style/index.css. */
const EDGE = 4;
const WIDTH = 480;

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
    const last = window.innerWidth - WIDTH - EDGE;
    style.left = `${Math.max(EDGE, Math.min(box.left, last))}px`;
    style.top = isAbove ? 'auto' : `${box.bottom + EDGE}px`;
    style.bottom = isAbove ? `${window.innerHeight - box.top + EDGE}px` : 'auto';
  }
}
