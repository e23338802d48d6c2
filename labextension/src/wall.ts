/**
 * The wall: what of an output is drawn in JupyterLab's own document, what in a frame, and what not
 * at all. It stands at the models of outputs, which all parts of JupyterLab and other extensions
 * share: unless a kernel without a sandbox sent it to this page, a model says that it is not
 * trusted, and shows only what may be drawn. What is saved stays whole.
 */

import { MimeDocumentFactory } from '@jupyterlab/docregistry';
import { OutputArea } from '@jupyterlab/outputarea';
import {
  type IRenderMime,
  MimeModel,
  OutputModel,
  RenderMimeRegistry,
  removeMath,
  replaceMath
} from '@jupyterlab/rendermime';
import { PanelLayout, Widget } from '@lumino/widgets';

import { element } from './dom.js';
import { MOST_MARKDOWN, type Markup, drawable, mayTypeset, readMarkup } from './inline.js';
import { type Origin, originOf } from './origin.js';
import { VEGA } from './output_parts.js';
import { type Bundle, type Plan, canDraw, frameFor, makePlan, textOf } from './plan.js';

export { setFrames, setShown } from './plan.js';

/** What a model behind the wall has instead of types that JupyterLab's renderers do not get. */
export const WALLED_TYPE = 'application/vnd.gvisor-kernel.walled';

interface Behind {
  readonly raw: Bundle;
  readonly plan: Plan;
  /** What JupyterLab gets to see. */
  readonly shown: Bundle;
}

const found = new WeakMap<object, Behind>();
const walledMetadata = new WeakSet();

function shorten(text: string, isError = false): string {
  const most = drawable(text, isError);
  return text.length <= most
    ? text
    : `${text.slice(0, most)}\n[${text.length - most} characters more are saved, and not shown here]`;
}

function lookBehind(model: object, raw: () => Bundle): Behind {
  const known = found.get(model);
  if (known !== undefined) {
    return known;
  }
  const bundle = raw();
  const plan = makePlan(bundle, canDraw);
  const value = bundle[plan.type];
  const shown: Bundle =
    plan.way === 'native' && !plan.lost
      ? { [plan.type]: plan.type === 'text/plain' ? shorten(textOf(value)) : value }
      : { [WALLED_TYPE]: shorten(textOf(bundle['text/plain'] ?? '')) };
  const behind = { raw: bundle, plan, shown };
  found.set(model, behind);
  return behind;
}

/** Draws an output of which JupyterLab's own renderers get nothing, or not all. */
class WalledOutput extends Widget implements IRenderMime.IRenderer {
  private inner: IRenderMime.IRenderer | null = null;
  private innerKey = '';
  private turn = 0;

  constructor(private readonly registry: RenderMimeRegistry) {
    super();
    this.addClass('gk-walled');
    this.layout = new PanelLayout();
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    const behind = found.get(model);
    const origin = behind === undefined ? 'unknown' : originOf(model);
    const raw = behind?.raw ?? { 'text/plain': textOf(model.data[WALLED_TYPE]) };
    const plan = behind?.plan ?? { way: 'native', type: 'text/plain', lost: false };
    this.turn += 1;
    await this.draw(raw, model.metadata, plan, origin, this.turn);
  }

  private async draw(
    raw: Bundle,
    metadata: Bundle,
    plan: Plan,
    origin: Origin,
    turn: number,
    frames = canDraw
  ): Promise<void> {
    const source = textOf(raw[plan.type] ?? '');
    if (plan.way === 'frame') {
      const frame = this.use(`frame ${plan.type}`, () => frameFor(plan.type));
      if (frame === null) {
        const none = (): boolean => false;
        await this.draw(raw, metadata, makePlan(raw, none), origin, turn, none);
        return;
      }
      this.say(null);
      await frame.renderModel(new MimeModel({ data: raw, metadata }));
    } else if (plan.way === 'native') {
      const value = plan.type === 'text/plain' ? shorten(source) : raw[plan.type];
      const native = this.use(`native ${plan.type}`, () => this.registry.createRenderer(plan.type));
      this.say(plan.lost ? origin : null);
      await native?.renderModel(new MimeModel({ data: { [plan.type]: value }, metadata }));
    } else if (plan.way === 'markup') {
      this.put(readMarkup(source), 'jp-RenderedHTML', plan.lost, origin);
    } else if (plan.way === 'markdown') {
      const markup = await this.parseMarkdown(source);
      if (turn !== this.turn) {
        return; // drawn again meanwhile
      }
      if (markup?.lost !== false && frames(plan.type)) {
        await this.draw(raw, metadata, { ...plan, way: 'frame' }, origin, turn, frames);
      } else {
        this.put(
          markup ?? { nodes: textNodes(shorten(source)), lost: true, text: source },
          'jp-RenderedMarkdown',
          plan.lost,
          origin
        );
      }
    } else {
      this.put(null, 'jp-RenderedText', plan.lost, origin);
    }
  }

  /** Null for what is not parsed in the page: a diagram, or too much. */
  private async parseMarkdown(source: string): Promise<Markup | null> {
    const parser = this.registry.markdownParser;
    if (parser === null || source.length > MOST_MARKDOWN || /mermaid/i.test(source)) {
      return null;
    }
    const { text, math } = removeMath(source);
    return readMarkup(replaceMath(await parser.render(text), math));
  }

  private put(markup: Markup | null, name: string, lost: boolean, origin: Origin): void {
    const node = new Checked(markup, name, this.registry.latexTypesetter);
    this.use('', () => node);
    this.say(lost || markup?.lost === true ? origin : null);
  }

