/**
 * The wall: what of an output is drawn in JupyterLab's own document, what in a frame, and what not
 * at all. It stands at the models of outputs, which all parts of JupyterLab and other extensions
 * share: unless a kernel without a sandbox sent it to this page, a model says that it is not
 * trusted, and shows only what may be drawn. What is saved stays whole.
 */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { showErrorMessage } from '@jupyterlab/apputils';
import { PageConfig } from '@jupyterlab/coreutils';
import { OutputArea } from '@jupyterlab/outputarea';
import {
  type IRenderMime,
  IRenderMimeRegistry,
  MimeModel,
  OutputModel,
  RenderMimeRegistry,
  removeMath,
  replaceMath
} from '@jupyterlab/rendermime';
import { PanelLayout, Widget } from '@lumino/widgets';

import { drawWithin } from './budget.js';
import { element } from './dom.js';
import {
  type Markup,
  drawable,
  isLongMarkdown,
  mayTypeset,
  readMarkup,
  readMetadata
} from './inline.js';
import { followKernels, originOf } from './origin.js';
import { ORDER } from './output_parts.js';
import { type Bundle, type Plan, makePlan, page, textOf } from './plan.js';
import { originOfKernel } from './specs.js';

/** What a model behind the wall has instead of types that JupyterLab's renderers do not get. */
const WALLED_TYPE = 'application/vnd.gvisor-kernel.walled';

interface Behind {
  readonly raw: Bundle;
  readonly metadata: Bundle;
  readonly plan: Plan;
  /** What JupyterLab gets to see. */
  readonly shown: Bundle;
}

const found = new WeakMap<object, Behind>();
/** Outputs whose links ask. */
const walled = new WeakSet<Node>();

const CLASSES = {
  markup: 'jp-RenderedHTML',
  markdown: 'jp-RenderedMarkdown',
  nothing: 'jp-RenderedText'
};

function shorten(text: string, isError = false): string {
  const most = drawable(text, isError);
  return text.length <= most
    ? text
    : `${text.slice(0, most)}\n[${text.length - most} characters more are saved, and not shown here]`;
}

function lookBehind(model: object, raw: Bundle, metadata: Bundle): Behind {
  const plan = makePlan(raw, page.canDraw);
  const value = raw[plan.type];
  const shown: Bundle =
    plan.way === 'native' && !plan.lost
      ? { [plan.type]: plan.type === 'text/plain' ? shorten(textOf(value)) : value }
      : { [WALLED_TYPE]: shorten(textOf(raw['text/plain'] ?? '')) };
  const behind = { raw, metadata, plan, shown };
  found.set(model, behind);
  return behind;
}

/** Draws an output of which JupyterLab's own renderers get nothing, or not all. */
class WalledOutput extends Widget implements IRenderMime.IRenderer {
  private inner: IRenderMime.IRenderer | null = null;
  private innerKey = '';
  private turn = 0;
  /** Why this browser draws no frames, once one has said so. */
  private refusal: string | null = null;

  constructor(private readonly registry: RenderMimeRegistry) {
    super();
    this.addClass('gk-walled');
    this.layout = new PanelLayout();
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    const turn = ++this.turn;
    const behind = found.get(model);
    const raw = behind?.raw ?? { 'text/plain': textOf(model.data[WALLED_TYPE]) };
    const frames = (type: string): boolean => this.refusal === null && page.canDraw(type);
    const known = this.refusal === null ? behind?.plan : undefined;
    const plan = known ?? makePlan(raw, frames);
    const { type } = plan;
    let { way, lost } = plan;
    const source = textOf(raw[type] ?? '');
    let markup = way === 'markup' ? readMarkup(source) : null;
    if (way === 'markdown') {
      markup = await this.parseMarkdown(source);
      if (turn !== this.turn) {
        return; // drawn again meanwhile
      }
      if (markup?.lost !== false && frames(type)) {
        way = 'frame';
      }
      markup ??= { nodes: element('pre', {}, shorten(source)), lost: true, text: source };
    }
    let data: Bundle = raw;
    let { metadata } = model;
    if (way === 'frame') {
      metadata = behind?.metadata ?? {};
      this.use(`frame ${type}`, () =>
        page.makeFrame(type, why => {
          this.refusal = why;
          void this.renderModel(model);
        })
      );
    } else if (way === 'native') {
      data = { [type]: type === 'text/plain' ? shorten(source) : raw[type] };
      this.use(`native ${type}`, () => this.registry.createRenderer(type));
    } else {
      this.use('', () => new Checked(markup, CLASSES[way], this.registry.latexTypesetter));
      lost ||= markup?.lost === true;
    }
    this.say(lost ? describe(originOf(model) === 'sandbox', this.refusal) : null);
    await this.inner?.renderModel(new MimeModel({ data, metadata }));
  }

