/**
 * The requests of one page to the network: by the server, through a route that an administrator has
 * opened for pages. What is counted here is what the person sees of it; the page has no say.
 */

import pLimit from 'p-limit';

import { type FetchClient, type NetworkAnswer, MOST_BODY, readCall } from './fetch.js';

/** Requests of pages at once: a browser opens six connections to a server, JupyterLab needs some. */
const MOST_AT_ONCE = 4;
const MOST_OF_A_PAGE = 3;

/** Between two pieces of an answer: the page asks for each, and may ask 500 times a second. */
const PIECE_MILLISECONDS = 10;

export interface Talk {
  readonly hosts: readonly string[];
  readonly requests: number;
  readonly sent: number;
  readonly received: number;
  readonly open: number;
  readonly stopped: boolean;
}

/** What the page is told of an answer: its head, then its body. */
export type Tell = (value: Readonly<Record<string, unknown>>) => void;

const STOPPED = 'The person has stopped the requests of this page.';

const allPages = pLimit(MOST_AT_ONCE);

class Running {
  readonly abort = new AbortController();
  readonly ended = new Promise<never>((_, reject) =>
    this.abort.signal.addEventListener('abort', () => {
      reject(new Error(STOPPED));
    })
  );
  private credit = 0;
  private wake: (() => void) | null = null;
  private isSent = false;
  private isUnwanted = false;

  /** The request goes to the server, which has not said yet whether it passes it on. */
  sent(): void {
    this.isSent = true;
  }

  /** The server has said to whom the request goes. */
  told(): void {
    this.isSent = false;
    if (this.isUnwanted) {
      this.end();
    }
  }

  /** The page wants no answer. What has left by then is counted first: the page shall not talk
   *  unseen by giving up at once. */
  giveUp(): void {
    this.isUnwanted = true;
    if (!this.isSent) {
      this.end();
    }
  }

  /** The page can take another piece of the body. */
  pull(): void {
    this.credit += 1;
    this.wake?.();
  }

  /** Waits until it can. */
  async pulled(): Promise<void> {
    while (this.credit === 0) {
      this.abort.signal.throwIfAborted();
      await new Promise<void>(resolve => {
        this.wake = resolve;
      });
    }
    this.credit -= 1;
  }

  end(): void {
    this.abort.abort();
    this.wake?.();
  }
}

export class PageNetwork {
  private readonly hosts = new Set<string>();
  private requests = 0;
  private sent = 0;
  private received = 0;
  private stopped = false;
  private readonly running = new Map<unknown, Running>();
  private readonly ownTurns = pLimit(MOST_OF_A_PAGE);

  constructor(
    private readonly client: FetchClient,
    private readonly ticket: string,
    private readonly changed: (talk: Talk) => void
  ) {}

  /** Passes one request of the page on; ends with its answer. An error is for the page. */
  async fetch(id: unknown, args: unknown, tell: Tell): Promise<void> {
    if (this.stopped) {
      throw new Error(STOPPED);
    }
    const call = readCall(args);
    if (call.body.byteLength > MOST_BODY) {
      throw new Error(`A request of a page may have ${MOST_BODY} bytes.`);
    }
    const running = new Running();
    this.running.set(id, running);
    const { signal } = running.abort;
    try {
      const passed = this.ownTurns(() =>
        allPages(async () => {
          signal.throwIfAborted();
          running.sent();
          const answer = await this.client.fetch(this.ticket, call, signal);
          this.hosts.add(answer.host);
          this.requests += 1;
          this.sent += call.body.byteLength;
          this.tellChange();
          running.told();
          await this.passAnswer(answer, running, tell);
        })
      );
      await Promise.race([passed, running.ended]); // one that waits for its turn ends at once, too
    } catch (error) {
      throw signal.aborted ? new Error(STOPPED) : error;
    } finally {
      this.running.delete(id);
      running.abort.abort(); // what is not read yet is not fetched
      this.tellChange();
    }
  }

  private async passAnswer(answer: NetworkAnswer, running: Running, tell: Tell): Promise<void> {
    const { status, headers } = await answer.head();
    tell({ status, headers });
    for (;;) {
      await running.pulled();
      const chunk = await answer.next();
      if (chunk === null) {
        return;
      }
      this.received += chunk.byteLength;
      tell({ chunk });
      this.tellChange();
      await new Promise(resolve => setTimeout(resolve, PIECE_MILLISECONDS));
    }
  }

  pull(id: unknown): void {
    this.running.get(id)?.pull();
  }

  /** The page does not want an answer any more. */
  cancel(id: unknown): void {
    this.running.get(id)?.giveUp();
  }

  /** Ends what is under way, and refuses what comes, until ``allow``. */
  stop(): void {
    this.stopped = true;
    this.end();
    this.tellChange();
  }

  allow(): void {
    this.stopped = false;
    this.tellChange();
  }

  end(): void {
    for (const running of this.running.values()) {
      running.end();
    }
  }

  /** The page has ended itself: it wants no answer of what is under way. */
  leave(): void {
    for (const running of this.running.values()) {
      running.giveUp();
    }
  }

  private tellChange(): void {
    if (this.hosts.size === 0) {
      return; // nothing has left yet
    }
    const { requests, sent, received, stopped } = this;
    const open = this.running.size;
    this.changed({ hosts: [...this.hosts], requests, sent, received, open, stopped });
  }
}
