/**
 * Draws the parts of an output: HTML with its scripts, JavaScript, plots, drawings, sounds and films.
 * Of the outputs of cells (``output.ts``), and of those in widgets (``widget_output.ts``). How
 * their scripts run is in ``page_scripts.ts``.
 */

import { removeMath, replaceMath } from '@jupyterlab/rendermime/lib/latex';
import { marked } from 'marked';

import { PLOTLY, type Part, plotHeight } from '../src/output_parts.js';
import { PageScripts } from './page_scripts.js';
import { type Tools, add, addStyle } from './renderer.js';

interface Plotly {
  react(node: Element, data: unknown, layout: unknown, config: unknown): Promise<unknown>;
  addFrames(node: Element, frames: unknown): unknown;
}

type Embed = (node: Element, spec: unknown, options: unknown) => Promise<unknown>;

export class Drawer {
  private readonly scripts: PageScripts;

  /** Of all of a frame: it changes how scripts are added to its document. */
  constructor(private readonly tools: Tools) {
    this.scripts = new PageScripts(tools);
    askForTiles(tools);
    addStyle(`
      .gvisor-iframe { position: relative; overflow: auto; isolation: isolate }
      .gvisor-note { opacity: 0.8; padding: 4px 0 }
    `);
  }

  /** Loads libraries by their names; what is missing is said. */
  async load(libraries: readonly string[]): Promise<void> {
    for (const name of libraries) {
      await this.scripts.load(name).catch(this.scripts.missing);
    }
  }

  /** A plot that is in ``holder`` already is changed to the new one. */
  async draw(parts: readonly Part[], holder: HTMLElement): Promise<void> {
    for (const part of parts) {
      await this.drawPart(part, holder);
    }
    await this.scripts.settle();
  }

  private async drawPart({ type, data, metadata }: Part, holder: HTMLElement): Promise<void> {
    if (type === PLOTLY) {
      await this.drawPlotly(data as Record<string, unknown>, holder);
    } else if (/^application\/vnd\.vega(lite)?\./.test(type)) {
      const embed = (window as unknown as { vegaEmbed: Embed }).vegaEmbed;
      const options = (metadata.embed_options ?? {}) as Record<string, unknown>;
      const mode = type.includes('lite') ? 'vega-lite' : 'vega';
      const dark = document.documentElement.style.colorScheme === 'dark';
      const theme = dark ? { theme: 'dark' } : {};
      const side = /lite\.v[1-5]\b/.test(type) ? 200 : 300; // what a chart without a size had then
      const view = { continuousWidth: side, continuousHeight: side };
      await embed(add(holder, 'div'), data, { mode, config: { view }, ...theme, ...options });
    } else if (type === 'text/html') {
      const node = add(holder, 'div');
      node.className = 'jp-RenderedHTMLCommon jp-RenderedHTML jp-OutputArea-output';
      await this.setHtml(node, String(data));
    } else if (type === 'text/markdown') {
      const node = add(holder, 'div');
      node.className = 'jp-RenderedHTMLCommon jp-RenderedMarkdown jp-OutputArea-output';
      const { text, math } = removeMath(String(data));
      await this.setHtml(node, replaceMath(marked.parse(text, { async: false, gfm: true }), math));
    } else if (type === 'image/svg+xml') {
      const node = add(holder, 'div');
      node.className = 'jp-RenderedSVG';
      node.innerHTML = String(data);
    } else if (/^application\/(x-)?javascript$/.test(type) || type.endsWith('_load.v0+json')) {
      this.runJavaScript(String(data), add(holder, 'div'));
    } else if (/^(image|audio|video)\//.test(type)) {
      this.drawMedium(type, String(data), metadata, holder);
    }
  }