  /** Null for what is not parsed in the page: a diagram, or too much. */
  private async parseMarkdown(source: string): Promise<Markup | null> {
    const parser = this.registry.markdownParser;
    if (parser === null || isLongMarkdown(source) || /mermaid/i.test(source)) {
      return null;
    }
    const { text, math } = removeMath(source);
    return readMarkup(replaceMath(await parser.render(text), math));
  }

  /** The renderer of before if it draws the same type, as a frame that is made anew loses its state. */
  private use(key: string, make: () => IRenderMime.IRenderer | null): void {
    if (key === '' || key !== this.innerKey || this.inner === null) {
      this.inner?.dispose();
      this.inner = make();
      this.innerKey = key;
      if (this.inner !== null) {
        (this.layout as PanelLayout).insertWidget(0, this.inner);
      }
    }
  }

  private say(line: string | null): void {
    this.node.querySelector(':scope > .gk-wall-line')?.remove();
    if (line !== null) {
      this.node.append(element('div', { class: 'gk-wall-line' }, line));
    }
  }
}

function describe(isOfSandbox: boolean, refusal: string | null): string {
  const why = isOfSandbox
    ? 'it comes from a sandbox, and in this page it could act as you. '
    : 'who made it is not known, and in this page it could act as you. ';
  const help = isOfSandbox
    ? 'A page that it writes to outputs/ is shown whole.'
    : 'To see it, run the cell.';
  return `Part of this output is not shown: ${why}${refusal ?? help}`;
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
    this.node.append(markup?.nodes ?? '');
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
  const data = { 'text/html': '<script></script>' };
  const value = { output_type: 'display_data', data, metadata: { isolated: true } };
  const model = new OutputModel({ value, trusted: true });
  const isBare = Object.keys(model.metadata).length === 0;
  return !model.trusted && isBare && Object.keys(model.data).join() === WALLED_TYPE;
}

/* eslint-disable @typescript-eslint/unbound-method -- what is replaced is called with its object */

/** Puts the wall into the page. False: this JupyterLab's models do not take it. */
function raiseWall(): boolean {
  const { prototype } = OutputModel;
  const readData = Object.getOwnPropertyDescriptor(prototype, 'data')?.get;
  const rawMetadata = Object.getOwnPropertyDescriptor(prototype, 'metadata')?.get;
  if (readData === undefined || rawMetadata === undefined) {
    return false;
  }
  const { setData, toJSON } = prototype;
  let saves = false;
  Object.defineProperty(prototype, 'metadata', {
    configurable: false,
    get(this: OutputModel) {
      const raw = rawMetadata.call(this) as Bundle;
      return saves || originOf(this) === 'local' ? raw : readMetadata(raw, ORDER);
    }
  });
  prototype.toJSON = function (this: OutputModel) {
    saves = true;
    try {
      return toJSON.call(this);
    } finally {
      saves = false;
    }
  };
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
      const metadata = rawMetadata.call(this) as Bundle;
      return (found.get(this) ?? lookBehind(this, raw(), metadata)).shown;
    }
  });
  prototype.setData = function (this: OutputModel, options) {
    found.delete(this);
    setData.call(this, options);
  };
  const area = OutputArea.prototype as unknown as {
    rendermime: object;
    createRenderedMimetype: (model: OutputModel) => Widget | null;
  };
  const { createRenderedMimetype } = area;
  area.createRenderedMimetype = function (model) {
    const draw = (): Widget | null => createRenderedMimetype.call(this, model);
    if (originOf(model) === 'local') {
      return draw();
    }
    const widget = drawWithin(this.rendermime, model, readData.call(model) as Bundle, draw);
    if (widget !== null) {
      walled.add(widget.node);
    }
    return widget;
  };

  const { preferredMimeType, createRenderer } = RenderMimeRegistry.prototype;
  RenderMimeRegistry.prototype.preferredMimeType = function (bundle, safe) {
    return WALLED_TYPE in bundle ? WALLED_TYPE : preferredMimeType.call(this, bundle, safe);
  };
  RenderMimeRegistry.prototype.createRenderer = function (mimeType) {
    return mimeType === WALLED_TYPE ? new WalledOutput(this) : createRenderer.call(this, mimeType);
  };
  return isStanding();
}

