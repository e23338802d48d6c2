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
const MAX_SVG = 2_000_000;

/**
 * Whether a picture would keep the browser busy: in a few lines of SVG each element can draw the one
 * before it ten times.
 */
export function isCostly(type: string, bytes: ArrayBuffer): boolean {
  if (type !== 'image/svg+xml') {
    return false;
  }
  if (bytes.byteLength > MAX_SVG) {
    return true;
  }
  const text = new TextDecoder().decode(bytes);
  if (/<!ENTITY/i.test(text)) {
    return true;
  }
  const document_ = new DOMParser().parseFromString(text, 'image/svg+xml');
  const known = new Map<Element, number>();
  const cost = (node: Element, depth: number): number => {
    const found = known.get(node);
    if (found !== undefined) {
      return found;
    }
    if (depth > 200) {
      return MAX_DRAWN;
    }
    known.set(node, 0); // what draws itself is drawn once
    let sum = 1;
    for (const child of node.children) {
      sum += cost(child, depth + 1);
    }
    for (const { value } of node.attributes) {
      const name = /#([^)"'\s]+)/.exec(value)?.[1];
      const target = name === undefined ? null : document_.getElementById(name);
      if (target !== null) {
        sum += cost(target, depth + 1);
      }
      if (sum > MAX_DRAWN) {
        break;
      }
    }
    known.set(node, sum);
    return sum;
  };
  return cost(document_.documentElement, 0) > MAX_DRAWN;
}
