/** Where an output is, and what earlier outputs of its notebook or console have prepared for it. */

import type { ISessionContext } from '@jupyterlab/apputils';
import { PathExt } from '@jupyterlab/coreutils';
import type { IRenderMime } from '@jupyterlab/rendermime';
import type { Widget } from '@lumino/widgets';

import type { Place } from './artifacts.js';
import type { Trackers } from './current.js';
import {
  type Bundle,
  MAX_SETUPS,
  type Part,
  completes,
  isLoad,
  relevantNames,
  setupOf
} from './output_parts.js';
import { isOurs } from './specs.js';

interface OutputLike extends IRenderMime.IMimeModel {
  toJSON(): unknown;
}

interface OutputList {
  readonly length: number;
  get(index: number): OutputLike;
}

/** A notebook's or console's outputs before one of them. */
export interface OutputPlace {
  readonly session: ISessionContext;
  readonly own: OutputLike;
  readonly before: readonly OutputLike[];
}

export interface Setup {
  readonly id: string;
  readonly parts: readonly Part[];
  readonly isLoad: boolean;
}

interface Area extends Widget {
  readonly model: OutputList;
  readonly widgets: readonly Widget[];
}

/** By the output area that a widget is in; another view of a cell's outputs has the same model. */
export function findPlace(widget: Widget, trackers: Trackers): OutputPlace | null {
  let child = widget;
  while (child.parent !== null && !isArea(child.parent)) {
    child = child.parent;
  }
  if (child.parent === null) {
    return null;
  }
  const { model, widgets } = child.parent;
  const known: [ISessionContext, Iterable<object>][] = [];
  trackers.notebooks?.forEach(({ sessionContext, content }) =>
    known.push([sessionContext, content.model?.cells ?? []])
  );
  trackers.consoles?.forEach(({ sessionContext, console: { cells } }) =>
    known.push([sessionContext, [...cells].map(cell => cell.model)])
  );
  for (const [session, cells] of known) {
    const lists = [...cells].flatMap(cell => (cell as { outputs?: OutputList }).outputs ?? []);
    const place = lists.indexOf(model);
    if (place >= 0) {
      const index = Math.max(widgets.indexOf(child), 0);
      const earlier = outputsOf(model).slice(0, index);
      const before = [...lists.slice(0, place).flatMap(outputsOf), ...earlier];
      return { session, own: model.get(index), before };
    }
  }
  return null;
}

const outputsOf = (list: OutputList): OutputLike[] =>
  Array.from({ length: list.length }, (_, index) => list.get(index));

function isArea(widget: Widget): widget is Area {
  return widget.node.classList.contains('jp-OutputArea') && 'model' in widget;
}

/** A file of the outputs: of a kernel of ours, or of the folder ``outputs`` beside the notebook. */
export function fileOf({ path: own, session, specsManager }: ISessionContext, path: string): Place {
  const kernel = session?.kernel;
  return kernel && isOurs(specsManager.specs, kernel.name)
    ? { kernel_id: kernel.id, path }
    : { path: PathExt.join(PathExt.dirname(own), 'outputs', path) };
}

/**
 * What an output is drawn with: its own parts, those of the output before it that it fills, and
 * earlier outputs that prepare the page: the newest where they are too large together; and from
 * which outputs that is.
 */
export function setupsBefore(
  { before }: OutputPlace,
  parts: readonly Part[]
): {
  readonly parts: readonly Part[];
  readonly setups: readonly Setup[];
  readonly from: readonly OutputLike[];
} {
  const own = textIn(parts);
  const names = relevantNames(own);
  const found = new Map<string, Setup>();
  const from: OutputLike[] = [];
  let size = 0;
  for (const output of [...before].reverse()) {
    const { setup, text } = lookAt(output);
    const fits = text !== '' && !found.has(text) && size + text.length <= MAX_SETUPS;
    if (fits && (/^\s*<style/i.test(text) || names.some(name => text.includes(name)))) {
      size += text.length;
      found.set(text, setup);
      from.push(output);
    }
  }
  // Panel loads Bokeh, too.
  const usesPanel = [...found.keys()].some(text => text.includes('Panel'));
  const kept = [...found].filter(
    ([text, setup]) => !setup.isLoad || !usesPanel || /panel|holoviews/i.test(text)
  );
  const last = before.at(-1);
  const filled = last === undefined ? [] : completes(bundleOf(last), own);
  from.push(...(last !== undefined && filled.length > 0 ? [last] : []));
  return { parts: [...filled, ...parts], setups: kept.reverse().map(([, setup]) => setup), from };
}

const textIn = (parts: readonly Part[]): string => parts.map(({ data }) => String(data)).join('\n');

interface Known {
  readonly data: unknown;
  readonly setup: Setup;
  readonly text: string;
}

const looks = new WeakMap<object, Known>();
let lastId = 0;

/** Looked at once for each state of an output. */
function lookAt(model: OutputLike): Known {
  let known = looks.get(model);
  if (known?.data !== model.data) {
    const bundle = bundleOf(model);
    const parts = setupOf(bundle);
    const setup = { id: String(++lastId), parts, isLoad: isLoad(bundle) };
    known = { data: model.data, setup, text: textIn(parts) };
    looks.set(model, known);
  }
  return known;
}

/** As it is saved: what JupyterLab's renderers get of a model may be less. */
function bundleOf(model: OutputLike): Bundle {
  const { data, metadata } = model.toJSON() as Partial<Bundle>;
  return { data: { ...data }, metadata: { ...metadata } };
}
