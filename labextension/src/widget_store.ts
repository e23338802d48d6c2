/**
 * The states of a kernel's widgets, as data: no widget is made here, and no value is interpreted.
 *
 * What a kernel or a frame sends is counted before it is kept. Attributes are kept apart, in maps:
 * a name like ``__proto__`` is one among others. Buffers stay beside their attribute, with the path
 * that the frame puts them to.
 */

import { fromByteArray } from 'base64-js';

export const VIEW_TYPE = 'application/vnd.jupyter.widget-view+json';
export const STATE_TYPE = 'application/vnd.jupyter.widget-state+json';

/** A page with that many widgets is a page with a loop that makes them. */
export const MAX_MODELS = 20_000;
/** Of all states of a kernel; a tab of JupyterLab has 4 GB. */
const MAX_BYTES = 256 * 1024 * 1024;
const MAX_NAMES = 2000;
/** Memory of an attribute, and of each value in it, beside its text. */
const BYTES_OF_ATTRIBUTE = 300;
const BYTES_OF_VALUE = 16;
const MAX_BUFFERS = 1000;
const MAX_PATH = 50;
const MAX_ID = 200;

export interface Buffer {
  readonly path: readonly (string | number)[];
  readonly data: ArrayBuffer;
}

export interface Attribute {
  readonly value: unknown;
  readonly bytes: number;
  readonly buffers: readonly Buffer[];
}

export interface Model {
  readonly id: string;
  readonly attributes: Map<string, Attribute>;
}

/** What a frame is told of a model: names beside values, as an object would have some by itself. */
export interface ModelState {
  readonly state: readonly (readonly [string, unknown])[];
  readonly buffers: readonly Buffer[];
}

export type Fields = Readonly<Record<string, unknown>>;

export const isRecord = (value: unknown): value is Fields =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

export const recordOf = (value: unknown): Fields => (isRecord(value) ? value : {});

/** Whether a text can be the id of a comm, or a name in a state. */
export const isId = (value: unknown): value is string =>
  typeof value === 'string' && value !== '' && value.length <= MAX_ID;

/** About how many bytes a value takes; ``Infinity`` if no state may be as large. */
export function measure(value: unknown): number {
  const waiting: unknown[] = [value];
  let bytes = 0;
  while (waiting.length > 0) {
    const next = waiting.pop();
    const items = Array.isArray(next) ? next : isRecord(next) ? Object.entries(next) : [];
    bytes += BYTES_OF_VALUE + (typeof next === 'string' ? 2 * next.length : 0);
    if (bytes + BYTES_OF_VALUE * (items.length + waiting.length) > MAX_BYTES) {
      return Infinity; // before each of them is looked at
    }
    for (const item of items) {
      waiting.push(item);
    }
  }
  return bytes;
}

/** A copy of its own: what a message brings is a part of the whole message. */
function copyOf(buffer: unknown): ArrayBuffer | null {
  if (buffer instanceof ArrayBuffer) {
    return buffer;
  }
  return ArrayBuffer.isView(buffer)
    ? new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength).slice().buffer
    : null;
}

/** Returns the buffers of a message with the paths that they belong to; null if they are none. */
export function readBuffers(paths: unknown, buffers: unknown): Buffer[] | null {
  const places: unknown = paths ?? [];
  const all = readLooseBuffers(buffers);
  if (!Array.isArray(places) || all === null || all.length < places.length) {
    return null;
  }
  const isPath = (path: unknown): path is Buffer['path'] =>
    Array.isArray(path) &&
    path.length > 0 &&
    path.length <= MAX_PATH &&
    path.every(part => isId(part) || Number.isSafeInteger(part));
  return places.every(isPath) ? all.flatMap((data, index) => pair(places[index], data)) : null;
}

const pair = (path: Buffer['path'] | undefined, data: ArrayBuffer): Buffer[] =>
  path === undefined ? [] : [{ path, data }];

/** Buffers of a custom message, which have no paths. */
export function readLooseBuffers(buffers: unknown): ArrayBuffer[] | null {
  const all: unknown = buffers ?? [];
  const found = Array.isArray(all) && all.length <= MAX_BUFFERS ? all.map(copyOf) : [null];
  return found.includes(null) ? null : (found as ArrayBuffer[]);
}

