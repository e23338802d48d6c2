/**
 * What a kernel's output may put into JupyterLab's own document: HTML of which every element and
 * property is known, formulas without commands that do more than set type, pictures of known size.
 * Pure functions over hostile text; which outputs they judge is said in ``wall.ts``.
 */

import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';

/** Characters of a text, of JSON and of HTML, and elements of HTML, that are drawn in the page. */
const MOST_TEXT = 2_000_000;
const MOST_JSON = 500_000;
const MOST_HTML = 2_000_000;
/** Of a text: colours and links, each of which is an element; in stderr, each path is a link. */
const MOST_MARKS = 20_000;
const MARKS = /\x1b\[|:\/\/|www\.|data:/g;
const LINE = /\n/g;
const MARKS_OF_ERRORS = /\x1b\[|[\\/]|www\.|data:/g;
const MOST_ELEMENTS = 10_000;
/** Each has a tree of its own behind it: 10,000 take 8 seconds, and a gigabyte. */
const MOST_DETAILS = 300;
/** Elements in one another: the layout of 25,000 open ``<details>`` takes a minute. */
const MOST_DEPTH = 50;
/** Each is laid out by itself: 900,000 take a quarter of a minute, and a gigabyte. */
const MOST_LINES = 30_000;
const MOST_SPANNED = 50_000; // rows and columns: the page lays each of them out
const MOST_FORMULA = 20_000;
/** Of one with ``\ce`` or ``\pu``, whose parser takes time that grows with the square, or a diagram. */
const MOST_CHEMISTRY = 2000;
/** Commands that set or measure their argument twice, or move what follows. */
const MOST_COPIES = 8;
const COPY = /\\(?:pmb|x[a-hj-z]|raise|lower|move|f?box)/;
/** Levels of a formula: each is six elements in one another, and the layout of 350 ends the page. Of
 *  one with signs that stretch: for each level above them they are measured twice. */
const MOST_LEVELS = 40;
const MOST_STRETCHED = 12;
const STRETCHES =
  /arrow|harpoon|brac[ek]|paren|wide|\\(?:[_^]|to|gets|iff|implies|\w*mapsto|leadsto|over[lps]|under)|[\u2190-\u21ff\u23b4-\u23e1\u27f0-\u297f\ufe35-\ufe38]/;
const LEVEL = /\\(left|right|begin|end)(?![A-Za-z])|\\[^]|[{}]/g;
const BEGUN_BY = new Map(Object.entries({ '}': '{', right: 'left', end: 'begin' }));
/** What has an effect on all that follows in its level. */
const SETTING = /\\(?:color|\w*style|[tT]iny|small|normalsize|[lL]arge|LARGE|[hH]uge)(?![A-Za-z])/;
/** Columns times rows that a formula may have: all are laid out. */
const MOST_CELLS = 30_000;
/** Of a style: each is looked up among all others. */
const MOST_PROPERTIES = 1000;
/** Of its parser, which takes time that grows with the square: of 20,000 unclosed marks, 5 seconds.
 *  A formula takes MathJax a millisecond. */
export const isLongMarkdown = (text: string): boolean =>
  text.length > 4000 || text.split('$').length > 200;
const MOST_NESTING = 100;
const MOST_PICTURE = 48_000_000; // characters in base64

const ELEMENTS = new Set(
  (
    'a abbr b blockquote br caption center cite code col colgroup dd del details dfn div dl dt em ' +
    'figcaption figure font h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark ol p pre q s samp section ' +
    'small span strong sub summary sup table tbody td tfoot th thead time tr tt u ul var'
  ).split(' ')
);
/** Of any other element, what is in it is drawn; of these, it is code, or belongs to a form. */
const WITHOUT_CONTENT = new Set(
  (
    'script style template iframe object embed applet noscript noembed noframes svg math title ' +
    'head textarea select datalist audio video canvas map frameset xmp plaintext portal'
  ).split(' ')
);
/** Attributes that stay, if their value is so. */
const ATTRIBUTES = new Map(
  (
    [
      ['align valign dir lang scope type rules frame', /^[\w-]*$/],
      [
        'border cellpadding cellspacing colspan rowspan span start value width height',
        /^\d{0,4}%?(?:px)?$/
      ],
      ['bgcolor color', /^#?\w*$/],
      ['title alt abbr datetime open hidden nowrap reversed', /^/]
    ] as const
  ).flatMap(([names, value]) => names.split(' ').map(name => [name, value] as const))
);
/** Those that mean nothing without a script or style, which are taken away, and said so. */
const MEANINGLESS =
  /^(?:class|id|role|name|headers|halign|scoped|tabindex|rel|target|cite|face|aria-[a-z]+|data-[\w-]+)$/;
const PROPERTIES =
  /^(?:background-color|color|font-(?:family|size|style|weight)|line-height|(?:(?:max|min)-)?(?:height|width)|border(?:-(?:bottom|left|right|top))?(?:-(?:color|style|width))?|border-(?:collapse|spacing)|padding(?:-(?:bottom|left|right|top))?|text-(?:align|wrap-mode)|text-decoration(?:-(?:color|line|style|thickness))?|vertical-align|white-space(?:-collapse)?)$/;
const VALUE = /^(?:[\w#%.,\s+"']|rgba?\(|hsla?\(|\)|-(?=[a-z]))*$/i;
/** What pandas and polars put before each table: it says where the text of their cells stands. */
const TABLE_STYLE =
  /^(?:\s*(?:\.dataframe[\w\s:>-]*(?:,\s*|(?=\{)))+\{(?:\s*(?:vertical-align|text-align|white-space):[\s\w-]+;)*\s*\})*\s*$/;

export interface Markup {
  readonly nodes: Node;
  /** Whether something of it is missing that a person could have seen. */
  readonly lost: boolean;
  /** Its text, with a line end between any two elements. */
  readonly text: string;
}

/** How many characters of a text JupyterLab draws in a moment. */
export function drawable(text: string, isError: boolean): number {
  const end = placeOf(LINE, MOST_LINES, text.slice(0, MOST_TEXT));
  return placeOf(isError ? MARKS_OF_ERRORS : MARKS, MOST_MARKS, text.slice(0, end));
}

/** Where ``pattern`` is found for the first time after ``most`` times; else the text's end. */
function placeOf(pattern: RegExp, most: number, text: string): number {
  let count = 0;
  for (const { index } of text.length > most ? text.matchAll(pattern) : []) {
    count += 1;
    if (count > most) {
      return index;
    }
  }
  return text.length;
}

/** What JupyterLab's renderers get of an output's metadata: sizes, and what a picture shows. With
 *  ``expanded``, a tree of JSON took 4 GB; ``isolated`` is a frame of JupyterLab's own origin. */
export function readMetadata(
  metadata: ReadonlyPartialJSONObject,
  types: readonly string[] | null
): ReadonlyPartialJSONObject {
  const known = Object.entries(metadata).flatMap(([name, value]) => {
    const isSize = /^(?:width|height)$/.test(name) && Number(value) > 0 && Number(value) <= 10_000;
    const isAlt = name === 'alt' && typeof value === 'string';
    const isShade = name === 'needs_background' && (value === 'light' || value === 'dark');
    if (isSize || isAlt || isShade) {
      return [[name, isSize ? Number(value) : isAlt ? value.slice(0, 1000) : value] as const];
    }
    const isOfType = types?.includes(name) === true && typeof value === 'object' && value !== null;
    return isOfType
      ? [[name, readMetadata(value as ReadonlyPartialJSONObject, null)] as const]
      : [];
  });
  return Object.fromEntries(known);
}

/** Whether a value of JSON is small and flat enough for JupyterLab's tree, which is recursive. */
export function isTree(value: unknown): boolean {
  const isDeep = (part: unknown, depth: number): boolean =>
    typeof part === 'object' &&
    part !== null &&
    (depth > MOST_NESTING || Object.values(part).some(it => isDeep(it, depth + 1)));
  return !isDeep(value, 0) && JSON.stringify(value).length <= MOST_JSON;
}

/** Reads HTML into nodes of which nothing acts and nothing is loaded, or null if it is too large, or
 *  too deep. */
export function readMarkup(html: string): Markup | null {
  if (html.length > MOST_HTML || (html.match(/<details/gi)?.length ?? 0) > MOST_DETAILS) {
    return null;
  }
  const source = new DOMParser().parseFromString(html, 'text/html');
  // A style that stands first is put into the head.
  const roots = [...source.head.childNodes, ...source.body.childNodes];
  const nodes = document.createDocumentFragment();
  let lost = false;
  let count = 0;
  let spanned = 0;
  let deepest = 0;
  const texts: string[] = [];
  const copy = (from: Node, to: Node, depth: number): void => {
    if (from.nodeType === 3) {
      const text = (from as Text).data;
      texts.push(text);
      to.appendChild(document.createTextNode(text));
      return;
    }
    if (from.nodeType !== 1 || count > MOST_ELEMENTS || deepest > MOST_DEPTH) {
      return; // a comment
    }
    deepest = Math.max(deepest, depth);
    count += 1;
    const element = from as Element;
    for (const side of ['colspan', 'rowspan', 'span']) {
      spanned += parseInt(element.getAttribute(side) ?? '') || 0;
    }
    const name = element.localName;
    const known = element.namespaceURI === 'http://www.w3.org/1999/xhtml' && ELEMENTS.has(name);
    if (!known) {
      lost ||= !(name === 'style' && isTableStyle(element.textContent));
      if (!WITHOUT_CONTENT.has(name) && element.namespaceURI === source.body.namespaceURI) {
        element.childNodes.forEach(child => copy(child, to, depth + 1));
      }
      return;
    }
    const made = document.createElement(name);
    if (!copyAttributes(element, made)) {
      lost = true;
    }
    if (name === 'img' && !made.hasAttribute('src')) {
      lost = true;
      to.appendChild(document.createTextNode(element.getAttribute('alt') ?? ''));
      return;
    }
    element.childNodes.forEach(child => copy(child, made, depth + 1));
    to.appendChild(made);
  };
  roots.forEach(root => copy(root, nodes, 1));
  return count > MOST_ELEMENTS || deepest > MOST_DEPTH || spanned > MOST_SPANNED
    ? null
    : { nodes, lost, text: texts.join('\n') };
}

function isTableStyle(css: string): boolean {
  return css.length < 2000 && TABLE_STYLE.test(css);
}

/** Whether all that means something was copied. */
function copyAttributes(from: Element, to: HTMLElement): boolean {
  let all = true;
  for (const { name, value } of from.attributes) {
    const tag = to.localName;
    if (name === 'style') {
      all = copyStyle((from as HTMLElement).style, to.style) && all;
    } else if (name === 'class' && tag === 'table' && value.split(/\s+/).includes('dataframe')) {
      to.className = 'dataframe';
    } else if (name === 'href' && tag === 'a') {
      all = setLink(to as HTMLAnchorElement, value) && all;
    } else if (name === 'src' && tag === 'img') {
      const found = /^data:image\/(?:png|jpeg);base64,(.*)$/s.exec(value);
      if (found?.[1] !== undefined && isPicture(found[1])) {
        to.setAttribute('src', value);
      }
    } else if (ATTRIBUTES.get(name)?.test(value) === true) {
      to.setAttribute(name, value.slice(0, 1000));
    } else if (!MEANINGLESS.test(name)) {
      all = false;
    }
  }
  return all;
}

function copyStyle(from: CSSStyleDeclaration, to: CSSStyleDeclaration): boolean {
  if (from.length > MOST_PROPERTIES) {
    return false;
  }
  let all = true;
  for (const property of Array.from(from)) {
    const value = from.getPropertyValue(property);
    if (PROPERTIES.test(property) && VALUE.test(value)) {
      to.setProperty(property, value);
    } else if (value !== 'initial') {
      all = false;
    }
  }
  return all;
}

const LOOPBACK =
  /^(?:localhost|.*\.localhost|127(?:\.\d+){3}|0\.0\.0\.0|\[::1?\]|\[::ffff:7f.*\])\.?$/;

/** What a link may open: an address of the web without a name of a user, which could look like it.
 *  One of this server, by any of its names, would act in the person's name. */
export function readLink(href: string): URL | null {
  const url = URL.canParse(href) ? new URL(href) : null;
  if (url === null || !/^https?:$/.test(url.protocol) || url.username + url.password !== '') {
    return null;
  }
  const { host, hostname, port } = location;
  const isLocal = LOOPBACK.test(url.hostname) && LOOPBACK.test(hostname) && url.port === port;
  return url.host.replace(/\.(?=:|$)/, '') === host || isLocal ? null : url;
}

function setLink(link: HTMLAnchorElement, href: string): boolean {
  const url = readLink(href);
  if (url === null) {
    return false;
  }
  link.href = url.href;
  link.target = '_blank';
  link.rel = 'noopener noreferrer nofollow';
  return true; // a click on it asks: see wall.ts
}

/**
 * Commands of MathJax that load, link, style, name or define. Definitions hold for the whole page:
 * one output could change the formulas of the others.
 */
const COMMANDS = new RegExp(
  '\\\\(?:href|url|class|cssId|style|data|html\\w*|unicode|U|require|mmlToken|bbox|mathtip|texttip|' +
    'toggle|def|gdef|edef|xdef|let|futurelet|global|long|(?:re|provide|)newcommand|' +
    'renewcommand|providecommand|(?:re|)newenvironment|NewDocument\\w*|Declare\\w*|define\\w*|' +
    'newcolumntype|csname|begingroup|sandbox|label|ref|eqref|catcode|includegraphics|enclose|verb|' +
    'set\\w*|usepackage|input|loop|Newextarrow|\\w*tagform|mathtoolsset|minCD\\w*)(?![A-Za-z])|\\^\\^|' +
    '(?:smash|c?frac|cramped|math[lrc]lap|cancel|color|shove\\w+)\\s*\\[[^\\]]*\\\\|' + // not read as a formula
    'prooftree|align(?:ed)?at[^]*\\d{4}' // so many columns that the page ends
);

/** Whether the formulas in a text set type, and do nothing else; and whether that takes no time. */
export function isFormula(tex: string): boolean {
  const length = /\\(?:ce|pu)(?![A-Za-z])|\{CD\}/.test(tex) ? MOST_CHEMISTRY : MOST_FORMULA;
  const count = (what: RegExp | string): number => tex.split(what).length;
  if (
    tex.length > length ||
    COMMANDS.test(tex) ||
    count('&') * count(/\\\\|\\cr|\\newline/) > MOST_CELLS ||
    count(COPY) > MOST_COPIES ||
    count(SETTING) > MOST_NESTING
  ) {
    return false;
  }
  const most = STRETCHES.test(tex) ? MOST_STRETCHED : MOST_LEVELS;
  const levels: string[] = [];
  // Nothing in a comment ends a level.
  const text = tex.replace(/\\[^]|%.*/g, it =>
    it.startsWith('%') ? it.replace(/[}\\]/g, ' ') : it
  );
  for (const [token, word = token] of text.matchAll(LEVEL)) {
    const from = levels.lastIndexOf(BEGUN_BY.get(word) ?? '');
    if (from >= 0 && (word === '}' || from === levels.length - 1)) {
      levels.length = from;
    } else if (/^(?:left|begin|\{)$/.test(word)) {
      levels.push(word);
    }
    if (levels.length > most) {
      return false;
    }
  }
  return true;
}

/** Whether MathJax may look at the text: it has formulas, however its parts are put together. */
export function mayTypeset({ text }: Markup): boolean {
  return (
    /\$|\\\(|\\\[|\\begin/.test(text) && isFormula(text) && isFormula(text.replaceAll('\n', ''))
  );
}

/** Whether it is a PNG or JPEG, in base64, of checked size: a browser believes no name of a type. */
export function isPicture(base64: string): boolean {
  try {
    return base64.length <= MOST_PICTURE && isSmallPicture(atob(base64));
  } catch {
    return false; // no base64
  }
}

/** Pixels of such a picture; each takes four bytes. */
export const MOST_PIXELS = 64_000_000;
/** Passes over a JPEG, each of which costs as many steps as it has pixels. */
const MOST_SCANS = 20;

const PNG = '\x89PNG\r\n\x1a\n\0\0\0\rIHDR';
const JPEG = '\xff\xd8';
/** Segments of a JPEG that may come before the one with its size, and those. */
const BEFORE = /^\xff[\xc4\xcc\xdb-\xdd\xe0-\xef\xfe]/;
const SIZE = /^\xff[\xc0-\xc2\xc9\xca]/;

/**
 * Whether a picture is a PNG that does not move, or a JPEG with no other one in it, whose header
 * says that it has at most ``most`` pixels, as a screenshot has. What a decoder might read in
 * another way is none. Of all others 64 kB may become gigabytes: a frame draws them.
 *
 * @param bytes one character for each byte, as ``atob`` makes them
 */
export function isSmallPicture(bytes: string, most = MOST_PIXELS): boolean {
  const word = (at: number): number => 256 * bytes.charCodeAt(at) + bytes.charCodeAt(at + 1);
  const long = (at: number): number => 65_536 * word(at) + word(at + 2);
  const isSmall = (pixels: number): boolean => pixels > 0 && pixels <= most;
  if (bytes.startsWith(PNG)) {
    return isSmall(long(16) * long(20)) && !bytes.includes('acTL');
  }
  const isOne = bytes.split('\xff\xda', MOST_SCANS + 2).length <= MOST_SCANS + 1;
  if (!bytes.startsWith(JPEG) || !isOne || bytes.includes('MPF\0')) {
    return false;
  }
  for (let at = 2; at + 9 <= bytes.length;) {
    const marker = bytes.slice(at, at + 2);
    const length = word(at + 2);
    if (SIZE.test(marker)) {
      return isSmall(word(at + 5) * word(at + 7));
    }
    if (!BEFORE.test(marker) || length < 2) {
      return false;
    }
    at += 2 + length;
  }
  return false;
}
