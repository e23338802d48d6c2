/**
 * A page in its two frames (``gvisor_kernel/artifacts/frame``), and what it may ask for.
 *
 * Whatever comes from the frame is data of an unknown page: each field is checked here, and nothing
 * of it names a kernel, a file outside the outputs, or an address of this server.
 */

import pLimit from 'p-limit';

import type { ArtifactClient, ReadFile } from './artifacts.js';
import { messageOf } from './client.js';
import { fieldsOf } from './contract.js';
import { connectTo, findUnfit, makeFrame, whyUnfit } from './frame_fit.js';
import { PageNetwork, type Talk } from './page_network.js';
import { PageUse } from './page_use.js';

/** What the view around the frame is told. */
export interface PageEvents {
  error(message: string, place: string): void;
  link(url: string): void;
  blocked(url: string): void;
  /** ``isRefused``: it was never run, as this browser does not hold it. */
  ended(reason: string, isRefused: boolean): void;
  /** A bundle in the frame has sent this, or the page in its name. */
  message?(data: unknown, buffers: readonly ArrayBuffer[]): void;
  /** The frame is loaded anew, and knows nothing of what was sent; without it, an output is ended. */
  renewed?(): void;
  /** The content has this height in pixels; only of a source that is ``sized``. */
  size?(height: number): void;
  /** The page talks to a host, or has done so. */
  talk?(talk: Talk): void;
}

/** A source, and the bundles that show it; HTML needs none. */
export interface PageSource {
  readonly type: string;
  readonly name: string;
  readonly file: ReadFile;
  readonly isText: boolean;
  readonly scripts: readonly string[];
  /** What the person may do in it: use it, read it, or only look at it (null). */
  readonly use?: 'page' | 'document' | null;
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
const MAX_STRAY = 10;
/** Looks for the click by which a person follows a link. */
const LOOKS_FOR_CLICK = 20;
const LOOK_MILLISECONDS = 50;
const LOOK_FOR_FRAME_MILLISECONDS = 1000;
/** The outer frame has said by then whether it holds a page: it waits for a busy server. */
const LOOKS_UNTIL_READY = 60;
/** It has a frame in it by then, at first and when it is loaded anew. */
const LOOKS_UNTIL_FILLED = [10, 30] as const;
const LOST = 'Its frame has ended, twice: it crashed, as for want of memory, or did not load.';
/** Pixels of a page's content. */
const MAX_HEIGHT = 20_000;
/** Requests under way of a page, and of all pages: a browser has six connections to a server, and
 *  JupyterLab saves notebooks by them. */
const MAX_REQUESTS = 2;
const MAX_REQUESTS_OF_ALL = 4;
/** Of them for the tiles of maps, whose servers may be slow: the next output waits for its library. */
const MAX_TILES_OF_ALL = 2;
/** Libraries under which names pages load them from elsewhere. */
const LIBRARIES: readonly (readonly [RegExp, string])[] = [
  [/\btailwind/i, 'tailwind'],
  [/\b(react|react-dom|recharts|d3|lodash|underscore)\b/i, 'libraries']
];

/** Bytes of files and values that a page with pictures needs. After that a request keeps its place for
 *  as long as two of a page, or four of all, bring 4 MiB a second each. */
const FREE_BYTES = 64 * 1024 * 1024;
const BYTES_PER_MILLISECOND = (4 * 1024 * 1024) / 1000;
const MAX_TEXT = 2000;

const turnsOfAll = pLimit(MAX_REQUESTS_OF_ALL);
const turnsOfTiles = pLimit(MAX_TILES_OF_ALL);

/** Pages that are shown. */
const shown = new Set<PageFrame>();

/** Other listeners of this window expect other senders. Also those of a page that was ended. */
function stopStray(event: MessageEvent): void {
  if (event.origin !== 'null') {
    return;
  }
  const page = [...shown].find(it => it.holds(event.source));
  if (page !== undefined || event.source === null) {
    event.stopImmediatePropagation();
    page?.countStray();
  }
}
if (typeof window !== 'undefined') {
  window.addEventListener('message', stopStray, true);
}

export class PageFrame {
  readonly network: PageNetwork;
  private readonly frame: HTMLIFrameElement;
  private readonly use: PageUse;
  private readonly turns = pLimit(MAX_REQUESTS);
  private url: string;
  private port: MessagePort;
  /** How often it was looked for since it was loaded. */
  private looks = 0;
  private readonly watching: ReturnType<typeof setInterval>;
  private isRenewed = false;
  /** That of the document which is ready. */
  private window: Window | null = null;
  private spent = 0;
  private stray = 0;
  private following: ReturnType<typeof setTimeout> | undefined;
  private over = false;
  private disposed = false;

