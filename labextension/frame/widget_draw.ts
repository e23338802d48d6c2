/** Draws an output of a cell, in the frame: by ``output.ts`` if that is there, or in a simple way. */

import type { FrameManager } from './widget_manager.js';
import { showView } from './widget_views.js';

type Fields = Readonly<Record<string, unknown>>;

const VIEW_TYPE = 'application/vnd.jupyter.widget-view+json';
const PICTURES = ['image/png', 'image/jpeg', 'image/gif', 'image/webp'];
const PLOTS = /^application\/(?:vnd\.(plotly|vega|vegalite|bokehjs|holoviews)\w*|javascript$)/;
const ESCAPES = /\u001b\[[0-9;]*[A-Za-z]/g;

const fieldsOf = (value: unknown): Fields =>
  typeof value === 'object' && value !== null ? (value as Fields) : {};
const textOf = (value: unknown): string =>
  Array.isArray(value) ? value.join('') : typeof value === 'string' ? value : '';

/** What a terminal shows: a line that begins anew replaces what it had. */
export function withReturns(text: string): string {
  return text
    .split('\n')
    .map(line => {
      const parts = line.replace(/\r+$/, '').split('\r');
      return parts.reduce((shown, part) => part + shown.slice(part.length), '');
    })
    .join('\n');
}

function addText(node: Element, text: string, className: string): void {
  const pre = document.createElement('pre');
  pre.className = className;
  pre.textContent = withReturns(text).replace(ESCAPES, '');
  node.append(pre);
}

export function drawOutput(output: Fields, node: HTMLElement, manager: FrameManager): void {
  const data = fieldsOf(output.data);
  const view = fieldsOf(data[VIEW_TYPE]).model_id;
  if (typeof view === 'string') {
    showView(view, node, manager);
  } else if (window.gvisorDraw !== undefined) {
    void window.gvisorDraw(output, node, manager.tools);
  } else {
    drawSimply(output, data, node, manager);
  }
}

function drawSimply(output: Fields, data: Fields, node: HTMLElement, manager: FrameManager): void {
  const picture = PICTURES.find(type => type in data);
  const plot = Object.keys(data).find(type => PLOTS.test(type));
  if (plot !== undefined && picture === undefined) {
    const hint = plot.includes('plotly')
      ? ' Or use FigureWidget of plotly, and change its data.'
      : '';
    addText(
      node,
      `This plot or script is not shown in an Output widget, as interact has one. Show it in a cell of its own.${hint}`,
      ''
    );
  } else if (output.output_type === 'stream') {
    addText(node, textOf(output.text), output.name === 'stderr' ? 'gk-stderr' : '');
  } else if (output.output_type === 'error') {
    const lines = Array.isArray(output.traceback) ? output.traceback : [];
    addText(node, lines.join('\n'), 'gk-stderr');
  } else if ('text/html' in data) {
    const holder = document.createElement('div');
    holder.className = 'jp-OutputArea-output jp-RenderedHTMLCommon jp-RenderedHTML'; // for its rules
    holder.innerHTML = textOf(data['text/html']);
    node.append(holder);
    for (const script of holder.querySelectorAll('script')) {
      manager.tools.evaluate(script.textContent);
    }
  } else if (picture !== undefined) {
    const image = document.createElement('img');
    image.src = `data:${picture};base64,${textOf(data[picture])}`;
    node.append(image);
  } else if ('image/svg+xml' in data) {
    const holder = document.createElement('div');
    holder.innerHTML = textOf(data['image/svg+xml']);
    node.append(holder);
  } else {
    addText(node, textOf(data['text/plain']), '');
  }
}
