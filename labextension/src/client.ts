/** The server's REST interface, docs/rest.md, as functions. Who sends the requests is a parameter. */

import type {
  Applied,
  Change,
  Changes,
  Checkpoints,
  Findings,
  Kernelspecs,
  Lines,
  Rewound,
  Sandbox,
  Sandboxes,
  Saved,
  Trust,
  Undone,
  Unkept
} from './contract.js';

/** Sends a request; ``path`` is below ``<base_url>gvisor-kernel/api/``, each part encoded. */
export type Send = (path: string, init: RequestInit) => Promise<Response>;

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

  /** The sandbox of a kernel; null if the kernel is none of ours or the server lacks our half. */
  async kernel(id: string): Promise<Sandbox | null> {
    return orNull(this.get<Sandbox>(pathOf(id)));
  }

  /** Files that would be gone with the sandbox; null where it is not known. */
  async unkept(id: string): Promise<Unkept | null> {
    const answer = await orNull(ask(this.send, `${pathOf(id)}/unkept`));
    return answer === null || answer.status === 204 ? null : ((await answer.json()) as Unkept);
  }

  /** The notebooks of a folder and whether this person trusts them; none where it is not known. */
  async trust(path: string): Promise<Trust['notebooks']> {
    const query = new URLSearchParams({ path }).toString();
    return (await orNull(this.get<Trust>(`trust?${query}`)))?.notebooks ?? [];
  }

  /** Whether this person trusts a notebook, as far as the server knows. */
  async trusts(path: string): Promise<boolean> {
    return (await this.trust(path)).some(it => it.path === path && it.trusted);
  }

  /** Our kernelspecs with the limits that hold; none where the server does not say. */
  async kernelspecs(): Promise<Kernelspecs['kernelspecs']> {
    return (await orNull(this.get<Kernelspecs>('kernelspecs')))?.kernelspecs ?? [];
  }

  async sandboxes(): Promise<Sandboxes> {
    return this.get('sandboxes');
  }

  async lines(id: string, of: 'log' | 'transcript'): Promise<Lines['lines']> {
    return (await this.get<Lines>(`${pathOf(id)}/${of}?lines=1000`)).lines;
  }

  async doctor(): Promise<Findings['checks']> {
    return (await this.post<Findings>('doctor', {})).checks;
  }

  async end(id: string, how: 'stop' | 'kill' | 'hibernate' | 'resume'): Promise<void> {
    await this.post(`${pathOf(id)}/${how}`, {});
  }

  /**
   * Starts a kernel that goes on from the same state, for the notebook at ``path``.
   *
   * @param from the checkpoint whose state that is; null: the present one
   * @returns its id
   */
  async branch(id: string, path: string, from: string | null): Promise<string> {
    const body = { path, ...(from === null ? {} : { from }) };
    return (await this.post<{ id: string }>(`${pathOf(id)}/branch`, body)).id;
  }

  /** The saved states of a kernel, the oldest first. Does not wake it. */
  async checkpoints(id: string): Promise<Checkpoints> {
    return this.get(`${pathOf(id)}/checkpoints`);
  }

  /** ``name``: empty for one that is free. Returns the name. */
  async saveCheckpoint(id: string, name: string): Promise<string> {
    const body = name === '' ? {} : { name };
    return (await this.post<Saved>(`${pathOf(id)}/checkpoints`, body)).name;
  }

  /**
   * Returns which outputs are not as they were, and what was undone.
   *
   * @param undo ids of what was applied, as the person has seen it
   */
  async rewind(
    id: string,
    state: { name: string; time?: number },
    undo: readonly string[]
  ): Promise<Rewound> {
    return this.post(`${pathOf(id)}/rewind`, { name: state.name, time: state.time, undo });
  }

  /** Remembers for notebooks of a folder whether their kernels see its project. */
  async showProject(path: string, shown: boolean): Promise<void> {
    await ask(this.send, 'projects', { method: 'PUT', body: JSON.stringify({ path, shown }) });
  }

  async warm(kernelName: string, path: string): Promise<void> {
    await this.post('warm', { kernel_name: kernelName, path });
  }

  async changes(id: string): Promise<Changes> {
    return this.get(`${pathOf(id)}/changes`);
  }

  /**
   * One side of a change as it was listed: that is what an apply of it writes. The server refuses
   * another content (409), as far as the state ``isChecked``.
   */
  async content(id: string, { path, state }: Change, side: Side): Promise<ArrayBuffer> {
    const query = new URLSearchParams({ path, side, state }).toString();
    const answer = await ask(this.send, `${pathOf(id)}/changes/content?${query}`);
    return answer.arrayBuffer();
  }

  /** Each of ``changes`` was chosen by a person, also those that may run by themselves. */
  async apply(id: string, changes: readonly Change[], force: boolean): Promise<Applied> {
    const chosen = changes.map(({ path, state }) => ({ path, state }));
    const named = changes.filter(({ runs }) => runs !== null).map(({ path }) => path);
    return this.post(`${pathOf(id)}/changes/apply`, { changes: chosen, named, force });
  }

  async undo(id: string, undo: string): Promise<Undone> {
    return this.post(`${pathOf(id)}/changes/undo`, { undo });
  }

  private async get<T>(path: string): Promise<T> {
    return (await (await ask(this.send, path)).json()) as T;
  }

  /** Some answers have no body (202, 204): these are null. */
  private async post<T>(path: string, body: unknown): Promise<T> {
    const answer = await ask(this.send, path, { method: 'POST', body: JSON.stringify(body) });
    return (await answer.json().catch(() => null)) as T;
  }
}

function pathOf(id: string): string {
  return `kernels/${encodeURIComponent(id)}`;
}

/** A state ends with the SHA-256 of the file in the sandbox, if the sandbox has said it. Another
 *  content than that which was listed is neither shown nor applied then. */
export function isChecked({ state, type, kind }: Change): boolean {
  return /\.[0-9a-f]{64}$/.test(state) || type !== 'file' || kind === 'removed';
}

/** What the server does not know, or has no route for, is null. */
async function orNull<T>(asked: Promise<T>): Promise<T | null> {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof ServerError && error.status === 404) {
      return null;
    }
    throw error;
  }
}

/** @throws ServerError for an answer that is no success */
export async function ask(send: Send, path: string, init: RequestInit = {}): Promise<Response> {
  const answer = await send(path, init);
  if (answer.ok) {
    return answer;
  }
  // The body is no JSON if a proxy answered.
  const body = (await answer.json().catch(() => null)) as { message?: unknown } | null;
  const message = typeof body?.message === 'string' ? body.message : '';
  throw new ServerError(answer.status, message || `The server answered ${answer.status}.`);
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
