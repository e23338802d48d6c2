/** Lines beside a frame with what the person has to know. What is in it may say things for ever. */

import { button, element, escapeHidden, replace } from './dom.js';

export class Notes {
  readonly node: HTMLElement;

  /** ``most``: lines that are shown; further ones are dropped. */
  constructor(
    label: string,
    private readonly most: number
  ) {
    const attributes = { 'aria-live': 'polite', 'aria-label': label };
    this.node = element('ul', { class: 'gk-notes', attributes });
  }

  clear(): void {
    replace(this.node);
  }

  /**
   * Adds a line that is not there yet, or to that of what was not loaded.
   *
   * @param again what its button does: one for which there is always room
   */
  add(message: string, again?: () => void): void {
    const text = escapeHidden(message);
    const [start = '', address] = text.split(/(?<=^Not loaded, as [^:]*: )/, 2);
    const lines = [...this.node.querySelectorAll('li > span')];
    const list = lines.find(it => address !== undefined && it.textContent.startsWith(start));
    const known = list?.textContent.slice(start.length).split(', ');
    const said = known ?? lines.map(it => it.textContent);
    if ((again || said.length < this.most) && !said.includes(known ? (address ?? '') : text)) {
      const more = again === undefined ? [] : [' ', button('Show again', again)];
      const line = element('li', { class: 'gk-warning' }, element('span', text), ...more);
      (list ?? this.node).append(list ? `, ${address}` : line);
    }
  }
}
