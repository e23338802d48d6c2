/** The line above a page that talks to a server: to whom, how much, and a button that stops it. */

import { button, element, setText } from './dom.js';
import { formatBytes } from './format.js';
import type { Talk } from './page_network.js';

export class TalkView {
  readonly node = element('div', { class: 'gk-talk', attributes: { role: 'group' } });
  private readonly text = element('span');
  private readonly stop: HTMLButtonElement;
  private readonly allow: HTMLButtonElement;
  /** What a screen reader is told: that a page talks, and to whom, not each byte. */
  private readonly said = element('span', {
    class: 'gk-said',
    attributes: { role: 'status' }
  });

  private ended = false;

  constructor(stop: () => void, allow: () => void) {
    this.stop = button('Stop', stop);
    this.allow = button('Allow again', allow);
    this.node.setAttribute('aria-label', 'Network of the page');
    this.node.append(this.text, this.stop, this.allow, this.said);
    this.clear();
  }

  clear(): void {
    this.node.hidden = true;
    setText(this.text, '');
    setText(this.said, '');
    this.ended = false;
  }

  /** The page is over. What it has done stays to be read, and there is nothing to stop. */
  end(): void {
    this.ended = true;
    this.stop.hidden = true;
    this.allow.hidden = true;
  }

  update(talk: Talk): void {
    this.node.hidden = false;
    setText(this.text, describeTalk(talk));
    setText(this.said, whomOf(talk));
    if (!this.ended) {
      this.move(talk.stopped);
    }
  }

  /** The button that goes has the focus if it was pressed: the other one gets it. */
  private move(stopped: boolean): void {
    const [shown, gone] = stopped ? [this.allow, this.stop] : [this.stop, this.allow];
    const focused = document.activeElement === gone;
    shown.hidden = false;
    gone.hidden = true;
    if (focused) {
      shown.focus();
    }
  }
}

function whomOf({ hosts, open, stopped }: Talk): string {
  const whom = hosts.join(', ');
  if (stopped) {
    return `You stopped this page; it talked to ${whom}`;
  }
  return open > 0 ? `This page talks to ${whom}` : `This page talked to ${whom}`;
}

export function describeTalk(talk: Talk): string {
  const { requests, sent, received } = talk;
  const count = `${requests} request${requests === 1 ? '' : 's'}`;
  return `${whomOf(talk)}: ${count}, ${formatBytes(sent)} sent, ${formatBytes(received)} received`;
}
