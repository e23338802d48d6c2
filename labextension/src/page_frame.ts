/**
 * A page in its two frames (``gvisor_kernel/artifacts/frame``), and what it may ask for.
 *
 * Whatever comes from the frame is data of an unknown page: each field is checked here, and nothing
 * of it names a kernel, a file outside the outputs, or an address of this server.
 */

import type { ArtifactClient, ReadFile } from './artifacts.js';
import { messageOf } from './client.js';
import { button, element } from './dom.js';
import { PageNetwork, type Talk } from './page_network.js';

/** What the view around the frame is told. */
export interface PageEvents {
  error(message: string, place: string): void;
  link(url: string): void;
  blocked(url: string): void;
  shown(title: string): void;
  ended(reason: string): void;
  /** A bundle in the frame has sent this, or the page in its name. */
  message?(data: unknown, buffers: readonly ArrayBuffer[]): void;
  /** The content has this height in pixels; only of a source that is ``sized``. */
  size?(height: number): void;
  /** The page talks to a host, or has done so. */
  talk(talk: Talk): void;
}

/** A source, and the bundles that show it; HTML needs none. */
export interface PageSource {
  readonly type: string;
  readonly name: string;
  readonly file: ReadFile;
  readonly isText: boolean;
  readonly scripts: readonly string[];
  /** Whether the height of the content is told. */
  readonly sized?: boolean;
  /** Answers the calls of a source that is no page of the outputs: it keeps nothing, and has no
   *  network. */
  readonly answer?: (method: unknown, args: Readonly<Record<string, unknown>>) => Promise<unknown>;
}

type Message = Readonly<Record<string, unknown>>;

/** Messages to this window, which a page may not send; after that many it is ended. */
const MAX_STRAY = 50;
/** Times that a page may take the focus before it is ended; it may get a key each time. */
const MAX_THEFTS = 2;
/** Pixels of a page's content. */
const MAX_HEIGHT = 20_000;
const LOOK_MILLISECONDS = 50;
/** Requests under way of a page, and of all pages: a browser has six connections to a server, and
 *  JupyterLab saves notebooks by them. */
const MAX_REQUESTS = 2;
const MAX_REQUESTS_OF_ALL = 4;
/** Libraries under which names pages load them from elsewhere. */
const LIBRARIES: readonly (readonly [RegExp, string])[] = [
  [/\btailwind/i, 'tailwind'],
  [/\b(react|react-dom|recharts|d3|lodash|underscore)\b/i, 'libraries']
];

/** Lets so many tasks run at a time; the others wait for their turn. */
class Gate {
  private running = 0;
  private readonly waiting: (() => void)[] = [];

  constructor(private readonly limit: number) {}

  async pass<T>(task: () => Promise<T>): Promise<T> {
    if (this.running >= this.limit) {
      await new Promise<void>(resolve => this.waiting.push(resolve)); // takes over a place
    } else {
      this.running += 1;
    }
    try {
      return await task();
    } finally {
      const next = this.waiting.shift();
      if (next === undefined) {
        this.running -= 1;
      } else {
        next();
      }
    }
  }
}

const gateOfAll = new Gate(MAX_REQUESTS_OF_ALL);

/** Pages that are shown. */
const shown = new Set<PageFrame>();

/** Other listeners of this window expect other senders. Also those of a page that was ended. */
function stopStray(event: MessageEvent): void {
  if (event.origin !== 'null') {
    return;
  }
  const page = [...shown].find(it => it.holds(event.source));
  if (page !== undefined) {
    event.stopImmediatePropagation();
    page.countStray();
  } else if (event.source === null) {
    event.stopImmediatePropagation();
  }
}
if (typeof window !== 'undefined') {
  window.addEventListener('message', stopStray, true);
}

export class PageFrame {
  /** The frame, and the button that lets the person use it. */
  readonly node: HTMLElement;
  readonly network: PageNetwork;
  private readonly frame: HTMLIFrameElement;
  private readonly useButton: HTMLButtonElement;
  private readonly port: MessagePort;
  private readonly gate = new Gate(MAX_REQUESTS);
  private stray = 0;
  private thefts = 0;
  private allowed = false;
  private readonly looking: ReturnType<typeof setInterval>;
  /** What had the focus last, beside the frame. */
  private elsewhere: HTMLElement | null = null;
  private over = false;
  private disposed = false;

