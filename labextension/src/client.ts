/** The server's REST interface, docs/rest.md, as functions. Who sends the requests is a parameter. */

import {
  type Applied,
  type Change,
  type Changes,
  type Finding,
  type KernelspecFacts,
  type NotebookTrust,
  type Sandbox,
  type Sandboxes,
  type Undone,
  type Unkept,
  fieldsOf,
  readApplied,
  readChanges,
  readFindings,
  readKernelspecs,
  readLines,
  readSandbox,
  readSandboxes,
  readTrust,
  readUndone,
  readUnkept
} from './contract.js';

export interface Request {
  readonly method: 'GET' | 'POST';
  /** Below ``<base_url>gvisor-kernel/api/``, each part encoded. */
  readonly path: string;
  readonly body?: unknown;
}

export interface Answer {
  readonly status: number;
  json(): Promise<unknown>;
  arrayBuffer(): Promise<ArrayBuffer>;
}

export type Send = (request: Request) => Promise<Answer>;

/** An answer that is no success: its message is for people. */
export class ServerError extends Error {
  constructor(
    readonly status: number,
    message: string
  ) {
    super(message);
  }
}

export type Side = 'old' | 'new';

export class SandboxClient {
  constructor(private readonly send: Send) {}

  /** Whether this server's half can show and apply changes: its description says so. */
  async offersChanges(): Promise<boolean> {
    const { paths } = fieldsOf(await this.get('openapi.json'));
    return Object.keys(fieldsOf(paths)).some(path => path.endsWith('/changes'));
  }

  /** The sandbox of a kernel; null if the kernel is none of ours or the server lacks our half. */
  async kernel(id: string): Promise<Sandbox | null> {
    return orNull(async () => readSandbox(await this.get(this.path(id))));
  }

  /** Files that would be gone with the sandbox; null where it is not known. */
  async unkept(id: string): Promise<Unkept | null> {
    return orNull(async () => readUnkept(await this.get(`${this.path(id)}/unkept`)));
  }

  /** The notebooks of a folder and whether this person trusts them; none where it is not known. */
  async trust(path: string): Promise<readonly NotebookTrust[]> {
    const query = new URLSearchParams({ path }).toString();
    return (await orNull(async () => readTrust(await this.get(`trust?${query}`)))) ?? [];
  }

  /** Whether this person trusts a notebook; null where it is not known. */
  async trusts(path: string): Promise<boolean | null> {
    const found = (await this.trust(path)).find(it => it.path === path);
    return found?.trusted ?? null;
  }

  /** Our kernelspecs with the limits that hold; none where the server does not say. */
  async kernelspecs(): Promise<readonly KernelspecFacts[]> {
    return (await orNull(async () => readKernelspecs(await this.get('kernelspecs')))) ?? [];
  }

  async sandboxes(): Promise<Sandboxes> {
    return readSandboxes(await this.get('sandboxes'));
  }

  async log(id: string): Promise<readonly string[]> {
    return readLines(await this.get(`${this.path(id)}/log?lines=1000`));
  }

  async transcript(id: string): Promise<readonly string[]> {
    return readLines(await this.get(`${this.path(id)}/transcript?lines=1000`));
  }

  async doctor(): Promise<readonly Finding[]> {
    return readFindings(await this.post('doctor', {}));
  }

  async stop(id: string): Promise<void> {
    await this.post(`${this.path(id)}/stop`, {});
  }

  async kill(id: string): Promise<void> {
    await this.post(`${this.path(id)}/kill`, {});
  }

  async warm(kernelName: string, path: string): Promise<void> {
    await this.post('warm', { kernel_name: kernelName, path });
  }

  async changes(id: string): Promise<Changes> {
    return readChanges(await this.get(`${this.path(id)}/changes`));
  }

  /**
   * One side of a change as it was listed: that is what an apply of it writes. The server refuses
   * another content (409), as far as the change ``isChecked``.
   */
  async content(id: string, { path, state }: Change, side: Side): Promise<ArrayBuffer> {
    const query = new URLSearchParams({ path, side, state }).toString();
    const answer = await this.send({
      method: 'GET',
      path: `${this.path(id)}/changes/content?${query}`
    });
    await refuse(answer);
    return answer.arrayBuffer();
  }

  /** Each of ``changes`` was chosen by a person, also those that may run by themselves. */
  async apply(id: string, changes: readonly Change[], force: boolean): Promise<Applied> {
    const chosen = changes.map(({ path, state }) => ({ path, state }));
    const named = changes.filter(({ runs }) => runs !== null).map(({ path }) => path);
    return readApplied(
      await this.post(`${this.path(id)}/changes/apply`, { changes: chosen, named, force })
    );
  }

  async undo(id: string, undo: string): Promise<Undone> {
    return readUndone(await this.post(`${this.path(id)}/changes/undo`, { undo }));
  }

  private path(id: string): string {
    return `kernels/${encodeURIComponent(id)}`;
  }

  private async get(path: string): Promise<unknown> {
    const answer = await this.send({ method: 'GET', path });
    await refuse(answer);
    return answer.json();
  }

  /** Some answers have no body (202, 204): these are null. */
  private async post(path: string, body: unknown): Promise<unknown> {
    const answer = await this.send({ method: 'POST', path, body });
    await refuse(answer);
    return answer.json().catch(() => null);
  }
}

/** What the server does not know, or has no route for, is null. */
async function orNull<T>(ask: () => Promise<T>): Promise<T | null> {
  try {
    return await ask();
  } catch (error) {
    if (error instanceof ServerError && error.status === 404) {
      return null;
    }
    throw error;
  }
}

/** Throws a ServerError for an answer that is no success. */
export async function refuse(answer: Answer): Promise<void> {
  if (answer.status >= 200 && answer.status < 300) {
    return;
  }
  let message = '';
  try {
    const body = (await answer.json()) as { message?: unknown } | null;
    message = typeof body?.message === 'string' ? body.message : '';
  } catch {
    // The body is no JSON: a proxy answered.
  }
  throw new ServerError(answer.status, message || `The server answered ${answer.status}.`);
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