  private runJavaScript(code: string, element: HTMLElement): void {
    const text = code.replace(/\bimport\s*\(/g, 'gvisorImport(');
    try {
      const run = this.tools.evaluate(`(function (element) {${text}\n})`) as (
        element: HTMLElement
      ) => void;
      run.call(window, element);
    } catch (error) {
      element.textContent = `Javascript Error: ${String(error)}`;
    }
  }

  private async drawPlotly(figure: Record<string, unknown>, holder: HTMLElement): Promise<void> {
    const plotly = (window as unknown as { Plotly?: Plotly }).Plotly;
    if (plotly === undefined) {
      return; // it was said that it is not there
    }
    const { data, layout, config, frames } = figure;
    const node = plotIn(holder) ?? add(holder, 'div');
    node.classList.add(PLOT);
    node.style.cssText = `width: 100%; height: ${plotHeight(figure)}px`;
    await plotly.react(node, data ?? [], layout ?? {}, {
      responsive: true,
      ...(config ?? {})
    });
    if (Array.isArray(frames) && frames.length > 0) {
      plotly.addFrames(node, frames);
    }
  }

  private drawMedium(
    type: string,
    data: string,
    metadata: Readonly<Record<string, unknown>>,
    holder: HTMLElement
  ): void {
    const tag = type.startsWith('image/') ? 'img' : type.startsWith('audio/') ? 'audio' : 'video';
    const node = add(holder, tag);
    node.src = `data:${type};base64,${data.replace(/\s/g, '')}`;
    node.style.maxWidth = metadata.unconfined === true ? 'none' : '100%';
    if (node instanceof HTMLMediaElement) {
      node.controls = true;
    }
    for (const side of ['width', 'height'] as const) {
      const value = metadata[side];
      if (typeof value === 'number' && !(node instanceof HTMLAudioElement)) {
        node[side] = value;
      }
    }
  }

  /** HTML, or a whole document: its elements, styles, frames, then its scripts. */
  private async setHtml(node: HTMLElement, source: string): Promise<void> {
    // realm.js takes links and frames away, so they are given other names (and of links, one without content).
    node.innerHTML = source
      .replace(/<(\/?)iframe\b/gi, '<$1gvisor-iframe')
      .replace(/<link\b/gi, '<param');
    await Promise.all(
      [...node.querySelectorAll('param[rel~="stylesheet" i]')].map(link =>
        this.scripts.sheet(link.getAttribute('href') ?? '').catch(this.scripts.missing)
      )
    );
    for (const frame of node.querySelectorAll<HTMLElement>('gvisor-iframe')) {
      await this.drawFrame(frame);
    }
    await this.typeset(node);
    await this.scripts.runAll(node);
  }

  /** Sets formulas of what is seen, which is not scripts; what is missing is said. */
  async typeset(node: HTMLElement): Promise<void> {
    if (/\$[^]*\$|\\[([]/.test(node.innerText)) {
      await this.load(['gvisor:own:katex']);
      (window as { gvisorTypeset?(node: Node): void }).gvisorTypeset?.(node);
    }
  }

  private async drawFrame(frame: HTMLElement): Promise<void> {
    const side = (name: string, otherwise: string): string => {
      const value = frame.getAttribute(name) ?? otherwise;
      return /^\d+$/.test(value) ? `${value}px` : value;
    };
    frame.replaceChildren();
    const written = frame.getAttribute('style') ?? '';
    frame.className = 'gvisor-iframe';
    frame.style.cssText = `display: block; max-width: 100%; width: ${side('width', '300px')};
      height: ${side('height', '150px')}; ${written}`;
    // Before it stands a hint of folium for pages that show no frames.
    const hint = frame.previousElementSibling;
    if (hint?.localName === 'span' && hint.textContent.includes('Make this Notebook Trusted')) {
      hint.remove();
    }
    const srcdoc = frame.getAttribute('srcdoc');
    if (srcdoc !== null) {
      await this.drawDocument(frame, srcdoc);
      return;
    }
    const url = frame.getAttribute('src') ?? '';
    if (/^([a-z][a-z0-9+.-]*:|\/\/)/i.test(url)) {
      const note = add(frame, 'div', 'Not loaded, as outputs have no network: ');
      note.className = 'gvisor-note';
      add(note, 'a', url).setAttribute('href', url);
      return;
    }
    try {
      const { bytes, type } = await this.tools.readFile(url);
      if (type.startsWith('image/')) {
        add(frame, 'img').src = URL.createObjectURL(new Blob([bytes], { type }));
      } else {
        await this.drawDocument(frame, new TextDecoder().decode(bytes));
      }
    } catch (error) {
      add(frame, 'div', error instanceof Error ? error.message : String(error)).className =
        'gvisor-note';
    }
  }

  /** Another document in this one: its rules for ``html`` and ``body`` are those of its place. */
  private async drawDocument(frame: HTMLElement, source: string): Promise<void> {
    frame.removeAttribute('srcdoc');
    frame.style.display = 'block';
    const scoped = source.replace(
      /(<style\b[^>]*>)([\s\S]*?)(<\/style>)/gi,
      (_, open: string, rules: string, close: string) =>
        `${open}@scope (.gvisor-iframe) {${rules}\n}${close}`
    );
    await this.setHtml(frame, scoped);
  }
}

/**
 * From now on a picture that gets an address is asked for, as those of maps: a frame has no network,
 * but the kernel that has sent the map may have been given a route, by which the server reads them
 * (``src/framed_view.ts``). Where there is none, it is as without this, and the browser refuses it.
 */
function askForTiles({ call }: Tools): void {
  const own = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, 'src');
  const ask = async (image: HTMLImageElement, url: string): Promise<void> => {
    let address = url;
    try {
      const picture = (await call('library', { url, kind: 'tile' })) as ArrayBuffer;
      address = URL.createObjectURL(new Blob([picture]));
    } catch {
      // the extension remembers hosts without a route
    }
    image.addEventListener('load', () => URL.revokeObjectURL(address), { once: true });
    own?.set?.call(image, address);
  };
  Object.defineProperty(HTMLImageElement.prototype, 'src', {
    ...own,
    set(this: HTMLImageElement, value: unknown) {
      const url = String(value);
      if (/^https?:\/\//i.test(url)) {
        void ask(this, url);
      } else {
        own?.set?.call(this, url);
      }
    }
  });
}

/** The plot of Plotly that is all of what is drawn in a node. */
export function plotIn(holder: Element): HTMLElement | null {
  const only = holder.childElementCount === 1 ? holder.firstElementChild : null;
  return only instanceof HTMLElement && only.classList.contains(PLOT) ? only : null;
}

const PLOT = 'gvisor-plot';
