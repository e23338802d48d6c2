/**
 * The states of a kernel's widgets, as data: no widget is made here, and no value is interpreted.
 *
 * What a kernel or a frame sends is counted before it is kept. Attributes are kept apart, in maps:
 * a name like ``__proto__`` is one among others. Buffers stay beside their attribute, with the path
 * that the frame puts them to.
 */

const REFERENCE = 'IPY_MODEL_';
export const VIEW_TYPE = 'application/vnd.jupyter.widget-view+json';
export const STATE_TYPE = 'application/vnd.jupyter.widget-state+json';
const OUTPUT_MODULE = '@jupyter-widgets/output';
const LINKS = ['LinkModel', 'DirectionalLinkModel'];

/** A page with that many widgets is a page with a loop that makes them. */
const MAX_MODELS = 20_000;
/** Of all states of a kernel; a tab of JupyterLab has 4 GB. */
const MAX_BYTES = 256 * 1024 * 1024;
const MAX_NAMES = 2000;
/** Memory of an attribute beside its value. */
const BYTES_OF_ATTRIBUTE = 300;
const MAX_VALUES = 2_000_000;
const MAX_BUFFERS = 1000;
const MAX_PATH = 50;
const MAX_ID = 200;
/** Models that one view may need. */
const MAX_NEEDED = 5000;

type Path = readonly (string | number)[];

export interface Buffers {
  readonly paths: readonly Path[];
  readonly buffers: readonly ArrayBuffer[];
}

interface Attribute {
  readonly value: unknown;
  readonly bytes: number;
  readonly references: readonly string[];
  readonly buffers: readonly { readonly path: Path; readonly data: ArrayBuffer }[];
}

export interface Model {
  readonly id: string;
  readonly name: string;
  readonly module: string;
  readonly version: string;
  readonly attributes: Map<string, Attribute>;
}

/** What a frame is told of a model. */
export interface ModelData {
  readonly id: string;
  readonly name: string;
  readonly module: string;
  readonly version: string;
  readonly state: readonly (readonly [string, unknown])[];
  readonly paths: readonly Path[];
}

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const textOf = (value: unknown): string =>
  typeof value === 'string' && value.length <= MAX_ID ? value : '';

/** Whether a text can be the id of a comm. */
export const isId = (value: unknown): value is string => textOf(value) !== '';

/** Returns about how many bytes a value takes, and which models it names; null if it is too much. */
export function measure(value: unknown): { bytes: number; references: string[] } | null {
  const references = new Set<string>();
  const waiting: unknown[] = [value];
  let bytes = 0;
  let count = 0;
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    count += 1;
    bytes += 8;
    if (typeof next === 'string') {
      bytes += 2 * next.length;
      if (next.startsWith(REFERENCE) && isId(next.slice(REFERENCE.length))) {
        references.add(next.slice(REFERENCE.length));
      }
    } else if (Array.isArray(next)) {
      count += next.length;
      if (count > MAX_VALUES) {
        return null;
      }
      for (const item of next) {
        waiting.push(item ?? null);
      }
    } else if (isRecord(next)) {
      for (const [key, item] of Object.entries(next)) {
        bytes += 2 * key.length;
        waiting.push(item ?? null);
        if (key === VIEW_TYPE && isRecord(item) && isId(item.model_id)) {
          references.add(item.model_id); // in an Output widget
        }
      }
    }
    if (bytes > MAX_BYTES || count > MAX_VALUES) {
      return null;
    }
  }
  return { bytes, references: [...references] };
}

function copyOf(buffer: unknown): ArrayBuffer | null {
  if (buffer instanceof ArrayBuffer) {
    return buffer;
  }
  // A part of the whole message, which would be sent with it.
  return ArrayBuffer.isView(buffer)
    ? new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength).slice().buffer
    : null;
}

/** Returns buffers and the paths that they belong to; null if they are none. */
export function readBuffers(paths: unknown, buffers: unknown): Buffers | null {
  const all: unknown = buffers ?? [];
  const places: unknown = paths ?? [];
  if (!Array.isArray(all) || !Array.isArray(places) || all.length < places.length) {
    return null;
  }
  if (places.length > MAX_BUFFERS) {
    return null;
  }
  const found: { paths: Path[]; buffers: ArrayBuffer[] } = { paths: [], buffers: [] };
  for (const [index, path] of places.entries()) {
    const data = copyOf(all[index]);
    const isPath =
      Array.isArray(path) &&
      path.length > 0 &&
      path.length <= MAX_PATH &&
      path.every(part => isId(part) || Number.isSafeInteger(part));
    if (data === null || !isPath) {
      return null;
    }
    found.paths.push(path as Path);
    found.buffers.push(data);
  }
  return found;
}

