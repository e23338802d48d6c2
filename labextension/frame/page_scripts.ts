/**
 * Scripts of an output: in their order, those that they add, and the libraries that they ask for.
 *
 * The headers let no script element run, so their texts are evaluated (realm.js). What a page would
 * load from elsewhere is asked of the extension, which knows some libraries by their names.
 */

import type { Tools } from './renderer.js';

interface Library {
  readonly name: string;
  readonly text: string;
}

interface Found {
  readonly name: string;
  readonly blob: Blob;
}

interface Define {
  (...args: unknown[]): void;
  amd?: object;
}

type Globals = Record<string, unknown>;

const SCRIPT_TYPES =
  /^(|text\/javascript|application\/(x-)?javascript|application\/ecmascript|module)$/i;
const IS_MODULE = /^\s*(import|export)\b|[;}]\s*export\s*\{/m;
/** Variables that libraries set, by what modules import them by. */
const GLOBALS: readonly (readonly [RegExp, string])[] = [
  [/\bvega-embed\b/, 'vegaEmbed'],
  [/\bvega-lite\b/, 'vegaLite'],
  [/\bvega\b/, 'vega'],
  [/\bplotly/, 'Plotly'],
  [/\bjquery\b/, 'jQuery'],
  [/\bleaflet\b/, 'L'],
  [/\blodash\b/, '_'],
  [/\breact-dom\b/, 'ReactDOM'],
  [/\breact\b/, 'React'],
  [/\bd3\b/, 'd3']
];
/** What realm.js makes in place of a link. */
const REMOVED = 'gvisor-removed';
/** Ways to put nodes into a document. */
const INSERTS = [
  [Node.prototype, ['appendChild', 'insertBefore', 'replaceChild']],
  [Element.prototype, ['append', 'prepend', 'replaceChildren', 'before', 'after', 'replaceWith']],
  [DocumentFragment.prototype, ['append', 'prepend', 'replaceChildren']]
] as const;

export class PageScripts {
  private readonly done = new Set<Node>();
  private readonly addresses = new WeakMap<HTMLScriptElement, string>();
  /** Addresses that were asked for, and names of libraries that have run. */
  private readonly loads = new Map<string, Promise<void>>();
  private readonly loaded = new Set<string>();
  private readonly modules = new Map<string, Promise<unknown>>();
  private readonly blobs = new Map<string, Blob>();
  /** The last of the scripts that were added and load a library: they run in their order. */
  private last: Promise<void> = Promise.resolve();
  private running: HTMLScriptElement | null = null;

  constructor(private readonly tools: Tools) {
    Object.defineProperty(document, 'currentScript', {
      get: () => this.running,
      configurable: true
    });
    this.watchAddresses();
    this.watchInsertion();
    this.keepBlobs();
    this.offerRequire();
  }

  /** Runs the scripts below a node, one after the other. */
  async runAll(root: Element): Promise<void> {
    for (const script of root.querySelectorAll('script')) {
      await this.run(script);
    }
    await this.settle();
  }

  /** Resolves when the libraries are there that scripts have asked for until now. */
  async settle(): Promise<void> {
    let last: Promise<void>;
    do {
      ({ last } = this);
      await last;
    } while (last !== this.last);
  }

  /** Loads a library by its name or a page's address; one of a name runs once. */
  load(url: string): Promise<void> {
    let load = this.loads.get(url);
    if (load === undefined) {
      load = this.textOf(url).then(library => this.runOnce(library));
      this.loads.set(url, load);
    }
    return load;
  }

  private runOnce({ name, text }: Library): void {
    if (!this.loaded.has(name)) {
      this.loaded.add(name);
      this.runNow(text, name);
    }
  }

  async sheet(url: string, target: Node = document.head): Promise<void> {
    const { text } = await this.find(url, 'style');
    const style = document.createElement('style');
    style.textContent = text;
    target.appendChild(style);
  }

  private async find(url: string, kind: 'script' | 'style'): Promise<Library> {
    const args = { url: url.slice(0, 2000), kind };
    const { name, blob } = (await this.tools.call('library', args)) as Found;
    return { name, text: await blob.text() };
  }

  private async textOf(url: string): Promise<Library> {
    const blob = this.blobs.get(url);
    if (blob !== undefined) {
      return { name: url, text: await blob.text() };
    }
    return url.startsWith('data:')
      ? { name: url, text: await (await fetch(url)).text() }
      : await this.find(url, 'script');
  }

  private async run(script: HTMLScriptElement): Promise<void> {
    if (this.done.has(script) || !SCRIPT_TYPES.test(script.type)) {
      return;
    }
    this.done.add(script);
    const { name } = this.tools;
    const url = this.addresses.get(script) ?? script.getAttribute('src');
    if (url !== null) {
      await this.runAddress(script, url);
    } else if (script.type === 'module') {
      const ended = this.evaluateModule(script.textContent, name);
      await ended.catch((error: unknown) => this.report(error, name));
    } else {
      this.runNow(script.textContent, name, script);
    }
  }

  private async runAddress(script: HTMLScriptElement, url: string): Promise<void> {
    const isModule =
      script.type === 'module' &&
      IS_MODULE.test((await this.textOf(url).catch(() => null))?.text ?? '');
    await this.tell(script, isModule ? this.import(url) : this.load(url));
  }

  /** Tells an element, and the person, what became of its address. */
  private async tell(element: Element, ended: Promise<unknown>): Promise<void> {
    try {
      await ended;
      element.dispatchEvent(new Event('load'));
    } catch (error) {
      this.missing(error);
      element.dispatchEvent(new Event('error'));
    }
  }

  private runNow(text: string, file: string, script: HTMLScriptElement | null = null): void {
    try {
      this.evaluate(text, file, script);
    } catch (error) {
      this.report(error, file);
    }
  }

  private evaluate(text: string, file: string, script: HTMLScriptElement | null): void {
    const before = this.running;
    this.running = script;
    try {
      // "use strict" at the begin of what is evaluated would keep its variables from others.
      this.tools.evaluate(
        `;${withoutImports(text)}\n//# sourceURL=${encodeURI(file.slice(0, 200))}`
      );
    } finally {
      this.running = before;
    }
  }

  private async evaluateModule(text: string, file: string): Promise<unknown> {
    if (window.gvisorModule === undefined) {
      this.tools.evaluate((await this.find('gvisor:esm', 'script')).text);
    }
    const code = withoutImports(window.gvisorModule?.(text) ?? '').replace(
      /\bimport\.meta\b/g,
      '({url: "https://nothing.invalid/"})'
    );
    const loaded = new Map<string, unknown>();
    // What its imports have become. A library that is bundled in it may have others, never called.
    for (const [, name = ''] of code.matchAll(/\brequire\('([^']+)'\)/g)) {
      loaded.set(name, await this.import(name));
    }
    const run = this.tools.evaluate(
      `(async function (require, exports) {${code}\n})\n//# sourceURL=${encodeURI(file.slice(0, 200))}`
    ) as (require: (name: string) => unknown, exports: object) => Promise<void>;
    const exports = {};
    await run(name => loaded.get(name), exports);
    return exports;
  }

  private import(url: string): Promise<unknown> {
    let found = this.modules.get(url);
    if (found === undefined) {
      found = this.textOf(url).then(async ({ text, name }) => {
        if (/^(blob|data):/.test(url) || IS_MODULE.test(text)) {
          return await this.evaluateModule(text, name);
        }
        this.runOnce({ name, text });
        return globalOf(url);
      });
      this.modules.set(url, found);
    }
    return found;
  }

  /** Tells the person what was not loaded; errors of scripts are told to the console. */
  readonly missing = (error: unknown): void => {
    this.report(error, 'library');
  };

  private report(error: unknown, file: string): void {
    this.tools.reportError(error instanceof Error ? error.message : String(error), file);
  }

  /** The address of a script is kept beside it: Trusted Types refuse it. */
  private watchAddresses(): void {
    const { addresses } = this;
    const set = (script: HTMLScriptElement, value: string): void => {
      addresses.set(script, value);
      this.added(script);
    };
    Object.defineProperty(HTMLScriptElement.prototype, 'src', {
      get(this: HTMLScriptElement) {
        return addresses.get(this) ?? this.getAttribute('src') ?? '';
      },
      set(this: HTMLScriptElement, value: unknown) {
        set(this, String(value));
      },
      configurable: true
    });
    HTMLScriptElement.prototype.setAttribute = function (name: string, value: string): void {
      if (name.toLowerCase() === 'src') {
        set(this, value);
      } else {
        Element.prototype.setAttribute.call(this, name, value);
      }
    };
  }

  /** Scripts run that are put into the document themselves: not those in a text that is. */
  private watchInsertion(): void {
    const added = (node: unknown): void => this.added(node);
    for (const [prototype, names] of INSERTS) {
      const methods = prototype as unknown as Record<string, (...args: unknown[]) => unknown>;
      for (const name of names) {
        const insert = methods[name];
        methods[name] = function (this: Node, ...args: unknown[]) {
          const nodes = args.flatMap(node =>
            node instanceof DocumentFragment ? [...node.querySelectorAll('*')] : node
          );
          const result = insert?.apply(this, args);
          nodes.forEach(added);
          return result;
        };
      }
    }
  }

  private added(node: unknown): void {
    if (!(node instanceof Element) || this.done.has(node) || !node.isConnected) {
      return;
    }
    if (node.localName === REMOVED) {
      this.addedLink(node);
    } else if (node instanceof HTMLScriptElement) {
      const url = this.addresses.get(node);
      if (url !== undefined && SCRIPT_TYPES.test(node.type)) {
        this.done.add(node);
        this.last = this.last.then(() => this.runAddress(node, url));
      } else if (node.textContent !== '') {
        void this.run(node); // at once; an empty one gets its address or text later
      }
    }
  }

  private addedLink(link: Element & { rel?: string; href?: string }): void {
    const rel = link.rel ?? link.getAttribute('rel') ?? '';
    const url = link.href ?? link.getAttribute('href') ?? '';
    if (/\bstylesheet\b/i.test(rel) && url !== '') {
      this.done.add(link);
      void this.tell(link, this.sheet(url, link.parentNode ?? document.head));
    }
  }

  /** A module that a page makes itself is read from its blob. */
  private keepBlobs(): void {
    const make = URL.createObjectURL.bind(URL);
    URL.createObjectURL = object => {
      const url = make(object);
      if (object instanceof Blob && /javascript/i.test(object.type)) {
        this.blobs.set(url, object);
      }
      return url;
    };
    Object.assign(window, { gvisorImport: (url: unknown) => this.import(String(url)) });
  }

  // RequireJS, as far as outputs use it.

  private readonly paths: Record<string, string> = {};
  private readonly defined = new Map<string, Promise<unknown>>();

  private offerRequire(): void {
    const load = (
      names: string | string[],
      done: (...modules: unknown[]) => void = () => undefined,
      failed: (error: unknown) => void = this.missing
    ): unknown => {
      if (typeof names === 'string') {
        return (window as unknown as Globals)[names];
      }
      const ended = Promise.all(names.map(name => this.require(name)))
        .then(found => done(...found), failed)
        .catch((error: unknown) => this.report(error, 'require'));
      this.last = this.last.then(() => ended);
      return undefined;
    };
    const config = (options: { paths?: Record<string, string | string[]> }): void => {
      for (const [name, path] of Object.entries(options.paths ?? {})) {
        this.paths[name] = String([path].flat()[0]);
      }
    };
    const undef = (name: string): void => void this.defined.delete(name);
    const specified = (name: string): boolean => this.defined.has(name);
    const require = Object.assign(load, { config, undef, specified, defined: specified });
    const define: Define = (...args) => {
      if (typeof args[0] === 'string') {
        this.defined.set(args[0], this.make(args.slice(1)));
      }
    };
    Object.assign(window, { require, requirejs: require, gvisorDefine: define });
  }

  private require(name: string): Promise<unknown> {
    let found = this.defined.get(name);
    if (found === undefined) {
      found = this.textOf(this.paths[name] ?? name).then(library =>
        this.requireText(library, name)
      );
      this.defined.set(name, found);
    }
    return found;
  }

  /** Most libraries define a module without a name, or set a variable if they cannot. */
  private requireText({ name: known, text }: Library, name: string): unknown {
    let made: Promise<unknown> | undefined;
    const define: Define = (...args) => {
      made ??= this.make(args);
    };
    define.amd = {};
    const globals = window as unknown as Globals;
    const before = new Set(Object.keys(globals));
    globals.define = define;
    try {
      this.loaded.add(known);
      this.evaluate(text, known, null);
    } finally {
      delete globals.define;
    }
    const added = Object.keys(globals).filter(key => !before.has(key));
    const wanted = name.replace(/[^a-z]/gi, '').toLowerCase();
    const named = [...added, ...before].find(key => key.toLowerCase() === wanted);
    return made ?? globals[named ?? added[0] ?? ''];
  }

  private async make(args: readonly unknown[]): Promise<unknown> {
    const factory = args.at(-1);
    if (typeof factory !== 'function') {
      return factory;
    }
    // Some take the folder of their pictures from its address, and fail without one. There are none.
    const module = { uri: 'https://nbextensions.invalid/index.js', exports: {} };
    const { require } = window as unknown as Globals;
    const special: Globals = { require, exports: module.exports, module };
    const names = args.find(Array.isArray) as string[] | undefined;
    const wanted = (names ?? Object.keys(special)).map(
      async name => special[name] ?? (await this.require(name))
    );
    return (
      (factory as (...modules: unknown[]) => unknown)(...(await Promise.all(wanted))) ??
      module.exports
    );
  }
}

/** What a module gets that imports a library by this address; of ``lodash-es/debounce`` the function. */
function globalOf(url: string): unknown {
  const name = GLOBALS.find(([pattern]) => pattern.test(url))?.[1] ?? '';
  const found = (window as unknown as Record<string, Record<string, unknown> | undefined>)[name];
  const part = /\blodash[^/]*\/(\w+)$/.exec(url)?.[1];
  return part === undefined ? found : found?.[part];
}
/** The headers let no module be imported. */
const withoutImports = (text: string): string => text.replace(/\bimport\s*\(/g, 'gvisorImport(');

declare global {
  interface Window {
    gvisorModule?: (source: string) => string;
  }
}
