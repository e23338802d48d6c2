/**
 * Which library an address of a page means, or the text of an output that loads none.
 *
 * Names are those of ``server/library_handlers.py``; a name with ``own:`` is a bundle of this
 * extension. A page gets nothing by any other name.
 */

import type { ArtifactClient } from './artifacts.js';
import { PLOTLY, type Part, VEGA, hasScripts } from './output_parts.js';
import type { Answered } from './page_frame.js';

/** A library without which an output is drawn, too. */
const NOTHING = 'nothing';

const SCRIPTS: readonly (readonly [RegExp, string])[] = [
  [/^gvisor:esm$/, 'own:esm'],
  [/^gvisor:((?:own:)?[a-z0-9-]{1,60})$/, '$1'],
  [/\bplotly(?:js)?\b(?!.*\.css)/i, 'plotly'],
  [/\bbokeh(-api|-gl|-mathjax|-tables|-widgets)?(?:-\d[\w.-]*?)?(?:\.min)?(?:\.js)?$/, 'bokeh$1'],
  // It makes a frame to try the browser's modules, which the frame has not. Plotly asks for MathJax.
  [/\bes-module-shims\b|\bmathjax\b/i, NOTHING],
  [/\bpanel(?:\.min)?\.js$/, 'panel'],
  [/\bvega(?:-lib|-lite|-embed)?\b/, 'own:vega'],
  [/\bd3(?:\.v5|@5|\/5\.)/, 'd3-5'],
  [/\bldavis\b/i, 'ldavis'],
  [/\bdt_for_itables\b|\bitables\b/, 'itables'],
  [/\bvis(?:-network|js)?\b/, 'vis-network'],
  [/\btom-select\b/, 'tom-select'],
  [/^(?:\.\/)?lib\/bindings\/utils\.js$/, 'pyvis-utils'],
  [/\bjquery\b/i, 'own:jquery'],
  [/\bawesome-?markers\b|\bbootstrap\b|\bleaflet[._-](?:markercluster|heat)\b/i, NOTHING],
  [/\bleaflet(?:-src)?(?:\.js)?$/, 'own:leaflet'],
  [/\bshap\b/, 'shap'],
  [/\btailwind/i, 'own:tailwind'],
  [/^(?!.*\bd3(?:\.v|[@/])[1-3]\b).*\b(?:react|recharts|d3|lodash|underscore)\b/i, 'own:libraries']
];

const STYLES: readonly (readonly [RegExp, string])[] = [
  [/\bpanel\b.*\/css\/([a-z_]+)\.css$/, 'panel-$1.css'],
  [/\bpanel\b.*\/theme\/([a-z]+)\.css$/, 'panel-theme-$1.css'],
  [/\bldavis\b/i, 'ldavis.css'],
  [/\bvis(?:-network)?\b/, 'vis-network.css'],
  [/\bdt_for_itables\b|\bitables\b/, 'itables.css'],
  // The leaflet bundle has its own; the others only make it nicer.
  [/\bleaflet\b|\bbootstrap\b|\bfont-?awesome\b|\bglyphicons\b|\btom-select\b|\bfonts\./i, NOTHING]
];

/** The name of the library that a page asks for by an address, or by a name of RequireJS. */
export function libraryOf(url: string, kind: 'script' | 'style'): string | null {
  const [path = ''] = url.slice(0, 2000).split(/[?#]/, 1);
  for (const [pattern, name] of kind === 'script' ? SCRIPTS : STYLES) {
    const match = pattern.exec(path);
    if (match !== null) {
      return name.replace('$1', match[1] ?? '');
    }
  }
  return null;
}

/** Characters of libraries that a frame gets: it could ask for them in a loop. */
const MAX_GIVEN = 64 * 1024 * 1024;

type LibrarySource = Pick<ArtifactClient, 'script' | 'library'>;

/** Its name and text. */
export async function readLibrary(
  source: LibrarySource,
  url: string,
  kind: 'script' | 'style'
): Promise<{ readonly name: string; readonly text: string }> {
  const name = libraryOf(url, kind);
  if (name === null) {
    const short = url.slice(0, 200).replace(/^https?:\/\/([^/]+)\/.*\/(?=[^/]+$)/, '$1/…/');
    throw new Error(`Not loaded, as outputs have no network: ${short}`);
  }
  if (name === NOTHING) {
    return { name, text: '' };
  }
  const text = name.startsWith('own:')
    ? await source.script(name.slice('own:'.length))
    : await source.library(name);
  return { name, text };
}

/** A text would be copied through three documents, by JupyterLab's own process first. */
const blobs = new Map<string, Blob>();

/** Answers a frame that asks for libraries, as long as it has not asked for too many. */
export function giveLibraries(
  source: LibrarySource
): (args: Readonly<Record<string, unknown>>) => Promise<Answered> {
  let given = 0;
  return async args => {
    const url = typeof args.url === 'string' ? args.url : '';
    const { name, text } = await readLibrary(
      source,
      url,
      args.kind === 'style' ? 'style' : 'script'
    );
    given += text.length;
    if (given > MAX_GIVEN) {
      throw new Error('This output asks for too many libraries.');
    }
    let blob = blobs.get(text);
    if (blob === undefined) {
      blob = new Blob([text]);
      blobs.set(text, blob);
    }
    return { value: { name, blob }, bytes: 0 }; // they are bounded in all
  };
}

const USES: readonly (readonly [RegExp, readonly string[]])[] = [
  [/\bPlotly\s*\./, ['gvisor:plotly']],
  [/\bSHAP\s*\./, ['gvisor:shap']],
  [/\bvegaEmbed\s*\(/, ['gvisor:own:vega']],
  [/\bjQuery\b|\$\(/, ['gvisor:own:jquery']]
];
const BOKEH = ['', '-gl', '-widgets', '-tables'].map(part => `gvisor:bokeh${part}`);
/** Characters of an output that are looked at: one with a whole library in it loads it itself. */
const MAX_LOOKED_AT = 1_000_000;

/** What parts use without loading it; ``isPrepared``: an earlier output has loaded Bokeh. */
export function librariesOf(parts: readonly Part[], isPrepared: boolean): readonly string[] {
  if (parts[0]?.type === PLOTLY) {
    return ['gvisor:plotly'];
  }
  if (parts.some(({ type }) => VEGA.test(type))) {
    return ['gvisor:own:vega'];
  }
  return hasScripts(parts)
    ? librariesIn(parts.map(({ data }) => String(data)).join('\n'), isPrepared)
    : [];
}

/** What a text with scripts uses; ``isPrepared``: an earlier output has loaded Bokeh. */
export function librariesIn(text: string, isPrepared: boolean): string[] {
  if (text.length > MAX_LOOKED_AT) {
    return [];
  }
  const found = USES.filter(([pattern]) => pattern.test(text)).flatMap(([, names]) => names);
  if (!isPrepared && /\bBokeh\b/.test(text)) {
    const usesPanel = /"panel\.|\bpanel\.models\b/.test(text);
    return [...found, ...BOKEH, ...(usesPanel ? ['gvisor:panel'] : [])];
  }
  return found;
}
