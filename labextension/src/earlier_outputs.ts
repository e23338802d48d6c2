/** Where an output is, and what earlier outputs of its notebook or console have prepared for it. */

import type { IRenderMime } from '@jupyterlab/rendermime';
import type { Widget } from '@lumino/widgets';

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

interface OutputLike extends IRenderMime.IMimeModel {
  toJSON(): unknown;
}

interface OutputList {
  readonly length: number;
  get(index: number): OutputLike;
}

interface CellLike {
  readonly outputs?: OutputList;
}

/** A notebook's or console's outputs before one of them. */
export interface OutputPlace {
  readonly session: {
    readonly path: string;
    readonly session: { readonly kernel: { readonly id: string } | null } | null;
  };
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
  let parent = child.parent;
  while (parent !== null && !isArea(parent)) {
    child = parent;
    parent = parent.parent;
  }
  if (parent === null) {
    return null;
  }
  const { model: list, widgets } = parent;
  const index = Math.max(widgets.indexOf(child), 0);
  let found: OutputPlace | null = null;
  const look = (session: OutputPlace['session'], cells: Iterable<CellLike>): void => {
    const before: OutputLike[] = [];
    for (const { outputs } of found === null ? cells : []) {
      const count = outputs === list ? index : (outputs?.length ?? 0);
      for (let place = 0; outputs !== undefined && place < count; place++) {
        before.push(outputs.get(place));
      }
      if (outputs === list) {
        found = { session, before };
        return;
      }
    }
  };
  trackers.notebooks?.forEach(panel => {
    look(panel.sessionContext, (panel.content.model?.cells ?? []) as Iterable<CellLike>);
  });
  trackers.consoles?.forEach(panel => {
    const cells = [...panel.console.cells].map(cell => cell.model as CellLike);
    look(panel.sessionContext, cells);
  });
  return found;
}

function isArea(widget: Widget): widget is Area {
  return widget.node.classList.contains('jp-OutputArea') && 'model' in widget;
}

/**
 * What an output is drawn with: its own parts, those of the output before it that it fills, and
 * earlier outputs that prepare the page: the newest where they are too large together.
 */
export function setupsBefore(
  { before }: OutputPlace,
  parts: readonly Part[]
): { readonly parts: readonly Part[]; readonly setups: readonly Setup[] } {
  const own = parts.map(({ data }) => String(data)).join('\n');
  const names = relevantNames(own);
  const seen = new Set<string>();
  const found: Known[] = [];
  let size = 0;
  for (const output of [...before].reverse()) {
    const it = known(output);
    const { setup, text } = it;
    const fits = setup.parts.length > 0 && !seen.has(text) && size + text.length <= MAX_SETUPS;
    if (fits && names.some(name => text.includes(name))) {
      seen.add(text);
      size += text.length;
      found.push(it);
    }
  }
  // Panel loads Bokeh, too.
  const usesPanel = found.some(({ text }) => text.includes('Panel'));
  const kept = found.filter(
    ({ setup, text }) => !setup.isLoad || !usesPanel || /panel|holoviews/i.test(text)
  );
  const last = before.at(-1);
  const filled = last === undefined ? [] : completes(bundleOf(last), own);
  return { parts: [...filled, ...parts], setups: kept.reverse().map(({ setup }) => setup) };
}

interface Known {
  readonly data: unknown;
  readonly setup: Setup;
  readonly text: string;
}

const setups = new WeakMap<object, Known>();
let lastId = 0;

/** Looked at once for each state of an output. */
function known(model: OutputLike): Known {
  const before = setups.get(model);
  if (before?.data === model.data) {
    return before;
  }
  const bundle = bundleOf(model);
  const parts = setupOf(bundle);
  const made = {
    data: model.data,
    setup: { id: String(++lastId), parts, isLoad: isLoad(bundle) },
    text: parts.map(({ data }) => String(data)).join('')
  };
  setups.set(model, made);
  return made;
}

/** As it is saved: what JupyterLab's renderers get of a model may be less. */
function bundleOf(model: OutputLike): Bundle {
  const { data, metadata } = fields(model.toJSON());
  return { data: fields(data), metadata: fields(metadata) };
}

function fields(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}
