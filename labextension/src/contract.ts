/**
 * What the server's answers mean. Every field is checked here and nowhere else: the rest of the
 * extension works with these types. Texts come from the server and, in part, from a sandbox, so
 * they are shown as text, never as markup.
 */

export type State = 'starting' | 'running' | 'stopped' | 'ended';

export interface Mount {
  readonly source: string;
  readonly target: string;
  readonly readOnly: boolean;
  readonly description: string;
}

export interface Route {
  readonly name: string;
  readonly kind: string;
  readonly hosts: readonly string[];
}

/** Files that are gone with a sandbox. ``more``: there are more than were counted. */
export interface Unkept {
  readonly total: number;
  readonly more: boolean;
  /** The first ten. */
  readonly paths: readonly string[];
}

/** What a sandbox that has ended took with it. */
export interface Lost {
  readonly kernelId: string;
  readonly kernelName: string;
  readonly unkept: Unkept;
}

export interface NotebookTrust {
  readonly path: string;
  readonly trusted: boolean;
}

/** A kernelspec of ours with the limits that hold now. Those with a wrong setting are left out. */
export interface KernelspecFacts {
  readonly name: string;
  readonly image: string;
  readonly memoryLimit: number;
  readonly diskLimit: number;
  readonly processes: number;
  readonly cpuShares: number;
}

export interface Sandbox {
  readonly kernelId: string;
  readonly id: string;
  readonly identity: string;
  readonly kernelName: string;
  readonly displayName: string;
  readonly language: string;
  readonly state: State;
  readonly memoryUsed: number | null;
  readonly memoryLimit: number;
  readonly cpuSeconds: number | null;
  readonly processes: number | null;
  readonly image: string;
  readonly created: number;
  readonly folder: string;
  readonly mounts: readonly Mount[];
  readonly egress: readonly Route[];
  readonly start: { readonly kind: string; readonly seconds: number } | null;
  /** What a start waits for; empty if it does not. */
  readonly waitsFor: string;
  /** The machine on which it runs, if that is another one. */
  readonly node: string | null;
  readonly lastDeath: { readonly when: number; readonly reason: string } | null;
  readonly release: { readonly gvisorKernel: string; readonly runsc: string };
  readonly hasLog: boolean;
  readonly hasTranscript: boolean;
  readonly workspaceIsHome: boolean;
  readonly outputs: string | null;
  /** Only of a sandbox that has ended. */
  readonly unkept: Unkept | null;
}

export interface Leftover {
  readonly id: string;
  readonly state: string;
  readonly folder: string;
  readonly created: number;
}

export interface Sandboxes {
  readonly sandboxes: readonly Sandbox[];
  readonly leftovers: readonly Leftover[];
}

export interface Change {
  readonly path: string;
  readonly kind: string;
  readonly type: string;
  readonly size: number;
  readonly oldSize: number | null;
  /** What the person looked at: sent back with "apply", never read here. */
  readonly state: string;
  /** Whether ``state`` says which content was listed: another one is neither shown nor applied. */
  readonly isChecked: boolean;
  readonly conflict: string | null;
  /** Why it may run later without being opened: then it is applied only if it is named. */
  readonly runs: string | null;
}

export interface Changes {
  readonly changes: readonly Change[];
  readonly more: boolean;
  readonly total: number;
}

export interface Refused {
  readonly path: string;
  readonly reason: string;
}

export interface Applied {
  readonly applied: readonly string[];
  readonly refused: readonly Refused[];
  /** What to give to undo; null if nothing was changed. */
  readonly undo: string | null;
}

export interface Undone {
  readonly undone: readonly string[];
  readonly refused: readonly Refused[];
}

/** One line of ``gvisor-kernel doctor``: what was looked at, what was seen, what to do. */
export interface Finding {
  readonly name: string;
  readonly state: string;
  readonly fact: string;
  readonly fix: string;
}

type Fields = Readonly<Record<string, unknown>>;

/** An answer that does not have the form of the contract. */
export class AnswerError extends Error {}

export function fieldsOf(value: unknown): Fields {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new AnswerError('The server sent something else than an object.');
  }
  return value as Fields;
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : '';
}

function textOrNull(value: unknown): string | null {
  return typeof value === 'string' ? value : null;
}

function count(value: unknown): number | null {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : null;
}

function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? (value as readonly unknown[]) : [];
}

function optional<T>(value: unknown, read: (fields: Fields) => T): T | null {
  return value === null || value === undefined ? null : read(fieldsOf(value));
}

function required(value: unknown, name: string): string {
  if (typeof value !== 'string' || value === '') {
    throw new AnswerError(`The server's answer has no ${name}.`);
  }
  return value;
}

const STATES: readonly string[] = ['starting', 'running', 'stopped', 'ended'];

