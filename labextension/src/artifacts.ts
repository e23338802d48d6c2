/** Outputs and what pages keep, docs/rest.md: what the server's answers mean, and how to ask it. */

import { type Send, ask } from './client.js';
import type { Outputs } from './contract.js';
import type { FetchClient } from './fetch.js';

/** A file as it was read. The ticket names it in what its page asks afterwards. */
export interface ReadFile {
  readonly bytes: ArrayBuffer;
  readonly type: string;
  readonly ticket: string;
}

/** Where a file is: in a kernel's outputs, below the server's root, or beside a page. */
export type Place =
  | { readonly kernel_id: string; readonly path: string }
  | { readonly path: string }
  | { readonly ticket: string; readonly path: string };

export class ArtifactClient {
  constructor(
    private readonly send: Send,
    /** Addresses of the extension's own files and of the frame. */
    readonly frameUrl: string,
    private readonly readOwn: (name: string) => Promise<string>,
    private readonly downloadUrl: (path: string) => string,
    /** Requests of pages to the network. */
    readonly network: FetchClient
  ) {}

  async list(kernelId: string): Promise<Outputs> {
    const query = new URLSearchParams({ kernel_id: kernelId }).toString();
    const answer = await ask(this.send, `outputs?${query}`);
    return (await answer.json()) as Outputs;
  }

  async read(place: Place): Promise<ReadFile> {
    const query = new URLSearchParams({ ...place }).toString();
    const answer = await ask(this.send, `outputs/content?${query}`);
    return {
      bytes: await answer.arrayBuffer(),
      type: answer.headers.get('Gvisor-Kernel-Type') ?? 'application/octet-stream',
      ticket: answer.headers.get('Gvisor-Kernel-Ticket') ?? ''
    };
  }

  /** A picture of the web, by a route of the kernel. @throws Error if it has none there */
  async tile(kernelId: string, url: string): Promise<ArrayBuffer> {
    const query = new URLSearchParams({ url }).toString();
    const path = `kernels/${encodeURIComponent(kernelId)}/tiles?${query}`;
    const answer = await ask(this.send, path);
    return await answer.arrayBuffer();
  }

  /** The address at which the browser downloads a file. */
  download(place: Place): string {
    const query = new URLSearchParams({ ...place, download: '1' }).toString();
    return this.downloadUrl(`outputs/content?${query}`);
  }

  /** One call of a page's storage; the answer, JSON, is what the page gets. */
  async storage(ticket: string, call: Readonly<Record<string, unknown>>): Promise<ArrayBuffer> {
    const body = JSON.stringify({ ticket, ...call });
    const answer = await ask(this.send, 'storage', { method: 'POST', body });
    return await answer.arrayBuffer();
  }

  private readonly scripts = new Map<string, Promise<string>>();

  /** The text of a bundle that runs in the frame. */
  script(name: string): Promise<string> {
    return this.once(name, () => this.readOwn(`static/frame/${name}.js`));
  }

  /** The text of a library of the server's environment. */
  library(name: string): Promise<string> {
    return this.once(`library ${name}`, async () => {
      return await (await ask(this.send, `libraries/${encodeURIComponent(name)}`)).text();
    });
  }

  private once(key: string, read: () => Promise<string>): Promise<string> {
    let text = this.scripts.get(key);
    if (text === undefined) {
      text = read();
      // A later page asks again: the person may install it. A page may ask in a loop.
      text.catch(() => setTimeout(() => this.scripts.delete(key), 10_000));
      this.scripts.set(key, text);
    }
    return text;
  }
}