/** Buffers of a custom message, which have no paths. */
export function readLooseBuffers(buffers: unknown): ArrayBuffer[] | null {
  const all: unknown = buffers ?? [];
  if (!Array.isArray(all) || all.length > MAX_BUFFERS) {
    return null;
  }
  const found = all.map(copyOf);
  return found.includes(null) ? null : (found as ArrayBuffer[]);
}

export class WidgetStore {
  private readonly models = new Map<string, Model>();
  private readonly allLinks = new Set<string>();
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

  /** Keeps a new model, or the whole state of a known one; returns false if it is too much. */
  open(id: unknown, state: unknown, buffers: Buffers): boolean {
    if (!isId(id) || !isRecord(state)) {
      return false;
    }
    const known = this.models.get(id);
    if (known === undefined) {
      const [name, module] = [textOf(state._model_name), textOf(state._model_module)];
      if (this.models.size >= MAX_MODELS || name === '' || module === '') {
        return false;
      }
      const version = textOf(state._model_module_version);
      this.models.set(id, { id, name, module, version, attributes: new Map() });
    }
    if (!this.update(id, state, buffers)) {
      if (known === undefined) {
        this.close(id);
      }
      return false;
    }
    const { name, module } = this.models.get(id) ?? { name: '', module: '' };
    if (module === '@jupyter-widgets/controls' && LINKS.includes(name)) {
      this.allLinks.add(id);
    }
    return true;
  }

  /** Keeps new values of attributes; returns false, and keeps none, if they are too much. */
  update(id: string, state: unknown, { paths, buffers }: Buffers): boolean {
    const model = this.models.get(id);
    if (model === undefined || !isRecord(state)) {
      return false;
    }
    const changes: [string, Attribute][] = [];
    let more = 0;
    let names = model.attributes.size;
    const entries = Object.entries(state);
    if (entries.length > MAX_NAMES) {
      return false; // before each of them is measured
    }
    const owned = new Map<unknown, { path: Path; data: ArrayBuffer }[]>();
    for (const [index, path] of paths.entries()) {
      const data = buffers[index];
      if (data !== undefined) {
        const own = owned.get(path[0]) ?? [];
        own.push({ path, data });
        owned.set(path[0], own);
      }
    }
    for (const [name, value] of entries) {
      const facts = measure(value);
      if (facts === null || name.length > MAX_ID) {
        return false;
      }
      const own = owned.get(name) ?? [];
      const old = model.attributes.get(name);
      names += old === undefined ? 1 : 0;
      const bytes = own.reduce((sum, { data }) => sum + data.byteLength, facts.bytes);
      more += bytes - (old?.bytes ?? -BYTES_OF_ATTRIBUTE);
      changes.push([name, { value, bytes, references: facts.references, buffers: own }]);
    }
    // Whole buffers are attributes, too, and are in no object that JSON can write.
    for (const [index, path] of paths.entries()) {
      const [name] = path;
      const data = buffers[index];
      if (typeof name !== 'string' || data === undefined || Object.hasOwn(state, name)) {
        continue;
      }
      const old = model.attributes.get(name);
      names += old === undefined ? 1 : 0;
      more += data.byteLength - (old?.bytes ?? -BYTES_OF_ATTRIBUTE);
      const one = { value: null, bytes: data.byteLength, references: [] };
      changes.push([name, { ...one, buffers: [{ path, data }] }]);
    }
    if (names > MAX_NAMES || this.total + more > MAX_BYTES) {
      return false;
    }
    for (const [name, attribute] of changes) {
      model.attributes.set(name, attribute);
    }
    namesOf.delete(model);
    this.total += more;
    return true;
  }

  close(id: string): void {
    const model = this.models.get(id);
    for (const { bytes } of model?.attributes.values() ?? []) {
      this.total -= bytes + BYTES_OF_ATTRIBUTE;
    }
    this.models.delete(id);
    this.allLinks.delete(id);
  }

  clear(): void {
    this.models.clear();
    this.allLinks.clear();
    this.total = 0;
  }

