/**
 * anywidget: widgets that bring their own module, ``_esm``. A frame has no ``import``, so the module
 * is run as those of outputs are (``page_scripts.ts``), with libraries that are there.
 */

import { DOMWidgetModel, DOMWidgetView } from '@jupyter-widgets/base';

import type { FrameManager } from './widget_manager.js';

type Cleanup = (() => unknown) | undefined | null;
type Hook = (context: Readonly<Record<string, unknown>>) => Cleanup | Promise<Cleanup>;

interface Definition {
  readonly initialize?: Hook;
  readonly render?: Hook;
}

/** What a widget's module gets of its model, so that it may take the functions apart. */
const METHODS = ['get', 'set', 'save_changes', 'on', 'off', 'send'] as const;
/** Modules by their text: a widget in five cells has one. */
const definitions = new Map<string, Promise<Definition>>();

type Model = Pick<DOMWidgetModel, (typeof METHODS)[number] | 'widget_manager'>;

const managerOf = (model: Model): FrameManager => model.widget_manager as unknown as FrameManager;

async function define(text: string, manager: FrameManager): Promise<Definition> {
  const code = text.replaceAll('import.meta', '({url: "about:blank"})');
  const exports = await manager.importModule(code).catch((error: unknown) => {
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`${reason} Bundle what the widget imports into its _esm, as with esbuild.`);
  });
  const found = exports.default ?? exports; // without a default export: as anywidget once had it
  const made: unknown = typeof found === 'function' ? await (found as () => unknown)() : found;
  return made as Definition;
}

function definitionOf(model: Model): Promise<Definition> {
  const text = String(model.get('_esm') ?? '');
  const known = definitions.get(text) ?? define(text, managerOf(model));
  definitions.set(text, known);
  return known;
}

function makeContext(model: Model): Readonly<Record<string, unknown>> {
  const bind = (name: (typeof METHODS)[number]): unknown =>
    (model[name] as (...values: unknown[]) => unknown).bind(model);
  const methods = Object.fromEntries(METHODS.map(name => [name, bind(name)]));
  return { model: { ...methods, widget_manager: model.widget_manager } };
}

export class AnyModel extends DOMWidgetModel {
  override initialize(...options: Parameters<DOMWidgetModel['initialize']>): void {
    super.initialize(...options);
    definitionOf(this)
      .then(it => it.initialize?.(makeContext(this)))
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
    const style = document.head.appendChild(document.createElement('style'));
    style.textContent = String(this.model.get('_css') ?? '');
    this.once('remove', () => {
      style.remove();
    });
    try {
      const { render } = await definitionOf(this.model);
      const cleanup = await render?.({ ...makeContext(this.model), el: this.el });
      this.once('remove', () => cleanup?.());
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      managerOf(this.model).tools.reportError(message, 'widget.js');
      this.el.textContent = message;
    }
  }
}