  constructor(
    private readonly client: ArtifactClient,
    private readonly source: PageSource,
    private readonly events: PageEvents,
    dark: boolean
  ) {
    const channel = new MessageChannel();
    this.network = new PageNetwork(client.network, source.file.ticket, talk => {
      // Also of a page that has ended itself: it may have talked just before.
      if (!this.disposed) {
        events.talk(talk);
      }
    });
    this.port = channel.port1;
    this.frame = document.createElement('iframe');
    this.frame.className = 'gk-page';
    this.frame.title = source.name;
    this.frame.setAttribute('sandbox', 'allow-scripts allow-forms');
    this.frame.referrerPolicy = 'no-referrer';
    this.frame.src = client.frameUrl;
    this.useButton = button('Use this page', () => {
      this.allowUse(true);
      this.frame.focus();
    });
    this.node = element('div', { class: 'gk-page-holder' }, this.frame, this.useButton);
    this.allowUse(false);
    document.addEventListener('focusin', this.leave, true);
    window.addEventListener('blur', this.giveBack);
    // A frame of another process takes the focus a moment before this window knows.
    this.looking = setInterval(this.giveBack, LOOK_MILLISECONDS);
    shown.add(this);
    this.frame.addEventListener(
      'load',
      () => {
        this.frame.contentWindow?.postMessage(null, '*', [channel.port2]);
      },
      { once: true }
    );
    this.port.onmessage = ({ data }: MessageEvent<unknown>) => {
      if (typeof data === 'object' && data !== null && !this.over) {
        this.receive(data as Message, dark);
      }
    };
  }

  /** Sends data to the bundle in the frame (``Tools.onMessage``). */
  send(data: unknown, buffers: readonly ArrayBuffer[] = []): void {
    if (!this.over) {
      this.port.postMessage({ kind: 'message', data, buffers });
    }
  }

  dispose(): void {
    this.disposed = true;
    this.network.end();
    this.close();
  }

  private close(): void {
    this.over = true;
    shown.delete(this);
    document.removeEventListener('focusin', this.leave, true);
    window.removeEventListener('blur', this.giveBack);
    clearInterval(this.looking);
    this.port.close();
    this.node.remove();
  }

  private end(reason: string): void {
    if (!this.over) {
      this.close();
      this.network.leave();
      this.events.ended(reason);
    }
  }

  /**
   * A page that takes the focus would get what the person types elsewhere. So it may not until the
   * person wants to use it, and not any more when they go on elsewhere. ``realm.js`` obeys; a page
   * that takes it in another way gives it back, and is ended when it does so again and again.
   */
  private allowUse(allowed: boolean): void {
    this.allowed = allowed;
    this.frame.inert = !allowed;
    this.useButton.hidden = allowed;
    this.port.postMessage({ kind: 'use', allowed });
  }

  private readonly leave = (event: FocusEvent): void => {
    if (event.target === this.frame) {
      return;
    }
    this.elsewhere = event.target instanceof HTMLElement ? event.target : null;
    if (this.allowed && event.target !== this.useButton) {
      this.allowUse(false);
    }
  };

  private readonly giveBack = (): void => {
    if (this.over || this.allowed || document.activeElement !== this.frame) {
      return;
    }
    this.frame.blur();
    this.elsewhere?.focus();
    this.thefts += 1;
    if (this.thefts > MAX_THEFTS) {
      this.end('It was ended: it takes the keyboard.');
    }
  };

  /** Whether the person works in the page: it has the focus by their will, and got a click or a
   *  key a moment ago. A page can make clicks of its own, which do not count here. */
  private isInUse(): boolean {
    const active = (navigator as { userActivation?: { isActive: boolean } }).userActivation;
    return this.allowed && document.activeElement === this.frame && active?.isActive === true;
  }

  countStray(): void {
    this.stray += 1;
    if (this.stray > MAX_STRAY) {
      this.end('It was ended: it sends messages to JupyterLab itself.');
    }
  }

  /** Whether a window is the outer frame, or lies in it. */
  holds(source: MessageEventSource | null): boolean {
    const outer = this.frame.contentWindow;
    let window_ = source instanceof MessagePort ? null : (source as Window | null);
    for (let depth = 0; window_ !== null && depth < 4; depth++) {
      if (window_ === outer) {
        return true;
      }
      window_ = window_.parent === window_ ? null : window_.parent;
    }
    return false;
  }

