/** Outputs and what pages keep, docs/rest.md: what the server's answers mean, and how to ask it. */

import { type Answer, type Request, refuse } from './client.js';
import { fieldsOf } from './contract.js';
import type { FetchClient } from './fetch.js';

export interface OutputFile {
  readonly path: string;
  readonly size: number;
  /** Seconds of Unix time. */
  readonly modified: number;
  readonly type: string;
}

export interface Outputs {
  readonly files: readonly OutputFile[];
  /** There are files that are not listed. */
  readonly more: boolean;
}

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

export interface BinaryAnswer extends Answer {
  header(name: string): string | null;
}

export type SendBinary = (request: Request) => Promise<BinaryAnswer>;

export class ArtifactClient {
  constructor(
    private readonly send: SendBinary,
    /** Addresses of the extension's own files and of the frame. */
    readonly frameUrl: string,
    private readonly readOwn: (name: string) => Promise<string>,
    private readonly downloadUrl: (path: string) => string,
    /** Requests of pages to the network. */
    readonly network: FetchClient
  ) {}

  async list(kernelId: string): Promise<Outputs> {
    const query = new URLSearchParams({ kernel_id: kernelId }).toString();
    const answer = await this.get(`outputs?${query}`);
    return readOutputs(await answer.json());
  }

  async read(place: Place): Promise<ReadFile> {
    const answer = await this.get(
      `outputs/content?${new URLSearchParams({ ...place }).toString()}`
    );
    return {
      bytes: await answer.arrayBuffer(),
      type: answer.header('Gvisor-Kernel-Type') ?? 'application/octet-stream',
      ticket: answer.header('Gvisor-Kernel-Ticket') ?? ''
    };
  }

  /** A picture of the web, by a route of the kernel. @throws Error if it has none there */
  async tile(kernelId: string, url: string): Promise<ArrayBuffer> {
    const query = new URLSearchParams({ url }).toString();
    const answer = await this.get(`kernels/${encodeURIComponent(kernelId)}/tiles?${query}`);
    return await answer.arrayBuffer();
  }

  /** The address at which the browser downloads a file. */
  download(place: Place): string {
    const query = new URLSearchParams({ ...place, download: '1' }).toString();
    return this.downloadUrl(`outputs/content?${query}`);
  }

  /** One call of a page's storage; the answer, JSON, is what the page gets. */
  async storage(ticket: string, call: Readonly<Record<string, unknown>>): Promise<ArrayBuffer> {
    const answer = await this.send({ method: 'POST', path: 'storage', body: { ticket, ...call } });
    await refuse(answer);
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
      const answer = await this.get(`libraries/${encodeURIComponent(name)}`);
      return new TextDecoder().decode(await answer.arrayBuffer());
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

  private async get(path: string): Promise<BinaryAnswer> {
    const answer = await this.send({ method: 'GET', path });
    await refuse(answer);
    return answer;
  }
}

export function readOutputs(value: unknown): Outputs {
  const { files, more } = fieldsOf(value);
  return {
    files: (Array.isArray(files) ? files : []).map(readOutputFile),
    more: more === true
  };
}

function readOutputFile(value: unknown): OutputFile {
  const { path, size, modified, type } = fieldsOf(value);
  return {
    path: typeof path === 'string' ? path : '',
    size: typeof size === 'number' ? size : 0,
    modified: typeof modified === 'number' ? modified : 0,
    type: typeof type === 'string' ? type : ''
  };
}