  constructor(
    private readonly client: ArtifactClient,
    private readonly source: PageSource,
    private readonly events: PageEvents,
    private readonly dark: boolean
  ) {
    this.network = new PageNetwork(client.network, source.file.ticket, talk => {
      // Also of a page that has ended itself: it may have talked just before.
      if (!this.disposed) {
        events.talk?.(talk);
      }
    });
    const isPage = source.answer === undefined;
    const { use = 'page' } = source;
    // Pages have a process each. Outputs of cells share one: there are many, and they are small.
    this.url = isPage ? this.ownProcess : client.frameUrl;
    this.frame = makeFrame(this.url);
    this.frame.className = 'gk-page';
    this.frame.title = source.name;
    this.use = new PageUse(this.frame, isPage ? use : 'output', {
      allow: allowed => this.port.postMessage({ kind: 'use', allowed }),
      point: (what, x, y) => this.port.postMessage({ kind: 'point', what, x, y }),
      stolen: () => this.end('It was ended: it took the keyboard, which nobody had given it.')
    });
    this.port = this.connect();
    // No event tells that a frame's process has ended; the frame in it is gone with it.
    this.watching = setInterval(this.look, LOOK_FOR_FRAME_MILLISECONDS);
    shown.add(this);
  }

  /** The frame, and the layer that lets the person use it. */
  get node(): HTMLElement {
    return this.use.node;
  }

  private get ownProcess(): string {
    return `${this.client.frameUrl}?alone=1`;
  }

  private connect(): MessagePort {
    const port = connectTo(this.frame, 'hold');
    port.onmessage = ({ data }: MessageEvent<unknown>) => {
      if (typeof data === 'object' && data !== null && port === this.port && !this.over) {
        void this.receive(data as Message);
      }
    };
    this.looks = 0;
    return port;
  }

  /** One that crashed before it was ready looks like one that a busy server is late with. */
  private readonly look = (): void => {
    const isFilled = this.frame.contentWindow?.length !== 0;
    if (this.window !== null && isFilled) {
      return;
    }
    this.looks += 1;
    const most = isFilled ? LOOKS_UNTIL_READY : LOOKS_UNTIL_FILLED[this.isRenewed ? 1 : 0];
    if (this.window !== null || this.looks >= most) {
      this.renew();
    }
  };