  /**
   * Returns what a frame needs to show models: they, those that they name, and so on; and the links
   * that one end of is among them. Those in ``known`` are left out. A ring of models ends.
   */
  needed(roots: readonly string[], known: ReadonlySet<string> = new Set()): Model[] {
    const found = new Map<string, Model>();
    const waiting: string[] = [];
    const ends = new Map<string, string[]>();
    for (const link of this.allLinks) {
      for (const id of this.links(link)) {
        const links = ends.get(id) ?? [];
        links.push(link);
        ends.set(id, links);
        if (known.has(id)) {
          waiting.push(link);
        }
      }
    }
    waiting.push(...roots); // first
    for (let id = waiting.pop(); id !== undefined; id = waiting.pop()) {
      const model = this.models.get(id);
      if (model !== undefined && !found.has(id) && found.size < MAX_NEEDED) {
        found.set(id, model);
        waiting.push(...(ends.get(id) ?? []), ...namesIn(model));
      }
    }
    return [...found.values()].filter(({ id }) => !known.has(id));
  }

  /** The ends of a link; none if it is no link. */
  links(id: string): readonly string[] {
    const model = this.allLinks.has(id) ? this.models.get(id) : undefined;
    return model === undefined ? [] : namesIn(model);
  }

  isOutput(id: string): boolean {
    return this.models.get(id)?.module === OUTPUT_MODULE;
  }

  /** The models as notebooks keep them (``jupyter.widget-state``), without those above the limit. */
  save(maxBytes: number): Record<string, unknown> {
    const state: Record<string, unknown> = {};
    let left = maxBytes;
    for (const model of this.models.values()) {
      const attributes = [...model.attributes];
      left -= attributes.reduce((sum, [, { bytes }]) => sum + bytes, 0);
      if (left < 0) {
        break;
      }
      const buffers = attributes.flatMap(([, { buffers: own }]) =>
        own.map(({ path, data }) => ({ encoding: 'base64', path, data: toBase64(data) }))
      );
      define(state, model.id, {
        model_name: model.name,
        model_module: model.module,
        model_module_version: model.version,
        state: Object.fromEntries(attributes.map(([name, { value }]) => [name, value])),
        ...(buffers.length > 0 ? { buffers } : {})
      });
    }
    return { version_major: 2, version_minor: 0, state };
  }

  /** Keeps what a notebook has kept; anything else is left out. */
  load(saved: unknown): void {
    const models = isRecord(saved) ? saved.state : null;
    for (const [id, model] of Object.entries(isRecord(models) ? models : {})) {
      if (!isRecord(model) || !isRecord(model.state)) {
        continue;
      }
      const buffers = Array.isArray(model.buffers) ? (model.buffers as unknown[]) : [];
      const read = buffers.filter(isRecord).map(it => ({ path: it.path, data: fromBase64(it) }));
      const found = readBuffers(
        read.map(({ path }) => path),
        read.map(({ data }) => data)
      );
      const facts = {
        _model_name: model.model_name,
        _model_module: model.model_module,
        _model_module_version: model.model_module_version
      };
      this.open(id, { ...model.state, ...facts }, found ?? { paths: [], buffers: [] });
    }
  }
}

/** Which models each one names, until it changes: a link is asked for that again and again. */
const namesOf = new WeakMap<Model, readonly string[]>();

function namesIn(model: Model): readonly string[] {
  let names = namesOf.get(model);
  if (names === undefined) {
    const all = [...model.attributes.values()].flatMap(({ references }) => references);
    names = [...new Set(all)];
    namesOf.set(model, names);
  }
  return names;
}

function define(object: object, name: string, value: unknown): void {
  Object.defineProperty(object, name, {
    value,
    enumerable: true,
    writable: true,
    configurable: true
  });
}

/** Returns attributes of a model for a frame, all of them unless names are given. */
export function describe(
  model: Model,
  names: Iterable<string> = model.attributes.keys()
): { data: ModelData; buffers: ArrayBuffer[] } {
  const state: [string, unknown][] = [];
  const paths: Path[] = [];
  const buffers: ArrayBuffer[] = [];
  for (const name of names) {
    const attribute = model.attributes.get(name);
    if (attribute !== undefined) {
      state.push([name, attribute.value]);
      paths.push(...attribute.buffers.map(({ path }) => path));
      buffers.push(...attribute.buffers.map(({ data }) => data));
    }
  }
  const { id, name, module, version } = model;
  return { data: { id, name, module, version, state, paths }, buffers };
}

function toBase64(data: ArrayBuffer): string {
  let text = '';
  const bytes = new Uint8Array(data);
  for (let start = 0; start < bytes.length; start += 30_000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 30_000));
  }
  return btoa(text);
}

function fromBase64({ data, encoding }: Readonly<Record<string, unknown>>): ArrayBuffer | null {
  if (typeof data !== 'string' || encoding !== 'base64' || data.length > MAX_BYTES) {
    return null;
  }
  try {
    return Uint8Array.from(atob(data), letter => letter.charCodeAt(0)).buffer;
  } catch {
    return null;
  }
}
