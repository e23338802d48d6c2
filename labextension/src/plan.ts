/**
 * How an output is drawn: which of its types, where, and what that takes. Its data are hostile, and so is their order.
 * What draws it is in ``wall.ts``; what may stand in the page is in ``inline.ts``.
 */

import type { IRenderMime } from '@jupyterlab/rendermime';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import { drawable, isFormula, isLongMarkdown, isPicture, isTree, readMarkup } from './inline.js';
import { ORDER, SHOW_TYPE } from './output_parts.js';

export type Bundle = ReadonlyPartialJSONObject;

/** Registered for each notebook alone, so that the page's list of types does not have it. */
const WIDGET_TYPE = 'application/vnd.jupyter.widget-view+json';

/** How an output is drawn. ``type``: of the bundle. ``lost``: a richer type is not shown. */
export interface Plan {
  readonly way: 'native' | 'markup' | 'markdown' | 'frame' | 'nothing';
  readonly type: string;
  readonly lost: boolean;
}

/** Makes what draws a type in a frame. It gets a model with all of the output's data, and calls
 *  ``refused`` with the reason if this browser cannot hold a frame. */
export type MakeFrame = (
  mimeType: string,
  refused: (why: string) => void
) => IRenderMime.IRenderer | null;

/** What plugins say of this page, before an output is drawn. */
export const page: {
  makeFrame: MakeFrame;
  canDraw: (mimeType: string) => boolean;
  /** Which types JupyterLab shows: of others nobody misses anything. */
  isShown: (mimeType: string) => boolean;
  /** Makes the view of a widget; null as long as its plugin is not there. */
  makeWidget: () => IRenderMime.IRenderer | null;
  /** Asks before an address is opened; nothing is opened before its plugin is there. */
  confirmLink: (url: string) => void;
} = {
  makeFrame: () => null,
  canDraw: () => false,
  isShown: () => false,
  makeWidget: () => null,
  confirmLink: () => undefined
};

export function textOf(value: unknown): string {
  const text = Array.isArray(value) ? value.join('') : value;
  return typeof text === 'string' ? text : JSON.stringify(text);
}

function isNative(type: string, value: unknown): boolean {
  switch (type) {
    case SHOW_TYPE:
    case 'text/plain':
      return true;
    case 'image/png':
    case 'image/jpeg':
      return typeof value === 'string' && isPicture(value);
    case 'text/latex':
      return typeof value === 'string' && isFormula(value);
    case 'application/json':
      return isTree(value);
    default:
      return false;
  }
}

/** ``frames``: whether a type can be drawn in one. */
export function makePlan(bundle: Bundle, frames: (mimeType: string) => boolean): Plan {
  const isKnown = (type: string): boolean =>
    type === WIDGET_TYPE || ORDER.includes(type) || page.isShown(type) || page.canDraw(type);
  const types = Object.keys(bundle)
    .filter(it => isKnown(it) || frames(it))
    .sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));
  let lost = false;
  let reduced: string | null = null;
  for (const type of types) {
    const value = bundle[type];
    if (isNative(type, value)) {
      // Of a picture or formula that stands beside HTML, a person sees more than of its rest.
      return reduced !== null && type === 'text/plain'
        ? { way: 'markup', type: reduced, lost }
        : { way: 'native', type, lost };
    }
    if (type === 'text/html') {
      const markup = readMarkup(textOf(value));
      if (markup?.lost === false) {
        return { way: 'markup', type, lost };
      }
      reduced = markup !== null && /\S/.test(markup.text) ? type : null;
    }
    if (type === 'text/markdown') {
      return { way: 'markdown', type, lost };
    }
    if (frames(type)) {
      return { way: 'frame', type, lost };
    }
    lost = true;
  }
  return reduced === null
    ? { way: 'nothing', type: '', lost }
    : { way: 'markup', type: reduced, lost };
}

/** Of each, as much as an ordinary computer draws in about two seconds. */
const BUDGET = {
  lines: 90_000,
  marks: 60_000, // colours and links
  elements: 18_000,
  characters: 8_000_000,
  signs: 1000, // that begin formulas
  latex: 20_000, // characters
  json: 500_000,
  parsed: 30_000, // characters of Markdown
  pictures: 100_000_000 // characters in base64
};
/** Above it, no text is looked at: what draws it does not either. */
const MOST_SCANNED = 2_000_000;

const count = (text: string, mark: RegExp): number => text.match(mark)?.length ?? 0;

/** The share of the budget that drawing an output takes, by what its data say; 0 to about 1. */
export function shareOf(bundle: Bundle): number {
  let share = 0;
  for (const [type, value] of Object.entries(bundle)) {
    const isText = /^(?:text\/plain|application\/vnd\.jupyter\.(?:std(?:out|err)|error))$/.test(
      type
    );
    if (/^image\/(?:png|jpeg)$/.test(type)) {
      share += textOf(value).length / BUDGET.pictures;
    } else if (isText) {
      const whole = textOf(value);
      const text = whole.slice(0, drawable(whole, type.endsWith('stderr')));
      share += text.length / BUDGET.characters;
      share +=
        count(text, /\n/g) / BUDGET.lines + count(text, /\x1b\[|:\/\/|www\./g) / BUDGET.marks;
    } else if (type === 'application/json') {
      share += textOf(value).length / BUDGET.json;
    } else if (/^text\/(?:html|markdown|latex)$/.test(type)) {
      const text = textOf(value).slice(0, MOST_SCANNED);
      share += text.length / (type === 'text/latex' ? BUDGET.latex : BUDGET.characters);
      share += count(text, /<\w/g) / BUDGET.elements + count(text, /\$|\\[([]/g) / BUDGET.signs;
      share += type === 'text/markdown' && !isLongMarkdown(text) ? text.length / BUDGET.parsed : 0;
    }
  }
  return share;
}
