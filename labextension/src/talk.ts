/** The line above a page that talks to a server: to whom, how much, and a button that stops it. */

import { button, element, setText } from './dom.js';
import { formatBytes } from './format.js';
import type { Talk } from './page_network.js';

export class TalkView {
  readonly node = element('div', { class: 'gk-talk', attributes: { role: 'group' } });
  private readonly text = element('span');
  /** "Stop", or "Allow again": one element, so it keeps the focus. */
  private readonly button: HTMLButtonElement;
  /** What a screen reader is told: that a page talks, and to whom, not each byte. */
  private readonly said = element('span', {
    class: 'gk-said',
    attributes: { role: 'status' }
  });

  private isStopped = false;

  constructor(stop: () => void, allow: () => void) {
    this.button = button('Stop', () => (this.isStopped ? allow : stop)());
    this.node.setAttribute('aria-label', 'Network of the page');
    this.node.append(this.text, this.button, this.said);
    this.clear();
  }

  clear(): void {
    this.node.hidden = true;
    setText(this.text, '');
    setText(this.said, '');
    this.button.hidden = false;
  }

  /** The page is over. What it has done stays to be read, and there is nothing to stop. */
  end(): void {
    this.button.hidden = true;
  }

  update(talk: Talk): void {
    this.node.hidden = false;
    this.isStopped = talk.stopped;
    setText(this.text, describeTalk(talk));
    setText(this.said, whomOf(talk));
    setText(this.button, talk.stopped ? 'Allow again' : 'Stop');
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
