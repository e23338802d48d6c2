/**
 * Whether this browser holds a page: a frame of a page's kind tries to reach the server, by a request
 * and by going there, and must fail; the same frame without the header that forbids it must succeed.
 * Otherwise something else was in the way, and nothing is known of the header.
 */

import { element } from './dom.js';

const WAIT_MILLISECONDS = 30_000;

let control: Promise<number | null> | null = null;

/** What a frame without the header reaches, tried once; null if it never said. */
export async function tryControl(frameUrl: string): Promise<number | null> {
  control ??= openControl(`${frameUrl}?control=1`);
  const reached = await control;
  if (reached === null) {
    control = null; // the next page tries again
  }
  return reached;
}

async function openControl(url: string): Promise<number | null> {
  const frame = makeFrame(url);
  const port = connectTo(frame);
  frame.hidden = true;
  const tried = await new Promise<number | null>(resolve => {
    setTimeout(resolve, WAIT_MILLISECONDS, null);
    port.onmessage = ({ data }: MessageEvent<{ reached?: number }>) =>
      resolve(data.reached ?? null);
    document.body.append(frame);
  });
  port.close();
  frame.remove();
  return tried;
}

/** A frame of the kind of pages'. */
export function makeFrame(url: string): HTMLIFrameElement {
  const sandbox = 'allow-scripts allow-forms';
  return element('iframe', { attributes: { sandbox, referrerpolicy: 'no-referrer', src: url } });
}

/** A port to the document that a frame loads next. */
export function connectTo(frame: HTMLIFrameElement): MessagePort {
  const { port1, port2 } = new MessageChannel();
  const give = (): void => frame.contentWindow?.postMessage(null, '*', [port2]);
  frame.addEventListener('load', give, { once: true });
  return port1;
}

/**
 * Why no page is shown in this browser; null if one is.
 *
 * @param page in how many of two ways a page's frame has reached the server
 * @param control in how many a frame without the header has; null if it never said
 */
export function whyUnfit(page: number, control: number | null): string | null {
  if (page !== 0) {
    return (
      'Not run: this browser does not keep pages and outputs from the network, as it does not obey ' +
      'the header Connection-Allowlist. Chromium 156 and newer do, and what is built from it.'
    );
  }
  return control === 2
    ? null
    : 'Not run: whether this browser keeps pages from the network could not be tried out, since a ' +
        'frame does not reach the Jupyter server. Look for an extension of the browser, or a proxy, ' +
        'that keeps it from gvisor-kernel/frame/probe; then open the page again.';
}