  /** Loads the frame anew, once. It gets a process of its own: another output may be to blame. */
  private renew(): void {
    // A frame that is moved to another place of the page is loaded anew by the browser.
    const isMoved = this.window !== null && this.window !== this.frame.contentWindow;
    if (!isMoved && (this.isRenewed || (this.source.answer && !this.events.renewed))) {
      this.end(LOST);
      return;
    }
    this.isRenewed ||= !isMoved;
    this.use.leave();
    this.network.end();
    this.port.close();
    this.window = null;
    this.port = this.connect();
    this.url = this.frame.src = this.ownProcess;
    this.events.renewed?.();
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
    clearInterval(this.watching);
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

  /**
   * Follows a link that the person has clicked: the page has the focus by their will, and got a click
   * or a key a moment ago. A page can make clicks of its own, which do not count here. The browser
   * tells of a click by another way than the page tells of its link, on a busy machine later.
   */
  private followLink(url: string, looks = LOOKS_FOR_CLICK): void {
    clearTimeout(this.following);
    if (this.use.isEntered && navigator.userActivation.isActive) {
      this.use.leave(); // or the page would have what is typed to the question
      this.events.link(url);
    } else if (this.use.isEntered && looks > 0) {
      this.following = setTimeout(() => this.followLink(url, looks - 1), LOOK_MILLISECONDS);
    }
  }

  /** A message of the page, or its outer frame, to this window. */
  countStray(): void {
    this.stray += 1;
    if (this.stray > MAX_STRAY) {
      this.end('It was ended: it sends messages to JupyterLab itself.');
    }
  }

  /** Whether a window is the outer frame, or lies in it. */
  holds(source: MessageEventSource | null): boolean {
    const outer = this.frame.contentWindow;
    return outer !== null && (source === outer || (source as Window | null)?.parent === outer);
  }

  /** Shows the page, if the browser holds it. */
  private async begin(): Promise<void> {
    this.window = this.frame.contentWindow;
    const { port } = this;
    const why = await findUnfit(this.url);
    if (why !== null) {
      this.end(why, true);
    } else if (!this.over) {
      const { type, name, file, isText, scripts, sized = false } = this.source;
      port.postMessage({
        kind: 'show',
        type,
        name,
        dark: this.dark,
        renderers: scripts,
        sized,
        source: isText ? new TextDecoder().decode(file.bytes) : file.bytes
      });
    }
  }

  private async receive(message: Message): Promise<void> {
    switch (message.kind) {
      case 'ready':
        await this.begin();
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
        this.end(whyUnfit(1, null) ?? '', true);
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
    const { port } = this;
    const send = (answer: Readonly<Record<string, unknown>>): void => {
      if (!this.over) {
        port.postMessage({ kind: 'answer', id, ...answer });
      }
    };
    try {
      if (method === 'fetch' && this.source.answer === undefined) {
        await this.network.fetch(id, args, value => send({ more: true, value }));
        send({ value: null });
        return;
      }
      const values = fieldsOf(args);
      const answer = async (): Promise<unknown> => {
        // Whoever waited for a page that is over asks nothing any more.
        const { value, bytes } = this.over
          ? { value: null, bytes: 0 }
          : await this.call(method, values);
        this.spent += bytes;
        // Reading a large file again and again would leave JupyterLab little time of its own.
        await (this.spent > FREE_BYTES && delay(bytes / BYTES_PER_MILLISECOND));
        return value;
      };
      const inTurn = (): Promise<unknown> => turnsOfAll(answer);
      const value = await this.turns(() =>
        values.kind === 'tile' ? turnsOfTiles(inTurn) : inTurn()
      );
      send({ value });
    } catch (error) {
      send({ error: messageOf(error) });
    }
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
        const json = typeof args.json === 'string' ? args.json : ''; // nobody here looks into it
        const [key, prefix, shared] = [text(args.key), text(args.prefix), args.shared === true];
        const call = { do: method.slice('storage.'.length), key, prefix, shared, json };
        const value = await this.client.storage(ticket, call);
        return { value, bytes: value.byteLength + 2 * json.length };
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

const delay = (milliseconds: number): Promise<void> =>
  new Promise(resolve => setTimeout(resolve, milliseconds));

const text = (value: unknown): string =>
  typeof value === 'string' ? value.slice(0, MAX_TEXT) : '';

/** ``./a%20b.png?x#y`` in a page is the file ``a b.png``. */
export function pathOf(url: unknown): string {
  const [path = ''] = String(url).split(/[?#]/, 1);
  try {
    return decodeURIComponent(path).replace(/^\.\//, '');
  } catch {
    return path;
  }
}
