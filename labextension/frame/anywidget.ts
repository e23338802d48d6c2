/**
 * anywidget: widgets that bring their own module, ``_esm``. A frame has no ``import``, so the module
 * becomes a function; what it imports is not there, and it is told so.
 */

import { DOMWidgetModel, DOMWidgetView } from '@jupyter-widgets/base';
import { transform } from 'sucrase';

import type { FrameManager } from './widget_manager.js';

type Cleanup = (() => unknown) | undefined | null;
type Hook = (context: Readonly<Record<string, unknown>>) => Cleanup | Promise<Cleanup>;

interface Definition {
  readonly initialize?: Hook;
  readonly render?: Hook;
}

/** What is used of a model. */
type Model = Pick<
  DOMWidgetModel,
  'get' | 'set' | 'save_changes' | 'send' | 'on' | 'off' | 'widget_manager'
>;

/** Modules by their text: a widget in five cells has one. */
const definitions = new Map<string, Promise<Definition>>();

function refuseImport(name: string): never {
  throw new Error(
    `"${name.slice(0, 200)}" cannot be imported: a widget in a frame has no network. ` +
      'Bundle it into the _esm of the widget, as with esbuild.'
  );
}

async function evaluateModule(text: string, evaluate: (code: string) => unknown): Promise<unknown> {
  const { code } = transform(text, { transforms: ['imports'], production: true });
  const own = code.replaceAll('import.meta', '({url: "about:blank"})');
  const run = evaluate(
    `(async function (require, module, exports) {${own}\n})\n//# sourceURL=widget.js`
  ) as (require: unknown, module: unknown, exports: unknown) => Promise<void>;
  const module: { exports: Record<string, unknown> } = { exports: {} };
  await run(refuseImport, module, module.exports);
  return module.exports;
}

async function define(text: string, evaluate: (code: string) => unknown): Promise<Definition> {
  if (/^https?:\/\//.test(text)) {
    refuseImport(text);
  }
  const exports = (await evaluateModule(text, evaluate)) as Record<string, unknown>;
  const found = exports.default ?? exports; // without a default export: as anywidget once had it
  const made: unknown = typeof found === 'function' ? await (found as () => unknown)() : found;
  return made as Definition;
}

const toolsOf = (model: Model) => (model.widget_manager as unknown as FrameManager).tools;

function definitionOf(model: Model): Promise<Definition> {
  const text = String(model.get('_esm') ?? '');
  const known = definitions.get(text) ?? define(text, toolsOf(model).evaluate);
  definitions.set(text, known);
  return known;
}

/** What a widget's module gets of its model. */
function makeModel(model: Model) {
  return {
    get: (name: string): unknown => model.get(name),
    set: (name: string, value: unknown): void => {
      model.set(name, value);
    },
    save_changes: (): void => {
      model.save_changes();
    },
    on: (name: string, callback: (...values: unknown[]) => void): void => {
      model.on(name, callback);
    },
    off: (name?: string | null, callback?: ((...values: unknown[]) => void) | null): void => {
      model.off(name ?? null, callback ?? null);
    },
    send: (content: unknown, callbacks?: object, buffers?: ArrayBuffer[]): void => {
      model.send(content as never, callbacks, buffers);
    },
    widget_manager: model.widget_manager
  };
}

let commands = 0;

function makeExperimental(model: Model) {
  return {
    invoke: (
      name: string,
      msg?: unknown,
      options: { buffers?: ArrayBuffer[]; signal?: AbortSignal } = {}
    ) => {
      const id = `${Date.now()}-${++commands}`;
      return new Promise((resolve, reject) => {
        const listen = (content: Record<string, unknown>, buffers: unknown): void => {
          if (content.id === id) {
            model.off('msg:custom', listen);
            resolve([content.response, buffers]);
          }
        };
        options.signal?.addEventListener('abort', () => {
          model.off('msg:custom', listen);
          reject(options.signal?.reason as Error);
        });
        model.on('msg:custom', listen);
        model.send(
          { id, kind: 'anywidget-command', name, msg } as never,
          undefined,
          options.buffers
        );
      });
    }
  };
}

export class AnyModel extends DOMWidgetModel {
  override initialize(...options: Parameters<DOMWidgetModel['initialize']>): void {
    super.initialize(...options);
    definitionOf(this)
      .then(it => it.initialize?.({ model: makeModel(this), experimental: makeExperimental(this) }))
      .then(
        cleanup => {
          this.once('destroy', () => cleanup?.());
        },
        () => undefined // the view says it
      );
  }
}

export class AnyView extends DOMWidgetView {
  override async render(): Promise<void> {
    super.render();
    const css = String(this.model.get('_css') ?? '');
    if (css !== '') {
      const style = document.createElement('style');
      style.textContent = css;
      document.head.append(style);
      this.once('remove', () => {
        style.remove();
      });
    }
    try {
      const { render } = await definitionOf(this.model);
      const cleanup = await render?.({
        model: makeModel(this.model),
        el: this.el,
        experimental: makeExperimental(this.model)
      });
      this.once('remove', () => cleanup?.());
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      toolsOf(this.model).reportError(message, 'widget.js');
      this.el.textContent = message;
    }
  }
}
