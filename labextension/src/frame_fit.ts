/**
 * Whether this browser holds a page: a frame of a page's kind tries to reach the server, by a request
 * and by going there, and must fail; the same frame without the header that forbids it must succeed.
 * Otherwise something else was in the way, and nothing is known of the header.
 */

export interface Tried {
  readonly request: boolean;
  readonly navigation: boolean;
}

const WAIT_MILLISECONDS = 30_000;

const controls = new Map<string, Promise<Tried | null>>();

/** What a frame without the header reaches, tried once; null if it never said. */
export function tryControl(frameUrl: string): Promise<Tried | null> {
  let tried = controls.get(frameUrl);
  if (tried === undefined) {
    tried = openControl(`${frameUrl}?control=1`);
    controls.set(frameUrl, tried);
    void tried.then(it => it ?? controls.delete(frameUrl)); // the next page tries again
  }
  return tried;
}

function openControl(url: string): Promise<Tried | null> {
  return new Promise(resolve => {
    const frame = document.createElement('iframe');
    const { port1, port2 } = new MessageChannel();
    const end = (tried: Tried | null): void => {
      clearTimeout(timer);
      port1.close();
      frame.remove();
      resolve(tried);
    };
    const timer = setTimeout(end, WAIT_MILLISECONDS, null);
    frame.hidden = true;
    frame.setAttribute('sandbox', 'allow-scripts allow-forms');
    frame.src = url;
    frame.addEventListener(
      'load',
      () => {
        frame.contentWindow?.postMessage(null, '*', [port2]);
      },
      { once: true }
    );
    port1.onmessage = ({ data }: MessageEvent<unknown>) => {
      const tried = readTried(data);
      if (tried !== null) {
        end(tried);
      }
    };
    document.body.append(frame);
  });
}

/** What a frame says that it has reached, before there is a page in it; null for other messages. */
export function readTried(data: unknown): Tried | null {
  const { kind, request, navigation } = (data ?? {}) as Record<string, unknown>;
  return kind === 'tried' && typeof request === 'boolean' && typeof navigation === 'boolean'
    ? { request, navigation }
    : null;
}

/** Why no page is shown in this browser; null if one is. */
export function whyUnfit(page: Tried, control: Tried | null): string | null {
  if (page.request || page.navigation) {
    return (
      'This page is not run: this browser does not keep it from the network, as it does not obey ' +
      'the header Connection-Allowlist. Chromium 156 and newer do, and what is built from it.'
    );
  }
  return control?.request === true && control.navigation
    ? null
    : 'This page is not run: whether this browser keeps it from the network could not be tried out, ' +
        'since a frame does not reach the Jupyter server. Look for an extension of the browser, or a ' +
        'proxy, that keeps it from gvisor-kernel/frame/probe; then open the page again.';
}
