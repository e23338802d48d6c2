/** What of an output's MIME bundle is drawn in a frame, and which outputs prepare later ones. */

/** A value of a MIME bundle, as the bundle in the frame draws it. */
export interface Part {
  readonly type: string;
  readonly data: unknown;
  readonly metadata: Readonly<Record<string, unknown>>;
}

/** The part of an output's model that is looked at. */
export interface Bundle {
  readonly data: Readonly<Record<string, unknown>>;
  readonly metadata: Readonly<Record<string, unknown>>;
}

/** ``show("report.html")``: the name of a file, which has a frame of its own. */
export const SHOW_TYPE = 'application/vnd.gvisor-kernel.output+json';
/** From the richest to plain text; types that are not here are richer still. */
export const ORDER: readonly string[] = [
  SHOW_TYPE,
  'text/html',
  'text/markdown',
  'text/latex',
  'image/svg+xml',
  'image/png',
  'image/jpeg',
  'image/gif',
  'image/webp',
  'image/bmp',
  'application/json',
  'application/pdf',
  'application/javascript',
  'text/javascript',
  'text/plain'
];

export const PLOTLY = 'application/vnd.plotly.v1+json';
// Altair 6 writes `.v6.json`.
export const VEGA = /^application\/vnd\.vega(lite)?\.v\d[+.]json$/;
const LOAD = /^application\/vnd\.(bokehjs|holoviews)_load\.v0\+json$/;
const EXECUTE = /^application\/vnd\.(bokehjs|holoviews)_exec\.v0\+json$/;
const SCRIPT = /^application\/(x-)?javascript$/;
const MEDIUM = /^(image\/(gif|webp|avif|bmp|png|jpeg)|audio\/[\w.+-]{1,40}|video\/[\w.+-]{1,40})$/;
const DOCUMENT = /^(text\/(html|markdown)|image\/svg\+xml)$/;

/** Bytes, or characters, of an output that is drawn. */
export const MAX_OUTPUT = 64 * 1024 * 1024;
/** Characters of earlier outputs that are given to a frame. */
export const MAX_SETUPS = 8 * 1024 * 1024;
/** A script of so many characters is a library. */
const LONG_SCRIPT = 20_000;

/** Whether a frame can draw a value of this type. */
export function canDraw(mimeType: string): boolean {
  const known = [VEGA, LOAD, EXECUTE, SCRIPT, MEDIUM, DOCUMENT];
  return mimeType === PLOTLY || known.some(it => it.test(mimeType));
}

const typeOf = ({ data }: Bundle, pattern: RegExp): string | undefined =>
  Object.keys(data).find(it => pattern.test(it));

export function textOf(value: unknown): string {
  return typeof value === 'string'
    ? value
    : Array.isArray(value)
      ? value.filter(it => typeof it === 'string').join('')
      : '';
}

/** The parts that draw an output which is shown by this type. */
export function partsOf(mimeType: string, bundle: Bundle): readonly Part[] {
  const { data, metadata } = bundle;
  const part = (type: string | undefined): Part[] => {
    if (type === undefined || !Object.hasOwn(data, type)) {
      return [];
    }
    const own = metadata[type];
    const merged = typeof own === 'object' && own !== null ? { ...metadata, ...own } : metadata;
    const isJson = type === PLOTLY || VEGA.test(type);
    return [{ type, data: isJson ? data[type] : textOf(data[type]), metadata: merged }];
  };
  const script = part(typeOf(bundle, SCRIPT));
  // Bokeh's bundles have elements, and the script that fills them.
  if (typeOf(bundle, EXECUTE) !== undefined) {
    return [...part('text/html'), ...script];
  }
  if (isLoad(bundle) && !DOCUMENT.test(mimeType)) {
    return script.length > 0 ? script : part(typeOf(bundle, LOAD));
  }
  return part(mimeType);
}

/** Whether an output draws nothing, so that it needs no frame. */
export function isLoad(bundle: Bundle): boolean {
  return typeOf(bundle, LOAD) !== undefined;
}

/** The height of a plot's node, which has no height of its own. */
export function plotHeight(figure: unknown): number {
  const { layout } = (figure ?? {}) as { layout?: { height?: unknown } | null };
  const height = layout?.height;
  return typeof height === 'number' ? height : 360;
}