  private receive(message: Message, dark: boolean): void {
    const text = (value: unknown): string =>
      typeof value === 'string' ? value.slice(0, 2000) : '';
    switch (message.kind) {
      case 'ready': {
        const { type, name, file, isText, scripts, sized = false } = this.source;
        this.port.postMessage({
          kind: 'show',
          type,
          name,
          dark,
          renderers: scripts,
          sized,
          source: isText ? new TextDecoder().decode(file.bytes) : file.bytes
        });
        break;
      }
      case 'error': {
        const line = Number(message.line) || 0;
        const file = text(message.file);
        const place = file === '' ? '' : line > 0 ? `${file}, line ${line}` : file;
        this.events.error(text(message.message), place);
        break;
      }
      case 'link':
        // The question takes the focus, and the next key answers it: a page does not choose when.
        if (this.isInUse()) {
          this.events.link(text(message.url));
        }
        break;
      case 'blocked':
        this.events.blocked(text(message.url));
        break;
      case 'shown':
        this.events.shown(text(message.title));
        break;
      case 'message':
        this.receiveMessage(message.text, message.buffers);
        break;
      case 'size':
        this.events.size?.(Math.min(Math.max(0, Number(message.height) || 0), MAX_HEIGHT));
        break;
      case 'left':
        this.end('The page tried to go elsewhere, which pages from sandboxes may not.');
        break;
      case 'unfit':
        this.end(
          'This browser cannot hold a page in its frame: it has no Trusted Types. Use a newer one.'
        );
        break;
      case 'flood':
        this.events.error('The page asks for more than is answered.', '');
        break;
      case 'call':
        void this.answer(message);
        break;
      case 'pull':
        this.network.pull(message.id);
        break;
      case 'cancel':
        this.network.cancel(message.id);
        break;
    }
  }

  private receiveMessage(text: unknown, buffers: unknown): void {
    if (this.events.message === undefined || typeof text !== 'string' || !Array.isArray(buffers)) {
      return;
    }
    let data: unknown;
    try {
      data = JSON.parse(text);
    } catch {
      return; // no message of a bundle
    }
    this.events.message(data, buffers as readonly ArrayBuffer[]);
  }

  private async answer({ id, method, args }: Message): Promise<void> {
    const send = (answer: Readonly<Record<string, unknown>>): void => {
      if (!this.over) {
        this.port.postMessage({ kind: 'answer', id, ...answer });
      }
    };
    try {
      if (method === 'fetch' && this.source.answer === undefined) {
        await this.network.fetch(id, args, value => {
          send({ more: true, value });
        });
        send({ value: null });
        return;
      }
      const value = await this.gate.pass(() =>
        gateOfAll.pass(async () =>
          // Whoever waited for a page that is over asks nothing any more.
          this.over
            ? null
            : await this.call(method, typeof args === 'object' ? (args as Message) : {})
        )
      );
      send({ value });
    } catch (error) {
      send({ error: messageOf(error) });
    }
  }

  private async call(method: unknown, args: Message): Promise<unknown> {
    if (this.source.answer !== undefined) {
      return await this.source.answer(method, args);
    }
    const { ticket } = this.source.file;
    switch (method) {
      case 'storage.set':
      case 'storage.get':
      case 'storage.delete':
      case 'storage.list':
        return await this.client.storage(ticket, method.slice('storage.'.length), args);
      case 'file': {
        const { bytes, type } = await this.client.read({ ticket, path: pathOf(args.path) });
        return { bytes, type };
      }
      case 'library':
        return await this.library(String(args.url), args.kind);
      default:
        throw new Error('A page cannot ask for this.');
    }
  }

  private async library(url: string, kind: unknown): Promise<string> {
    const found = LIBRARIES.find(([pattern]) => pattern.test(url));
    if (kind !== 'script' || found === undefined) {
      throw new Error(
        'it is not bundled, and pages have no network. ' +
          'Have it written into the page, or save it beside the page and change the address.'
      );
    }
    return await this.client.script(found[1]);
  }
}

/** ``./a%20b.png?x#y`` in a page is the file ``a b.png``. */
export function pathOf(url: unknown): string {
  const [path = ''] = String(url).split(/[?#]/, 1);
  try {
    return decodeURIComponent(path).replace(/^\.\//, '');
  } catch {
    return path;
  }
}
