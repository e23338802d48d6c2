/**
 * Widget packages that are not bundled: their scripts for the classic notebook, from the packages of
 * the server's environment. They are modules of AMD, which name what they need.
 */

import type { Tools } from './renderer.js';

type Exports = Readonly<Record<string, unknown>>;
type Factory = (...modules: unknown[]) => unknown;

/** Where a package seems to come from. Nobody can have this name. */
const BASE = 'https://nbextensions.invalid/';

export function readModule(
  tools: Tools,
  bundled: Readonly<Record<string, Exports>>
): (name: string, version: string) => Promise<Exports> {
  const modules = new Map<string, Promise<Exports>>();
  const find = (name: string): Promise<Exports> => {
    const known = Object.hasOwn(bundled, name) ? bundled[name] : undefined;
    if (known !== undefined) {
      return Promise.resolve(known);
    }
    const found = modules.get(name) ?? read(name);
    modules.set(name, found);
    return found;
  };
  const read = async (name: string): Promise<Exports> => {
    const { text } = (await tools
      .call('library', { url: `gvisor:nbextension-${name}`, kind: 'script' })
      .catch((error: unknown) => {
        throw explain(name, error);
      })) as { text: string };
    return await evaluateModule(name, text);
  };
  const evaluateModule = async (name: string, text: string): Promise<Exports> => {
    const defined: { names: string[]; factory: unknown }[] = [];
    const define = (...args: unknown[]): void => {
      const names = args.find(it => Array.isArray(it)) as string[] | undefined;
      defined.push({ names: names ?? ['require', 'exports', 'module'], factory: args.at(-1) });
    };
    const run = tools.evaluate(`(function (define) {${text}\n})`) as Factory;
    run(Object.assign(define, { amd: {} }));
    const [own] = defined.slice(-1);
    if (own === undefined) {
      throw new Error('The script of the package defines no module.');
    }
    // Some take the folder of their pictures from it, and fail without an address. There are none.
    const uri = `${BASE}${encodeURIComponent(name)}/index.js`;
    const module: { id: string; uri: string; exports: Exports } = { id: name, uri, exports: {} };
    const special: Readonly<Record<string, unknown>> = {
      require: () => undefined,
      exports: module.exports,
      module
    };
    const wanted = await Promise.all(
      own.names.map(async wish => special[wish] ?? (await find(wish)))
    );
    const made =
      typeof own.factory === 'function' ? (own.factory as Factory)(...wanted) : own.factory;
    return (made ?? module.exports) as Exports;
  };
  return async name => await find(name);
}

function explain(name: string, error: unknown): Error {
  const reason = error instanceof Error ? error.message : String(error);
  return new Error(`The widget package "${name.slice(0, 100)}" cannot be shown here. ${reason}`);
}