const HEIGHT = /(?<![\w-])height["']?\s*[:=]\s*["']?(\d{1,5})(pt|px)?(?![\w%])/;
const HEIGHT_OF_ROW = 21;

/** About how high an output will be, by what its data say. */
export function heightOf(parts: readonly Part[]): number | undefined {
  const { type, data } = parts.at(-1) ?? {};
  if (type === PLOTLY) {
    return Math.min(Math.max(plotHeight(data), 10), 5000);
  }
  const text = (typeof data === 'string' ? data : JSON.stringify(data ?? '')).slice(0, MAX_SCANNED);
  const [, height = VEGA.test(type ?? '') ? 300 : 0, unit] = HEIGHT.exec(text) ?? [];
  const rows = (text.match(/<tr\b/gi)?.length ?? 0) * HEIGHT_OF_ROW;
  const found = Math.max(Number(height) * (unit === 'pt' ? 4 / 3 : 1), rows);
  return found > 0 ? Math.min(found, 5000) : undefined;
}

/** Whether what is drawn may use what earlier outputs have prepared. */
export function hasScripts(parts: readonly Part[]): boolean {
  return parts.some(
    ({ type, data }) =>
      SCRIPT.test(type) || (typeof data === 'string' && /<script|\son[a-z]+\s*=/i.test(data))
  );
}

/** The parts of an output that only prepares the page for later ones; none if it draws something. */
export function setupOf(bundle: Bundle): readonly Part[] {
  const script = typeOf(bundle, SCRIPT);
  if (isLoad(bundle)) {
    return partsOf('', bundle);
  }
  if (typeOf(bundle, EXECUTE) !== undefined) {
    return [];
  }
  const html = textOf(bundle.data['text/html']);
  if (html !== '') {
    return isSetup(html) ? partsOf('text/html', bundle) : [];
  }
  const draws = script === undefined || /\belement\b/.test(textOf(bundle.data[script]));
  return draws ? [] : partsOf(script, bundle);
}

const NAME = /(?:^|[^.\w$])(?:window\.|root\.|self\.)?([A-Za-z_$][\w$]{2,60})(?=\s*[.([;,})])/g;
const MAX_NAMES = 60;
/** Characters of an output whose names are looked for. */
const MAX_SCANNED = 200_000;
const WORDS = new Set(
  (
    'async await break case catch class const continue data default delete div element else error ' +
    'event export false finally for function import index instanceof let name new node null return ' +
    'root script span static style super switch table this throw true try typeof undefined value ' +
    'var void while yield'
  ).split(' ')
);

/** Names of variables that a text may expect: those that no browser has. */
export function relevantNames(text: string): readonly string[] {
  const found = new Set<string>();
  for (const [, name = ''] of text.slice(0, MAX_SCANNED).matchAll(NAME)) {
    if (!(name in globalThis) && !WORDS.has(name)) {
      found.add(name);
    }
    if (found.size >= MAX_NAMES) {
      break;
    }
  }
  return [...found];
}

/** The elements that a script fills, if the output before it has them alone, as Bokeh's have. */
export function completes(before: Bundle, script: string): readonly Part[] {
  const html = textOf(before.data['text/html']);
  if (html === '' || html.length > LONG_SCRIPT || /<script/i.test(html)) {
    return [];
  }
  const id = /\sdata-root-id="([\w-]{1,80})"/.exec(html)?.[1];
  return id !== undefined && script.includes(id) ? partsOf('text/html', before) : [];
}

function isSetup(html: string): boolean {
  if (html.length > MAX_SETUPS || !/<(script|style)/i.test(html)) {
    return false;
  }
  const { rest, scripts } = withoutScripts(html);
  // Elements with names are those that a script fills.
  return rest.trim() === '' || (scripts > LONG_SCRIPT && !/\sid\s*=|<table/i.test(rest));
}

/** The text without its scripts, styles and comments, and how long the scripts are. */
function withoutScripts(html: string): { readonly rest: string; readonly scripts: number } {
  const lower = html.toLowerCase();
  let rest = '';
  let scripts = 0;
  let place = 0;
  for (const { index, 1: name } of lower.matchAll(/<(?:(script|style|svg)(?![\w-])|!--)/g)) {
    if (index >= place) {
      const end = name === undefined ? '-->' : `</${name}>`;
      const closing = lower.indexOf(end, index);
      rest += html.slice(place, index);
      place = closing < 0 ? html.length : closing + end.length;
      scripts += name === 'script' ? place - index : 0;
    }
  }
  return { rest: rest + html.slice(place), scripts };
}
