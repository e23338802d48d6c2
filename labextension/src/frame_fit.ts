/**
 * Whether this browser holds a page: a frame of a page's kind tries to reach the server, by a request
 * and by going there, and must fail; the same frame without the header that forbids it must succeed.
 * Otherwise something else was in the way, and nothing is known of the header.
 */

import { element } from './dom.js';

const WAIT_MILLISECONDS = 60_000;

/** What a frame with this address reaches, in so many of two ways; null if it never said. */
const tried = new Map<string, Promise<number | null>>();

/**
 * Why no page is shown in frames with this address; null if one is. Each address is tried once in a
 * page of JupyterLab, until something is known: the browser and the way to the server stay the same.
 */
export async function findUnfit(url: string): Promise<string | null> {
  const control = new URL(url);
  control.search = '?control=1';
  return whyUnfit(...(await Promise.all([tryOnce(url), tryOnce(control.href)])));
}

async function tryOnce(url: string): Promise<number | null> {
  const trial = tried.get(url) ?? tryFrame(url);
  tried.set(url, trial);
  const reached = await trial;
  if (reached === null) {
    tried.delete(url); // the next page tries again
  }
  return reached;
}

async function tryFrame(url: string): Promise<number | null> {
  const frame = makeFrame(url);
  const port = connectTo(frame, 'try');
  frame.hidden = true;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const reached = await new Promise<number | null>(resolve => {
    timer = setTimeout(resolve, WAIT_MILLISECONDS, null);
    port.onmessage = ({ data }: MessageEvent<{ reached?: number }>) =>
      resolve(data.reached ?? null);
    document.body.append(frame);
  });
  clearTimeout(timer);
  port.close();
  frame.remove();
  return reached;
}

/** A frame of the kind of pages'. */
export function makeFrame(url: string): HTMLIFrameElement {
  const sandbox = 'allow-scripts allow-forms';
  return element('iframe', { attributes: { sandbox, referrerpolicy: 'no-referrer', src: url } });
}

/** A port to the document that a frame loads next, which holds a page, or tries the browser. */
export function connectTo(frame: HTMLIFrameElement, task: 'hold' | 'try'): MessagePort {
  const { port1, port2 } = new MessageChannel();
  const give = (): void => frame.contentWindow?.postMessage(task, '*', [port2]);
  frame.addEventListener('load', give, { once: true });
  return port1;
}

/**
 * Why no page is shown in this browser; null if one is.
 *
 * @param page in how many of two ways a page's frame has reached the server; null if it never said
 * @param control in how many a frame without the header has
 */
export function whyUnfit(page: number | null, control: number | null): string | null {
  if (page !== 0 && page !== null) {
    return (
      'Not run: this browser does not keep pages and outputs from the network, as it does not obey ' +
      'the header Connection-Allowlist, or a proxy removes it. Chromium 156 and newer obey.'
    );
  }
  return page === 0 && control === 2
    ? null
    : 'Not run: whether this browser keeps pages from the network could not be tried out, since a ' +
        'frame does not reach the Jupyter server. Look for an extension of the browser, or a proxy, ' +
        'that keeps it from gvisor-kernel/frame/probe; then open the page again.';
}
