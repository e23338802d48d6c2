/**
 * JSX and TSX: one component that is the default export, with the libraries that are bundled.
 * ``libraries`` and ``tailwind`` were evaluated before.
 */

import { transform } from 'sucrase';

import { type Tools, register } from './renderer.js';

interface ReactLike {
  createElement(type: unknown, properties: unknown, child?: unknown): unknown;
  readonly Component: new (properties: unknown) => {
    readonly props: { readonly children: unknown };
  };
}

type Module = Record<string, unknown> & { default?: unknown };

register<string>((source, tools) => {
  const libraries = window.gvisorLibraries ?? {};
  const code = translate(source, tools);
  if (code === null) {
    return;
  }
  const module: { exports: Module } = { exports: {} };
  const load = (name: string): unknown => {
    const short = name.replace(/^lodash\/(.*)$/, 'lodash');
    const found = libraries[short];
    if (found === undefined) {
      const known = Object.keys(libraries).join(', ');
      throw new Error(`"${name}" is not bundled. A page can import: ${known}.`);
    }
    if (name !== short) {
      return (found as Record<string, unknown>)[name.slice('lodash/'.length)];
    }
    return found;
  };
  // Its lines are those of the file: sucrase keeps them.
  const run = tools.evaluate(
    `(function (require, module, exports) {${code}\n})\n//# sourceURL=${encodeURI(tools.name)}`
  ) as (require: unknown, module: unknown, exports: unknown) => void;
  run(load, module, module.exports);
  const component = module.exports.default;
  if (typeof component !== 'function' && typeof component !== 'object') {
    throw new Error('There is no default export: write "export default function App() { … }".');
  }
  mount(component, libraries, tools);
});

function translate(source: string, { name, reportError }: Tools): string | null {
  try {
    return transform(source, {
      transforms: /\.tsx?$/i.test(name) ? ['jsx', 'imports', 'typescript'] : ['jsx', 'imports'],
      jsxRuntime: 'classic',
      jsxPragma: 'React.createElement',
      jsxFragmentPragma: 'React.Fragment',
      production: true,
      filePath: name
    }).code;
  } catch (error) {
    const { message, loc } = error as Error & { loc?: { line: number; column: number } };
    const text = message.replace(/^Error transforming [^:]*: /, '').replace(/ \(\d+:\d+\)$/, '');
    reportError(text, name, loc?.line, loc?.column);
    return null;
  }
}

function mount(
  component: unknown,
  libraries: Readonly<Record<string, unknown>>,
  { root, name, reportError }: Tools
): void {
  const react = libraries.react as ReactLike;
  const { createRoot } = libraries['react-dom/client'] as {
    createRoot: (
      node: Element,
      options: { onUncaughtError: (error: unknown) => void }
    ) => { render(node: unknown): void };
  };
  const holder = document.createElement('div');
  root.append(holder);
  createRoot(holder, {
    onUncaughtError: error => {
      const place = /:(\d+):(\d+)\)?\s*$/m.exec(error instanceof Error ? (error.stack ?? '') : '');
      const message = error instanceof Error ? error.message : String(error);
      reportError(message, name, Number(place?.[1] ?? 0), Number(place?.[2] ?? 0));
    }
  }).render(react.createElement(component, null));
}