/* eslint-enable @typescript-eslint/unbound-method */

function shortenAll(bundle: Bundle): Bundle {
  return Object.fromEntries(
    Object.entries(bundle).map(([type, text]) => [
      type,
      typeof text === 'string' ? shorten(text, type.endsWith('stderr')) : text
    ])
  );
}

/** Before any plugin: a restored notebook makes its models when it likes. Where the extension is
 *  disabled, its code is loaded all the same, and no plugin of it would draw what is behind. */
const stands = PageConfig.Extension.isDisabled('gvisor-kernel:wall') || raiseWall();

/**
 * Sanitized HTML may have buttons that run any command of JupyterLab, with any arguments; those in
 * the text of a stranger's notebook, too. One that covers the notebook needs one click.
 */
function refuseCommands(sanitizer: IRenderMime.ISanitizer): void {
  const it = sanitizer as { setAllowCommandLinker?: (allow: boolean) => void };
  it.setAllowCommandLinker?.(false);
  it.setAllowCommandLinker = () => undefined; // the settings would allow it again
}

/** A link of an output may look like a button, and tell what the sandbox knows: it asks. JupyterLab
 *  makes one of an address in a text, also of ``javascript://``. */
function guardLinks(event: MouseEvent): void {
  const path = event.composedPath();
  const link = path.find(it => it instanceof HTMLAnchorElement);
  if (link === undefined || link.hasAttribute('download')) {
    return;
  }
  const isText = link.closest('.jp-RenderedText') !== null;
  if (link.protocol === 'javascript:' && isText) {
    event.preventDefault();
  } else if (/^https?:$/.test(link.protocol) && path.some(it => walled.has(it as Node))) {
    // A path in a traceback, which JupyterLab opens in its file browser.
    if (!(isText && link.origin === location.origin && link.target === '')) {
      event.preventDefault();
      event.stopPropagation();
      page.confirmLink(link.href);
    }
  }
}

/** Raises the wall as soon as the page loads, and tells it which kernels need none. */
export const wall: JupyterFrontEndPlugin<void> = {
  id: 'gvisor-kernel:wall',
  description: 'Keeps what sandboxes print, and saved outputs, from acting in the page.',
  autoStart: true,
  optional: [IRenderMimeRegistry],
  activate: (app: JupyterFrontEnd, rendermime: IRenderMimeRegistry | null) => {
    const { kernels, kernelspecs } = app.serviceManager;
    followKernels(kernels, name => originOfKernel(kernelspecs.specs, name));
    if (rendermime !== null) {
      page.isShown = type => rendermime.mimeTypes.includes(type);
      refuseCommands(rendermime.sanitizer); // of all of the page
    }
    for (const kind of ['click', 'auxclick'] as const) {
      document.addEventListener(kind, guardLinks, true);
    }
    if (!stands) {
      void app.restored.then(() =>
        showErrorMessage(
          'Outputs of sandboxes are not kept from this page',
          `The extension gvisor-kernel does not know the outputs of ${app.name} ${app.version}: what a sandbox prints may act as you here. Open no stranger's notebook, and update gvisor-kernel.`
        )
      );
    }
  }
};
