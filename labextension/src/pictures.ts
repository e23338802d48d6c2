/** Addresses of pictures that come from a sandbox. */

/**
 * An address for an image element. A person may open the picture in a tab of its own, where SVG
 * could run scripts: a ``data:`` address has no origin there, a ``blob:`` one has JupyterLab's.
 */
export function pictureUrl(type: string, bytes: ArrayBuffer): string {
  let binary = '';
  for (const byte of new Uint8Array(bytes)) {
    binary += String.fromCharCode(byte);
  }
  return `data:${type};base64,${btoa(binary)}`;
}

/** Elements that an SVG may draw, those that it draws again included. */
const MAX_DRAWN = 50_000;
const MAX_SVG = 1_000_000;
const MAX_DEPTH = 200;

/** What takes long whatever the number of elements, or cannot be counted here. */
const SLOW_ELEMENT = /^(fe[A-Z].*|filter|animate.*|set|foreignObject|pattern)$/;
/** A picture in a drawing, dashes, of which a line may have a million, and a name that is written so
 *  that nobody finds it. */
const SLOW_VALUE = /\\|filter|blur\(|data:|dash/i;
const SLOW_STYLE = /\\|filter|blur\(|url\(|@import|animation|dash/i;

/**
 * Whether an SVG would keep the browser busy: in a few lines each element can draw the one before
 * it ten times. What is no well-formed XML counts, too: a browser may read it in another way.
 */
export function isCostly(text: string): boolean {
  if (text === '') {
    return false;
  }
  const encoding = /^<\?xml[^>]*encoding=["']([^"']*)/i.exec(text)?.[1] ?? 'utf-8';
  if (
    text.length > MAX_SVG ||
    encoding.toLowerCase() !== 'utf-8' ||
    /<!ENTITY|<\?xml-stylesheet/i.test(text)
  ) {
    return true;
  }
  const document_ = new DOMParser().parseFromString(text, 'image/svg+xml');
  const all = document_.getElementsByTagName('*');
  if (
    all.length > MAX_DRAWN ||
    document_.getElementsByTagName('parsererror').length > 0 ||
    [...all].some(isSlow)
  ) {
    return true;
  }
  const known = new Map<Element, number>();
  const cost = (node: Element, depth: number): number => {
    const found = known.get(node);
    if (found !== undefined) {
      return found;
    }
    if (depth > MAX_DEPTH) {
      return MAX_DRAWN + 1;
    }
    known.set(node, 0); // what draws itself is drawn once
    let sum = 1;
    for (let child = node.firstElementChild; child; child = child.nextElementSibling) {
      sum += cost(child, depth + 1);
    }
    for (const name of namesIn(node)) {
      const target = document_.getElementById(name);
      sum += target === null ? 0 : cost(target, depth + 1);
    }
    known.set(node, sum);
    return sum;
  };
  return cost(document_.documentElement, 0) > MAX_DRAWN;
}

function isSlow(node: Element): boolean {
  return (
    SLOW_ELEMENT.test(node.localName) ||
    [...node.attributes].some(({ name, value }) => /dash/i.test(name) || SLOW_VALUE.test(value)) ||
    (node.localName === 'style' && SLOW_STYLE.test(node.textContent))
  );
}

/** The ids of other elements in the attributes of an element. */
function namesIn(node: Element): readonly string[] {
  return [...node.attributes].flatMap(({ value }) =>
    [...value.matchAll(/#([^)"'\s;]+)/g)].map(([, name = '']) => {
      try {
        return decodeURIComponent(name);
      } catch {
        return name;
      }
    })
  );
}
