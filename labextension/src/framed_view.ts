/**
 * What outputs and widgets in frames share: a frame as long as the pool has a place for it, its height,
 * and lines with what the person has to know. What a frame draws is said by those that extend this.
 */

import { Widget } from '@lumino/widgets';

import type { ArtifactClient } from './artifacts.js';
import { ServerError, messageOf } from './client.js';
import { element, replace } from './dom.js';
import { FramePool } from './frame_pool.js';
import { frameTheme } from './frame_theme.js';
import { giveLibraries } from './libraries.js';
import { Notes } from './notes.js';
import { type Answered, PageFrame } from './page_frame.js';

/** What views need of the extension. */
export interface ViewContext {
  readonly client: ArtifactClient;
  readonly confirmLink: (url: string) => void;
  readonly isDark: () => boolean;
  /** Calls back when the theme has changed; the function that is returned ends that. */
  onThemeChange(callback: () => void): () => void;
}

const FIRST_HEIGHT = 50;
const MAX_NOTES = 5;
/** Hosts to which there is no route, after which a frame asks the server for no tile any more. */
const MAX_CLOSED = 10;
/** Of one that is not drawn yet. */
const WAITING = 'gk-waiting';

/** Of all outputs and widgets of the page. */
const pool = new FramePool();

export abstract class FramedView extends Widget {
  protected frame: PageFrame | null = null;
  private readonly content = element('div', { class: 'gk-framed-content' });
  protected readonly notes = new Notes('Messages of the output', MAX_NOTES);
  private turn = 0;
  private readonly stopListening: () => void;

  /** @param kind the name of the bundle that draws */
  constructor(
    protected readonly context: ViewContext,
    private readonly kind: 'output' | 'widgets'
  ) {
    super();
    this.addClass('gk-framed-output');
    this.content.classList.add(WAITING);
    this.node.append(this.content, this.notes.node);
    this.stopListening = context.onThemeChange(() =>
      this.frame?.send(frameTheme(context.isDark()))
    );
  }

  /** The text that the bundle begins with. */
  protected abstract get source(): string;
  /** Sends to a new frame what it shows. */
  protected abstract start(frame: PageFrame): void;
  protected abstract failed(message: string, place: string): void;
  /** A bundle in the frame, or a page in its name, has sent this. */
  protected receive?(data: unknown, buffers: readonly ArrayBuffer[]): void;
  /** The kernel that has sent what is shown, to this page; null if none has. */
  protected abstract get sender(): string | null;
  /** Answers a call other than for a library; undefined for what outputs have not. */
  protected call?(
    method: unknown,
    args: Readonly<Record<string, unknown>>
  ): Promise<Answered | undefined>;
  /** This browser holds no frame. */
  refuse(why: string): void {
    pool.leave(this);
    this.notes.add(why);
  }

  /** ``height``: as far as it is known before it is drawn, so that nothing moves later. */
  protected watch(height = FIRST_HEIGHT): void {
    this.content.style.height ||= `${height}px`;
    pool.watch(this);
  }

  /** Browsers load a frame anew when its node is moved. */
  protected override onBeforeDetach(): void {
    pool.leave(this);
  }

  override dispose(): void {
    this.stopListening();
    pool.leave(this);
    super.dispose();
  }

  /** The pool has a place for its frame. */
  begin(): void {
    const turn = ++this.turn;
    this.context.client.script(this.kind).then(
      script => {
        if (turn === this.turn) {
          this.make(script);
        }
      },
      (error: unknown) => this.notes.add(messageOf(error), this.again)
    );
  }

  /** Its frame is given to others: what the person has done in it is lost, its height stays. */
  end(): void {
    this.turn += 1;
    this.frame?.dispose();
    this.frame = null;
    replace(this.content);
    this.content.classList.add(WAITING);
  }

  private make(script: string): void {
    const { client, confirmLink, isDark } = this.context;
    this.notes.clear();
    const give = giveLibraries(client);
    const closed = new Set<string>();
    const start = (): void => {
      frame.send(frameTheme(isDark()));
      this.start(frame);
    };
    const frame = new PageFrame(
      client,
      {
        type: this.kind === 'widgets' ? 'widget' : 'output',
        name: 'output',
        file: {
          bytes: new TextEncoder().encode(this.source).buffer,
          type: 'text/plain',
          ticket: ''
        },
        isText: true,
        scripts: [script],
        answer: async (method, args) => {
          const answer =
            args.kind === 'tile'
              ? await this.tile(String(args.url), closed)
              : method === 'library'
                ? await give(args)
                : await this.call?.(method, args);
          if (answer === undefined) {
            throw new Error('Outputs keep nothing, and have no network.');
          }
          return answer;
        }
      },
      {
        error: (message, place) => this.failed(message, place),
        link: confirmLink,
        blocked: url => {
          const host = URL.canParse(url) ? new URL(url).host : url;
          this.notes.add(`Not loaded, as outputs have no network: ${host}`); // a map asks for many tiles
        },
        ended: (reason, isRefused) => {
          if (isRefused) {
            pool.refuse(reason);
          } else {
            this.notes.add(reason, this.again);
          }
        },
        message: (data, buffers) => this.receive?.(data, buffers),
        size: height => {
          this.content.style.height = `${height}px`;
          this.content.classList.remove(WAITING);
        },
        renewed: start
      },
      isDark()
    );
    this.frame = frame;
    replace(this.content, frame.node);
    start();
  }

  /** Of a map; what a file has kept reaches nothing. The picture is decoded in the frame alone. */
  private async tile(url: string, closed: Set<string>): Promise<Answered> {
    const { sender } = this;
    const { host } = new URL(url);
    if (sender === null || closed.has(host) || closed.size >= MAX_CLOSED) {
      throw new Error('Only what a kernel has sent to this page has routes: run the cell.');
    }
    const value = await this.context.client.tile(sender, url).catch((error: unknown) => {
      closed.add(error instanceof ServerError && error.status === 404 ? host : '');
      throw error;
    });
    return { value, bytes: value.byteLength };
  }

  private readonly again = (): void => {
    this.end();
    this.begin();
  };
}