export class WidgetStore {
  private readonly models = new Map<string, Model>();
  private total = 0;

  get bytes(): number {
    return this.total;
  }

  get size(): number {
    return this.models.size;
  }

  ids(): readonly string[] {
    return [...this.models.keys()];
  }

  get(id: string): Model | undefined {
    return this.models.get(id);
  }

  /** Keeps a new model; null if it is none, or too much. */
  open(id: unknown, state: unknown, buffers: readonly Buffer[]): Model | null {
    const { _model_name: name, _model_module: module } = recordOf(state);
    const isModel = isId(id) && isId(name) && isId(module) && !this.models.has(id);
    if (!isModel || this.models.size >= MAX_MODELS) {
      return null;
    }
    const model = { id, attributes: new Map() };
    this.models.set(id, model);
    if (this.update(id, state, buffers) === null) {
      this.models.delete(id);
      return null;
    }
    return model;
  }

  /** Keeps new values of attributes, and returns their names; null, and keeps none, if they are too
   *  much. */
  update(id: string, state: unknown, buffers: readonly Buffer[]): readonly string[] | null {
    const names = isRecord(state) ? Object.keys(state) : null;
    if (names === null || names.length > MAX_NAMES) {
      return null; // before each of them is measured
    }
    const changes = new Map<string, Attribute>();
    // Whole buffers are attributes, too, and are in no object that JSON can write.
    for (const name of new Set([...names, ...buffers.map(({ path }) => String(path[0]))])) {
      const value = Object.hasOwn(state as Fields, name) ? (state as Fields)[name] : null;
      const own = buffers.filter(({ path }) => path[0] === name);
      const bytes = own.reduce((sum, { data }) => sum + data.byteLength, measure(value));
      changes.set(name, { value, bytes: bytes + 2 * name.length, buffers: own });
    }
    return this.put(id, changes) ? [...changes.keys()] : null;
  }

  /** Keeps values that are measured already; returns false, and keeps none, if they are too much. */
  put(id: string, changes: ReadonlyMap<string, Attribute>): boolean {
    const attributes = this.models.get(id)?.attributes;
    let count = attributes?.size ?? 0;
    let more = 0;
    for (const [name, { bytes }] of changes) {
      const old = attributes?.get(name);
      count += old === undefined ? 1 : 0;
      more += bytes - (old?.bytes ?? -BYTES_OF_ATTRIBUTE);
    }
    if (attributes === undefined || count > MAX_NAMES || this.total + more > MAX_BYTES) {
      return false;
    }
    for (const [name, attribute] of changes) {
      attributes.set(name, attribute);
    }
    this.total += more;
    return true;
  }

  close(id: string): void {
    const model = this.models.get(id);
    for (const { bytes } of model?.attributes.values() ?? []) {
      this.total -= bytes + BYTES_OF_ATTRIBUTE;
    }
    this.models.delete(id);
  }

  clear(): void {
    this.models.clear();
    this.total = 0;
  }

  /** The models as notebooks keep them (``jupyter.widget-state``), without those above the limit. */
  save(maxBytes: number): Fields {
    const saved: [string, unknown][] = [];
    let left = maxBytes;
    for (const model of this.models.values()) {
      const { state: entries, buffers } = describe(model);
      left -= [...model.attributes.values()].reduce((sum, { bytes }) => sum + bytes, 0);
      if (left < 0) {
        break;
      }
      const state = Object.fromEntries(entries);
      const kept = {
        model_name: state._model_name,
        model_module: state._model_module,
        model_module_version: state._model_module_version ?? '',
        state,
        buffers: buffers.map(({ path, data }) => ({
          encoding: 'base64',
          path,
          data: fromByteArray(new Uint8Array(data))
        }))
      };
      saved.push([model.id, kept]);
    }
    return { version_major: 2, version_minor: 0, state: Object.fromEntries(saved) };
  }
}

/** Returns attributes of a model for a frame, all of them unless names are given. */
export function describe(
  { attributes }: Model,
  names: Iterable<string> = attributes.keys()
): ModelState {
  const found = [...names].flatMap(name => {
    const attribute = attributes.get(name);
    return attribute === undefined ? [] : [[name, attribute] as const];
  });
  return {
    state: found.map(([name, { value }]) => [name, value]),
    buffers: found.flatMap(([, { buffers }]) => buffers)
  };
}
