/**
 * A page in its two frames (``gvisor_kernel/artifacts/frame``), and what it may ask for.
 *
 * Whatever comes from the frame is data of an unknown page: each field is checked here, and nothing
 * of it names a kernel, a file outside the outputs, or an address of this server.
 */

import type { ArtifactClient, ReadFile, StorageCall } from './artifacts.js';
import { messageOf } from './client.js';
import { fieldsOf } from './contract.js';
import { type Tried, readTried, tryControl, whyUnfit } from './frame_fit.js';
import { PageNetwork, type Talk } from './page_network.js';
import { PageUse } from './page_use.js';
import { Gate, Rate } from './turns.js';

/** What the view around the frame is told. */
export interface PageEvents {
  error(message: string, place: string): void;
  link(url: string): void;
  blocked(url: string): void;
  shown(title: string): void;
  /** ``isRefused``: it was never run, as this browser does not hold it. */
  ended(reason: string, isRefused: boolean): void;
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
  readonly answer?: (method: unknown, args: Readonly<Record<string, unknown>>) => Promise<Answered>;
}

/** An answer to a page, and the bytes that it is charged for. */
export interface Answered {
  readonly value: unknown;
  readonly bytes: number;
}

type Message = Readonly<Record<string, unknown>>;

/** Messages to this window, which a page may not send; after that many it is ended. */
const MAX_STRAY = 50;
/** Looks for the click by which a person follows a link. */
const LOOKS_FOR_CLICK = 20;
const LOOK_MILLISECONDS = 50;
/** Pixels of a page's content. */
const MAX_HEIGHT = 20_000;
/** Requests under way of a page, and of all pages: a browser has six connections to a server, and
 *  JupyterLab saves notebooks by them. */
const MAX_REQUESTS = 2;
const MAX_REQUESTS_OF_ALL = 4;
/** Libraries under which names pages load them from elsewhere. */
const LIBRARIES: readonly (readonly [RegExp, string])[] = [
  [/\btailwind/i, 'tailwind'],
  [/\b(react|react-dom|recharts|d3|lodash|underscore)\b/i, 'libraries']
];

/** Bytes of files and values: at once, which a page with pictures needs, and a second after that. */
const BYTES_AT_ONCE = 64 * 1024 * 1024;
const BYTES_PER_SECOND = 8 * 1024 * 1024;
const MAX_TEXT = 2000;
/** Characters of a value of the storage; the server judges it. */
const MAX_VALUE = 32 * 1024 * 1024;

const gateOfAll = new Gate(MAX_REQUESTS_OF_ALL);
const rateOfAll = new Rate(2 * BYTES_PER_SECOND, 4 * BYTES_AT_ONCE);

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
    page.receiveStray(event);
  } else if (event.source === null) {
    event.stopImmediatePropagation();
  }
}
if (typeof window !== 'undefined') {
  window.addEventListener('message', stopStray, true);
}

