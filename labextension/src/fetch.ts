/** Requests of pages to the network, docs/rest.md: parts of a length and so many bytes, each way. */

import { type Send, ask } from './client.js';
import { fieldsOf } from './contract.js';

/** Bytes of a request's body that the server takes. */
export const MOST_BODY = 32 * 1024 * 1024;
/** Headers of a request or an answer; the server takes fewer. */
const MOST_HEADERS = 1000;
/** Bytes of a part of an answer. */
const MOST_PART = 1024 * 1024;
/** Bytes above which a piece of an answer gets no more. */
const MOST_PIECE = 1024 * 1024;

/** What a page asks for. The server judges all of it. */
export interface Call {
  readonly url: string;
  readonly method: string;
  readonly headers: readonly (readonly [string, string])[];
  readonly body: Uint8Array;
}

/** What a page has sent as the arguments of a call; whatever is none is left out. */
export function readCall(value: unknown): Call {
  const { url, method, headers, body } = fieldsOf(value);
  return {
    url: typeof url === 'string' ? url : '',
    method: typeof method === 'string' ? method : '',
    headers: readHeaders(headers),
    body: body instanceof ArrayBuffer ? new Uint8Array(body) : new Uint8Array()
  };
}

function readHeaders(value: unknown): [string, string][] {
  // A length that a page has chosen is not walked through.
  return (Array.isArray(value) && value.length <= MOST_HEADERS ? value : []).flatMap(
    (pair: unknown) => {
      const [name, text] = Array.isArray(pair) ? (pair as unknown[]) : [];
      return typeof name === 'string' && typeof text === 'string' ? [[name, text]] : [];
    }
  );
}

/** An answer as it comes. */
export class NetworkAnswer {
  private held = new Uint8Array();

  private constructor(private readonly reader: ReadableStreamDefaultReader<Uint8Array>) {}

  /** Whom the page talks to, as the server says. */
  host = '';

  static async open(body: ReadableStream<Uint8Array>): Promise<NetworkAnswer> {
    const answer = new NetworkAnswer(body.getReader());
    const { host } = await answer.document();
    answer.host = typeof host === 'string' ? host : '';
    return answer;
  }

  async head(): Promise<{ status: number; headers: [string, string][] }> {
    const { status, headers } = await this.document();
    if (typeof status !== 'number' || status < 200 || status > 599) {
      throw new Error('The server sent no status.');
    }
    return { status, headers: readHeaders(headers) };
  }

  /** The next piece of the body, with all that has come of it meanwhile; null at its end. */
  async next(): Promise<ArrayBuffer | null> {
    const parts = [await this.part()];
    if (parts[0]?.byteLength === 0) {
      const why = new TextDecoder().decode(await this.rest());
      if (why !== '') {
        throw new Error(why);
      }
      return null;
    }
    for (let size = 0; size < MOST_PIECE && this.hasPiece();) {
      const part = await this.part();
      size += part.byteLength;
      parts.push(part);
    }
    return await new Blob(parts).arrayBuffer();
  }

  /** Whether the next part is a piece of the body that has come as a whole. */
  private hasPiece(): boolean {
    const { buffer, byteOffset, byteLength } = this.held;
    const size = byteLength < 4 ? 0 : new DataView(buffer, byteOffset).getUint32(0);
    return size > 0 && byteLength >= 4 + size;
  }

  private async document(): Promise<Readonly<Record<string, unknown>>> {
    const part = await this.part();
    if (part.byteLength === 0) {
      throw new Error(new TextDecoder().decode(await this.rest()));
    }
    return fieldsOf(JSON.parse(new TextDecoder().decode(part)));
  }

  private async part(): Promise<Uint8Array<ArrayBuffer>> {
    const size = new DataView((await this.take(4)).buffer).getUint32(0);
    if (size > MOST_PART) {
      throw new Error('The server sent a part that is too large.');
    }
    return await this.take(size);
  }

  private async take(size: number): Promise<Uint8Array<ArrayBuffer>> {
    while (this.held.byteLength < size) {
      if (!(await this.readMore())) {
        throw new Error(
          'The answer broke off: it was not read for a minute, or the connection to the Jupyter server ended.'
        );
      }
    }
    const taken = this.held.slice(0, size);
    this.held = this.held.subarray(size);
    return taken;
  }

  private async rest(): Promise<Uint8Array> {
    while (this.held.byteLength <= MOST_PART && (await this.readMore())) {
      // a text, which ends with the answer
    }
    return this.held;
  }

  private async readMore(): Promise<boolean> {
    const { done, value } = await this.reader.read();
    if (done) {
      return false;
    }
    const both = new Uint8Array(this.held.byteLength + value.byteLength);
    both.set(this.held);
    both.set(value, this.held.byteLength);
    this.held = both;
    return true;
  }
}

export class FetchClient {
  constructor(private readonly send: Send) {}

  /** Sends a page's request. The answer is there when the server has passed the request on. */
  async fetch(ticket: string, call: Call, signal: AbortSignal): Promise<NetworkAnswer> {
    const { url, method, headers, body } = call;
    const head = new TextEncoder().encode(JSON.stringify({ ticket, url, method, headers }));
    const content = new Uint8Array(4 + head.byteLength + body.byteLength);
    new DataView(content.buffer).setUint32(0, head.byteLength);
    content.set(head, 4);
    content.set(body, 4 + head.byteLength);
    const sent = { 'Content-Type': 'application/octet-stream' };
    const init = { method: 'POST', body: content, headers: sent, signal };
    const answer = await ask(this.send, 'fetch', init);
    if (answer.body === null) {
      throw new Error('The server sent no answer.');
    }
    return await NetworkAnswer.open(answer.body);
  }
}