  /** The renderer of before if it draws the same type, as a frame that is made anew loses its state. */
  private use(key: string, make: () => IRenderMime.IRenderer | null): IRenderMime.IRenderer | null {
    if (key === '' || key !== this.innerKey || this.inner === null) {
      this.inner?.dispose();
      this.inner = make();
      this.innerKey = key;
      if (this.inner !== null) {
        (this.layout as PanelLayout).insertWidget(0, this.inner);
      }
    }
    return this.inner;
  }

  private say(origin: Origin | null): void {
    this.node.querySelector(':scope > .gk-wall-line')?.remove();
    if (origin !== null) {
      this.node.append(element('div', { class: 'gk-wall-line' }, describe(origin)));
    }
  }
}

function textNodes(text: string): DocumentFragment {
  const nodes = document.createDocumentFragment();
  nodes.append(element('pre', {}, text));
  return nodes;
}

function describe(origin: Origin): string {
  return origin === 'sandbox'
    ? 'Part of this output is not shown: it comes from a sandbox, and in this page it could act as you. A page that it writes to outputs/ is shown whole.'
    : 'Part of this output is not shown: who made it is not known, and in this page it could act as you. To see it, run the cell.';
}

/** Nodes that were checked, with their formulas set as soon as they are in the document. */
class Checked extends Widget implements IRenderMime.IRenderer {
  constructor(
    private readonly markup: Markup | null,
    name: string,
    private readonly typesetter: IRenderMime.ILatexTypesetter | null
  ) {
    super();
    this.addClass('jp-RenderedHTMLCommon');
    this.addClass(name);
    if (markup !== null) {
      this.node.append(markup.nodes);
    }
  }

  async renderModel(): Promise<void> {
    // It was drawn when it was made.
  }

  protected override onAfterAttach(): void {
    if (this.markup !== null && mayTypeset(this.markup)) {
      void this.typesetter?.typeset(this.node);
    }
  }
}

/** Whether the wall stands is tried by a model that asks for all. */
function isStanding(): boolean {
  const model = new OutputModel({
    value: {
      output_type: 'display_data',
      data: { 'text/html': '<script></script>' },
      metadata: {}
    },
    trusted: true
  });
  const stands = !model.trusted && Object.keys(model.data).join() === WALLED_TYPE;
  model.dispose();
  return stands;
}

/* eslint-disable @typescript-eslint/unbound-method -- what is replaced is called with its object */

/** What is used of the factory of views of files. */
interface FileFactory {
  _factory?: IRenderMime.IRendererFactory | undefined;
  createNewWidget(context: unknown): unknown;
}

let raised: boolean | null = null;

/** Puts the wall into the page, once. False: this JupyterLab's models do not take it. */
export function raiseWall(): boolean {
  raised ??= build();
  return raised;
}

function build(): boolean {
  const { prototype } = OutputModel;
  const data = Object.getOwnPropertyDescriptor(prototype, 'data');
  if (data?.get === undefined) {
    return false;
  }
  const readData = data.get;
  const { setData } = prototype;
  const claimed = new WeakMap<OutputModel, boolean>();
  Object.defineProperty(prototype, 'trusted', {
    configurable: false,
    get(this: OutputModel) {
      return claimed.get(this) === true && originOf(this) === 'local';
    },
    set(this: OutputModel, value: boolean) {
      claimed.set(this, value);
    }
  });
  Object.defineProperty(prototype, 'data', {
    configurable: false,
    get(this: OutputModel) {
      const raw = (): Bundle => readData.call(this) as Bundle;
      if (originOf(this) === 'local') {
        return raw();
      }
      if (this.type === 'stream' || this.type === 'error') {
        return shortenAll(raw());
      }
      walledMetadata.add(this.metadata);
      return lookBehind(this, raw).shown;
    }
  });
  prototype.setData = function (this: OutputModel, options) {
    found.delete(this);
    setData.call(this, options);
  };
  // JupyterLab's "isolated" is a frame of its own origin, into which it writes markup as text.
  const { isIsolated } = OutputArea;
  OutputArea.isIsolated = (mimeType, metadata) =>
    mimeType !== WALLED_TYPE && !walledMetadata.has(metadata) && isIsolated(mimeType, metadata);

  const { preferredMimeType, createRenderer } = RenderMimeRegistry.prototype;
  RenderMimeRegistry.prototype.preferredMimeType = function (bundle, safe) {
    return WALLED_TYPE in bundle ? WALLED_TYPE : preferredMimeType.call(this, bundle, safe);
  };
  RenderMimeRegistry.prototype.createRenderer = function (mimeType) {
    if (isOfFile && VEGA.test(mimeType)) {
      return frameFor(mimeType) ?? new Checked(null, 'jp-RenderedText', null);
    }
    return mimeType === WALLED_TYPE ? new WalledOutput(this) : createRenderer.call(this, mimeType);
  };
  // A plot in a file loads what it names: with the person's cookies, and from anywhere.
  const factory = MimeDocumentFactory.prototype as unknown as FileFactory;
  let isOfFile = false;
  const { createNewWidget } = factory;
  factory.createNewWidget = function (context) {
    if (this._factory?.mimeTypes.some(type => VEGA.test(type)) === true) {
      this._factory = undefined; // so that the registry is asked
    }
    isOfFile = true;
    try {
      return createNewWidget.call(this, context);
    } finally {
      isOfFile = false;
    }
  };
  return isStanding();
}

function shortenAll(bundle: Bundle): Bundle {
  return Object.fromEntries(
    Object.entries(bundle).map(([type, text]) => [
      type,
      typeof text === 'string' ? shorten(text, type.endsWith('stderr')) : text
    ])
  );
}
