/**
 * Scripts of an output: in their order, those that they add, and the libraries that they ask for.
 *
 * The headers let no script element run, so their texts are evaluated (realm.js). What a page would
 * load from elsewhere is asked of the extension, which knows some libraries by their names.
 */

import type { Tools } from './renderer.js';

type Kind = 'script' | 'style';

interface Library {
  readonly name: string;
  readonly text: string;
}

interface Define {
  (...args: unknown[]): void;
  amd?: object;
}

const SCRIPT_TYPES =
  /^(|text\/javascript|application\/(x-)?javascript|application\/ecmascript|module)$/i;
const IS_MODULE = /^\s*(import|export)\b|[;}]\s*export\s*\{/m;
/** What realm.js makes in place of a link. */
const REMOVED = 'gvisor-removed';

export class PageScripts {
  private readonly done = new Set<Node>();
  private readonly made = new WeakSet<Node>();
  private readonly addresses = new WeakMap<HTMLScriptElement, string>();
  private readonly libraries = new Map<string, Promise<string>>();
  private readonly evaluated = new Set<string>();
  private readonly modules = new Map<string, Promise<unknown>>();
  private readonly blobs = new Map<string, Blob>();
  private readonly paths: Record<string, string> = {};
  /** The last of the scripts that were added and load a library: they run in their order. */
  private last: Promise<void> = Promise.resolve();
  private running: HTMLScriptElement | null = null;

  constructor(private readonly tools: Tools) {
    Object.defineProperty(document, 'currentScript', {
      get: () => this.running,
      configurable: true
    });
    this.watchElements();
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

  /** Loads a library that the extension names, and those of a page's address. */
  async load(url: string): Promise<void> {
    const { name, text } = await this.find(url, 'script');
    if (!this.evaluated.has(name)) {
      await this.runLibrary(name, text);
    }
  }

  private async runLibrary(name: string, text: string): Promise<void> {
    // A bundle of the extension has several libraries, and is there for good.
    if (name.startsWith('own:') && this.evaluated.has(name)) {
      return;
    }
    this.evaluated.add(name);
    await this.evaluate(text, name, 'script');
  }

  async sheet(url: string, target: Node = document.head): Promise<void> {
    const { text } = await this.find(url, 'style');
    const style = document.createElement('style');
    style.textContent = text;
    target.appendChild(style);
  }

  private async find(url: string, kind: Kind): Promise<Library> {
    let found = this.libraries.get(`${kind} ${url}`) as Promise<Library> | undefined;
    if (found === undefined) {
      found = this.tools.call('library', { url: url.slice(0, 2000), kind }) as Promise<Library>;
      this.libraries.set(`${kind} ${url}`, found as never);
    }
    return await found;
  }

  private async textOf(url: string): Promise<Library> {
    const blob = this.blobs.get(url);
    if (blob !== undefined) {
      return { name: url, text: await blob.text() };
    }
    if (url.startsWith('data:')) {
      return { name: url.slice(0, 200), text: await (await fetch(url)).text() };
    }
    return await this.find(url, 'script');
  }

  private async run(script: HTMLScriptElement): Promise<void> {
    if (this.done.has(script) || !SCRIPT_TYPES.test(script.type)) {
      return;
    }
    this.done.add(script);
    const url = this.addresses.get(script) ?? script.getAttribute('src');
    if (url === null) {
      const kind = script.type === 'module' ? 'module' : 'script';
      await this.evaluate(script.textContent, this.tools.name, kind, script);
      return;
    }
    await this.runAddress(script, url);
  }

  private async runAddress(script: HTMLScriptElement, url: string): Promise<void> {
    try {
      const { name, text } = await this.textOf(url);
      if (script.type === 'module' && IS_MODULE.test(text)) {
        await this.import(url);
      } else {
        await this.runLibrary(name, text);
      }
      script.dispatchEvent(new Event('load'));
    } catch (error) {
      this.missing(error);
      script.dispatchEvent(new Event('error'));
    }
  }

  private async evaluate(
    text: string,
    file: string,
    kind: 'module' | 'script',
    script: HTMLScriptElement | null = null
  ): Promise<void> {
    try {
      if (kind === 'module') {
        await this.evaluateModule(text, file);
      } else {
        this.evaluateNow(text, file, script);
      }
    } catch (error) {
      this.report(error, file);
    }
  }

  private evaluateNow(text: string, file: string, script: HTMLScriptElement | null): void {
    const before = this.running;
    this.running = script;
    try {
      // The headers let no module be imported.
      const code = text.replace(/\bimport\s*\(/g, 'gvisorImport(');
      // "use strict" at the begin of what is evaluated would keep its variables from others.
      this.tools.evaluate(`;${code}\n//# sourceURL=${encodeURI(file)}`);
    } finally {
      this.running = before;
    }
  }

  private async evaluateModule(text: string, file: string): Promise<unknown> {
    if (window.gvisorModule === undefined) {
      const { text: own } = await this.find('gvisor:esm', 'script');
      this.tools.evaluate(own);
    }
    const code = (window.gvisorModule?.(text) ?? '').replace(/\bimport\s*\(/g, 'gvisorImport(');
    const loaded = new Map<string, unknown>();
    for (const [, name = ''] of code.matchAll(/\brequire\(['"]([^'"]+)['"]\)/g)) {
      if (!loaded.has(name)) {
        loaded.set(name, await this.import(name));
      }
    }
    const run = this.tools.evaluate(
      `(async function (require, exports) {${code}\n})\n//# sourceURL=${encodeURI(file)}`
    ) as (require: (name: string) => unknown, exports: object) => Promise<void>;
    const exports = {};
    await run(name => loaded.get(name), exports);
    return exports;
  }

  private import(url: string): Promise<unknown> {
    let found = this.modules.get(url);
    if (found === undefined) {
      found = this.textOf(url).then(({ text, name }) => this.evaluateModule(text, name));
      this.modules.set(url, found);
    }
    return found;
  }

  /** Tells the person what was not loaded; errors of scripts are told to the console. */
  missing(error: unknown): void {
    this.report(error, 'library');
  }

  private report(error: unknown, file: string): void {
    this.tools.reportError(error instanceof Error ? error.message : String(error), file);
  }

  /** Which script elements are made by scripts: those that come from a text do not run. */
  private watchElements(): void {
    for (const name of ['createElement', 'createElementNS'] as const) {
      const create = document[name].bind(document) as (...args: unknown[]) => Element;
      Object.defineProperty(document, name, {
        value: (...args: unknown[]) => {
          const element = create(...args);
          if (element instanceof HTMLScriptElement) {
            this.made.add(element);
          }
          return element;
        }
      });
    }
    const { addresses } = this;
    const added = (script: HTMLScriptElement): void => {
      this.added(script);
    };
    const setAddress = (script: HTMLScriptElement, value: string): void => {
      addresses.set(script, value);
      if (script.isConnected) {
        added(script);
      }
    };
    Object.defineProperty(HTMLScriptElement.prototype, 'src', {
      get(this: HTMLScriptElement) {
        return addresses.get(this) ?? this.getAttribute('src') ?? '';
      },
      set(this: HTMLScriptElement, value: unknown) {
        setAddress(this, String(value));
      },
      configurable: true
    });
    HTMLScriptElement.prototype.setAttribute = function (name: string, value: string): void {
      if (name.toLowerCase() === 'src') {
        setAddress(this, value);
      } else {
        Element.prototype.setAttribute.call(this, name, value);
      }
    };
  }

  private watchInsertion(): void {
    const wrap = (prototype: object, name: string): void => {
      const insert = (prototype as Record<string, (...args: unknown[]) => unknown>)[name];
      if (insert === undefined) {
        return;
      }
      const found = (nodes: unknown[]): void => {
        nodes.forEach(node => {
          this.added(node);
        });
      };
      (prototype as Record<string, unknown>)[name] = function (this: Node, ...args: unknown[]) {
        const nodes = args.flatMap(node =>
          node instanceof DocumentFragment ? [...node.querySelectorAll('*')] : [node]
        );
        const result = insert.apply(this, args);
        found(nodes);
        return result;
      };
    };
    for (const name of ['appendChild', 'insertBefore', 'replaceChild']) {
      wrap(Node.prototype, name);
    }
    for (const prototype of [Element.prototype, DocumentFragment.prototype]) {
      for (const name of ['append', 'prepend', 'replaceChildren']) {
        wrap(prototype, name);
      }
    }
    for (const name of ['before', 'after', 'replaceWith']) {
      wrap(Element.prototype, name);
    }
  }

  private added(node: unknown): void {
    if (!(node instanceof Element) || this.done.has(node) || !node.isConnected) {
      return;
    }
    if (node.localName === REMOVED) {
      this.addedLink(node);
    } else if (node instanceof HTMLScriptElement && this.made.has(node)) {
      const url = this.addresses.get(node);
      if (url === undefined && node.textContent === '') {
        return; // its address or text comes later
      }
      if (url === undefined || !SCRIPT_TYPES.test(node.type)) {
        void this.run(node); // at once
      } else {
        this.done.add(node);
        this.last = this.last.then(() => this.runAddress(node, url));
      }
    }
  }

  private addedLink(link: Element & { rel?: string; href?: string }): void {
    const rel = link.rel ?? link.getAttribute('rel') ?? '';
    const url = link.href ?? link.getAttribute('href') ?? '';
    if (!/\bstylesheet\b/i.test(rel) || url === '') {
      return;
    }
    this.done.add(link);
    this.sheet(url, link.parentNode ?? document.head).then(
      () => link.dispatchEvent(new Event('load')),
      (error: unknown) => {
        this.missing(error);
        link.dispatchEvent(new Event('error'));
      }
    );
  }

  /** A module that a page makes itself is read from its blob. */
  private keepBlobs(): void {
    const { blobs } = this;
    const make = URL.createObjectURL.bind(URL);
    URL.createObjectURL = object => {
      const url = make(object);
      if (object instanceof Blob && /javascript/i.test(object.type)) {
        blobs.set(url, object);
      }
      return url;
    };
    Object.assign(window, { gvisorImport: (url: unknown) => this.import(String(url)) });
  }

  // RequireJS, as far as outputs use it.

  private readonly defined = new Map<string, Promise<unknown>>();

  private offerRequire(): void {
    const load = (
      names: unknown,
      done?: (...modules: unknown[]) => void,
      failed?: (error: unknown) => void
    ): unknown => {
      if (typeof names === 'string') {
        return (window as unknown as Record<string, unknown>)[names];
      }
      const modules = Promise.all((names as string[]).map(name => this.require(name)));
      const ended = modules.then(
        found => {
          done?.(...found);
        },
        (error: unknown) => {
          if (failed === undefined) {
            this.missing(error);
          } else {
            failed(error);
          }
        }
      );
      ended.catch((error: unknown) => {
        this.report(error, 'require');
      });
      this.last = this.last.then(() => ended).catch(() => undefined);
      return undefined;
    };
    const config = (options: { paths?: Record<string, string | string[]> }): void => {
      for (const [name, path] of Object.entries(options.paths ?? {})) {
        this.paths[name] = String(Array.isArray(path) ? path[0] : path);
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
      found = this.textOf(this.paths[name] ?? name).then(({ text, name: known }) =>
        this.requireText(text, known, name)
      );
      this.defined.set(name, found);
    }
    return found;
  }

  /** Most libraries define a module without a name, or set a variable if they cannot. */
  private requireText(text: string, known: string, name: string): unknown {
    const made: Promise<unknown>[] = [];
    const define: Define = (...args) => {
      made.push(this.make(args));
    };
    define.amd = {};
    const globals = window as unknown as Record<string, unknown>;
    const before = new Set(Object.keys(globals));
    globals.define = define;
    try {
      this.evaluated.add(known);
      this.evaluateNow(text, known, null);
    } finally {
      delete globals.define;
    }
    if (made[0] !== undefined) {
      return made[0];
    }
    const added = Object.keys(globals).filter(key => !before.has(key));
    const wanted = name.replace(/[^a-z]/gi, '').toLowerCase();
    const named = [...added, ...Object.keys(globals)].find(key => key.toLowerCase() === wanted);
    return globals[named ?? added[0] ?? ''];
  }

  private async make(args: readonly unknown[]): Promise<unknown> {
    const names = args.find(Array.isArray) as string[] | undefined;
    const factory = args.at(-1);
    if (typeof factory !== 'function') {
      return factory;
    }
    // Some take the folder of their pictures from its address, and fail without one. There are none.
    const module = { uri: 'https://nbextensions.invalid/index.js', exports: {} };
    const special: Record<string, unknown> = {
      require: (window as unknown as { require: unknown }).require,
      exports: module.exports,
      module
    };
    const wanted = names ?? ['require', 'exports', 'module'];
    const modules = await Promise.all(
      wanted.map(async name => special[name] ?? (await this.require(name)))
    );
    const result = (factory as (...modules: unknown[]) => unknown)(...modules);
    return result ?? module.exports;
  }
}

declare global {
  interface Window {
    gvisorModule?: (source: string) => string;
  }
}