export function readSandbox(value: unknown): Sandbox {
  const fields = fieldsOf(value);
  const memory = fieldsOf(fields.memory ?? {});
  const release = fieldsOf(fields.release ?? {});
  const workspace = fieldsOf(fields.workspace ?? {});
  const state = text(fields.state);
  return {
    kernelId: required(fields.kernel_id, 'kernel_id'),
    id: text(fields.id),
    identity: text(fields.identity),
    kernelName: text(fields.kernel_name),
    displayName: text(fields.display_name),
    language: text(fields.language),
    state: STATES.includes(state) ? (state as State) : 'ended',
    memoryUsed: count(memory.used),
    memoryLimit: count(memory.limit) ?? 0,
    cpuSeconds: count(fields.cpu_seconds),
    processes: count(fields.processes),
    image: text(fields.image),
    created: count(fields.created) ?? 0,
    folder: text(fields.folder),
    mounts: list(fields.mounts).map(readMount),
    egress: list(fields.egress).map(readRoute),
    start: optional(fields.start, it => ({
      kind: text(it.kind),
      seconds: count(it.seconds) ?? 0
    })),
    waitsFor: text(fields.waits_for),
    node: textOrNull(fields.node),
    lastDeath: optional(fields.last_death, it => ({
      when: count(it.when) ?? 0,
      reason: text(it.reason)
    })),
    release: { gvisorKernel: text(release.gvisor_kernel), runsc: text(release.runsc) },
    hasLog: fields.log === true,
    hasTranscript: fields.transcript === true,
    workspaceIsHome: workspace.is_home === true,
    outputs: textOrNull(workspace.outputs),
    unkept: optional(fields.unkept, readUnkept)
  };
}

/** At most this many names are shown, whatever the server sends. */
const MOST_PATHS = 10;

export function readUnkept(value: unknown): Unkept {
  const fields = fieldsOf(value);
  const paths = list(fields.paths).map(text).filter(Boolean).slice(0, MOST_PATHS);
  return { total: count(fields.total) ?? paths.length, more: fields.more === true, paths };
}

export function readLost(value: unknown): Lost {
  const fields = fieldsOf(value);
  return {
    kernelId: required(fields.kernel_id, 'kernel_id'),
    kernelName: text(fields.kernel_name),
    unkept: readUnkept(fields)
  };
}

export function readTrust(value: unknown): readonly NotebookTrust[] {
  return list(fieldsOf(value).notebooks).map(it => {
    const one = fieldsOf(it);
    return { path: text(one.path), trusted: one.trusted === true };
  });
}

export function readKernelspecs(value: unknown): readonly KernelspecFacts[] {
  return list(fieldsOf(value).kernelspecs).flatMap(it => {
    const one = fieldsOf(it);
    const limits = one.limits === null ? null : fieldsOf(one.limits);
    return limits === null
      ? []
      : [
          {
            name: required(one.name, 'name'),
            image: text(one.image),
            memoryLimit: count(limits.memory) ?? 0,
            diskLimit: count(limits.disk) ?? 0,
            processes: count(limits.processes) ?? 0,
            cpuShares: count(limits.cpu_shares) ?? 0
          }
        ];
  });
}

function readMount(value: unknown): Mount {
  const fields = fieldsOf(value);
  return {
    source: text(fields.source),
    target: text(fields.target),
    readOnly: fields.read_only === true,
    description: text(fields.description)
  };
}

function readRoute(value: unknown): Route {
  const fields = fieldsOf(value);
  return { name: text(fields.name), kind: text(fields.kind), hosts: list(fields.hosts).map(text) };
}

export function readSandboxes(value: unknown): Sandboxes {
  const fields = fieldsOf(value);
  return {
    sandboxes: list(fields.sandboxes).map(readSandbox),
    leftovers: list(fields.leftovers).map(it => {
      const one = fieldsOf(it);
      return {
        id: text(one.id),
        state: text(one.state),
        folder: text(one.folder),
        created: count(one.created) ?? 0
      };
    })
  };
}

export function readLines(value: unknown): readonly string[] {
  return list(fieldsOf(value).lines).map(text);
}

/** A state ends with the SHA-256 of the file in the sandbox, if the sandbox has said it. */
function hasDigest(state: string): boolean {
  return /\.[0-9a-f]{64}$/.test(state);
}

export function readChanges(value: unknown): Changes {
  const fields = fieldsOf(value);
  const changes = list(fields.changes).map(it => {
    const one = fieldsOf(it);
    return {
      path: required(one.path, 'path'),
      kind: text(one.kind),
      type: text(one.type),
      size: count(one.size) ?? 0,
      oldSize: count(one.old_size),
      state: text(one.state),
      isChecked: hasDigest(text(one.state)) || one.type !== 'file' || one.kind === 'removed',
      conflict: textOrNull(one.conflict),
      runs: textOrNull(one.runs)
    };
  });
  return { changes, more: fields.more === true, total: count(fields.total) ?? changes.length };
}

export function readUndone(value: unknown): Undone {
  const fields = fieldsOf(value);
  return { undone: list(fields.undone).map(text), refused: readRefused(fields.refused) };
}

function readRefused(value: unknown): readonly Refused[] {
  return list(value).map(it => {
    const one = fieldsOf(it);
    return { path: text(one.path), reason: text(one.reason) };
  });
}

export function readApplied(value: unknown): Applied {
  const fields = fieldsOf(value);
  return {
    applied: list(fields.applied).map(text),
    refused: readRefused(fields.refused),
    undo: textOrNull(fields.undo)
  };
}

export function readFindings(value: unknown): readonly Finding[] {
  return list(fieldsOf(value).checks).map(it => {
    const one = fieldsOf(it);
    return {
      name: text(one.name),
      state: text(one.state),
      fact: text(one.fact),
      fix: text(one.fix)
    };
  });
}