export class PageFrame {
  /** The frame, and the layer that lets the person use it. */
  readonly node: HTMLElement;
  readonly network: PageNetwork;
  private readonly frame: HTMLIFrameElement;
  private readonly use: PageUse;
  private readonly port: MessagePort;
  private readonly gate = new Gate(MAX_REQUESTS);
  private readonly rate = new Rate(BYTES_PER_SECOND, BYTES_AT_ONCE);
  private tried: Tried | null = null;
  private stray = 0;
  private following: ReturnType<typeof setTimeout> | undefined;
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
    // Pages have a process each. Outputs of cells share one: there are many, and they are small.
    this.frame.src = source.answer === undefined ? `${client.frameUrl}?alone=1` : client.frameUrl;
    this.use = new PageUse(this.frame, source.name, {
      allow: allowed => {
        this.port.postMessage({ kind: 'use', allowed });
      },
      press: (x, y) => {
        this.port.postMessage({ kind: 'press', x, y });
      },
      stolen: () => {
        this.end('It was ended: it took the keyboard, which nobody had given it.');
      }
    });
    this.node = this.use.node;
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
        void this.receive(data as Message, dark);
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
    clearTimeout(this.following);
    this.use.dispose();
    this.port.close();
  }

  private end(reason: string, isRefused = false): void {
    if (!this.over) {
      this.close();
      this.network.leave();
      this.events.ended(reason, isRefused);
    }
  }

  /** Whether the person works in the page: it has the focus by their will, and got a click or a
   *  key a moment ago. A page can make clicks of its own, which do not count here. */
  private isInUse(): boolean {
    const active = (navigator as { userActivation?: { isActive: boolean } }).userActivation;
    return this.use.isEntered && active?.isActive === true;
  }

  /**
   * Follows a link that the person has clicked. The question takes the focus, and the next key
   * answers it: a page does not choose when. The browser tells of a click by another way than the
   * page tells of its link, on a busy machine later.
   */
  private followLink(url: string, looks = LOOKS_FOR_CLICK): void {
    clearTimeout(this.following);
    if (this.isInUse()) {
      this.use.leave(); // or the page would have what is typed to the question
      this.events.link(url);
    } else if (this.use.isEntered && looks > 0) {
      this.following = setTimeout(() => {
        this.followLink(url, looks - 1);
      }, LOOK_MILLISECONDS);
    }
  }

  /** A message to this window. The outer frame says so that the page has heard that the person has
   *  left it: the browser keeps the order of such messages and of changes of the focus. */
  receiveStray({ source, data }: MessageEvent): void {
    if (source === this.frame.contentWindow && data === 'out') {
      this.use.heard();
    } else {
      this.countStray();
    }
  }

  private countStray(): void {
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

  /** Shows the page, if the browser holds it. */
  private async begin(dark: boolean): Promise<void> {
    if (this.tried === null) {
      return; // the outer frame says that first
    }
    const why = whyUnfit(this.tried, await tryControl(this.client.frameUrl));
    if (why !== null) {
      this.end(why, true);
    } else if (!this.over) {
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
    }
  }

  private async receive(message: Message, dark: boolean): Promise<void> {
    switch (message.kind) {
      case 'tried':
        this.tried = readTried(message);
        if (this.tried?.request === true || this.tried?.navigation === true) {
          this.end(whyUnfit(this.tried, null) ?? '', true);
        }
        break;
      case 'ready':
        await this.begin(dark);
        break;
      case 'leave':
        this.use.leave();
        break;
      case 'error': {
        const line = Number(message.line) || 0;
        const file = text(message.file);
        const place = file === '' ? '' : line > 0 ? `${file}, line ${line}` : file;
        this.events.error(text(message.message), place);
        break;
      }
      case 'link':
        this.followLink(text(message.url));
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
          'This browser cannot hold a page in its frame: it has no Trusted Types. Use a newer one.',
          true
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
          this.over ? null : await this.callAndPay(method, fieldsOf(args))
        )
      );
      send({ value });
    } catch (error) {
      send({ error: messageOf(error) });
    }
  }

  /** Reading a large file again and again would leave JupyterLab little time of its own. */
  private async callAndPay(method: unknown, args: Message): Promise<unknown> {
    const rates = [this.rate, rateOfAll];
    await Promise.all(rates.map(rate => rate.wait()));
    const { value, bytes } = await this.call(method, args);
    rates.forEach(rate => {
      rate.spend(bytes);
    });
    return value;
  }

  private async call(method: unknown, args: Message): Promise<Answered> {
    if (this.source.answer !== undefined) {
      return await this.source.answer(method, args);
    }
    const { ticket } = this.source.file;
    switch (method) {
      case 'storage.set':
      case 'storage.get':
      case 'storage.delete':
      case 'storage.list': {
        const call = { ...readStorageCall(args), do: method.slice('storage.'.length) };
        const value = await this.client.storage(ticket, call);
        return { value, bytes: value.byteLength + 2 * (call.json?.length ?? 0) };
      }
      case 'file': {
        const { bytes, type } = await this.client.read({ ticket, path: pathOf(text(args.path)) });
        return { value: { bytes, type }, bytes: bytes.byteLength };
      }
      case 'library': {
        const value = await this.library(text(args.url), args.kind);
        return { value, bytes: 2 * value.length };
      }
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

const text = (value: unknown): string =>
  typeof value === 'string' ? value.slice(0, MAX_TEXT) : '';

/** What a page wants of its storage; ``json`` is a text that nobody here looks into. */
function readStorageCall(args: Message): StorageCall {
  const { key, prefix, shared, json } = args;
  return {
    key: text(key),
    prefix: text(prefix),
    shared: shared === true,
    ...(typeof json === 'string' && json.length <= MAX_VALUE ? { json } : {})
  };
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
