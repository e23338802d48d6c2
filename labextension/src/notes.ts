/** Lines beside a frame with what the person has to know. What is in it may say things for ever. */

import { button, element, replace } from './dom.js';

export class Notes {
  readonly node: HTMLElement;

  /** ``most``: lines that are shown; further ones are dropped. */
  constructor(
    label: string,
    private readonly most: number
  ) {
    const attributes = { 'aria-live': 'polite', 'aria-label': label };
    this.node = element('ul', { class: 'gk-notes', attributes });
    this.node.hidden = true;
  }

  clear(): void {
    replace(this.node);
    this.node.hidden = true;
  }

  /** Adds a line that is not there yet; ``again``: what its button does, for which there is room. */
  add(text: string, again?: () => void): void {
    const line = element('li', { class: 'gk-warning' }, element('span', text));
    const present = [...this.node.children].map(it => it.firstElementChild?.textContent);
    if ((again || present.length < this.most) && !present.includes(line.textContent)) {
      this.node.hidden = false;
      line.append(...(again === undefined ? [] : [' ', button('Show again', again)]));
      this.node.append(line);
    }
  }
}
