/** Text as a terminal shows it: with colours, and lines that begin anew. Nothing else is obeyed. */

// As JupyterLab has them, in its light and dark themes: the usual ones, then the bright ones.
const COLOURS = (
  '#3e424d #e75c58 #00a250 #ddb62b #208ffb #d160c4 #60c6c8 #c5c1b4 ' +
  '#282c36 #b22b31 #007427 #b27d12 #0065ca #a03196 #258f8f #a1a6b2'
).split(' ');
const ESCAPE = /\u001b\[([0-9;]{0,60})([A-Za-z])/g;
/** Spans of a text: above, it has no more colours. */
const MAX_SPANS = 20_000;

type Look = Partial<Record<'color' | 'backgroundColor' | 'fontWeight' | 'textDecoration', string>>;

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

export function addTerminal(parent: Node, text: string): HTMLPreElement {
  const pre = document.createElement('pre');
  let look: Look = {};
  let place = 0;
  const show = (end: number): void => {
    if (end > place) {
      const span = document.createElement('span');
      span.textContent = text.slice(place, end);
      Object.assign(span.style, look);
      pre.append(span);
    }
  };
  for (const found of text.matchAll(ESCAPE)) {
    show(found.index);
    place = found.index + found[0].length;
    if (found[2] === 'm' && pre.childElementCount < MAX_SPANS) {
      look = change(look, (found[1] ?? '').split(';').map(Number));
    }
  }
  show(text.length);
  parent.appendChild(pre);
  return pre;
}

function change(before: Look, codes: number[]): Look {
  let look = { ...before };
  for (let code = codes.shift(); code !== undefined; code = codes.shift()) {
    const isBack = (code >= 40 && code < 50) || code >= 100;
    const side = isBack ? 'backgroundColor' : 'color';
    if (code === 0) {
      look = {};
    } else if (code === 1 || code === 22) {
      look.fontWeight = code === 1 ? 'bold' : '';
    } else if (code === 4 || code === 24) {
      look.textDecoration = code === 4 ? 'underline' : '';
    } else if (code === 38 || code === 48) {
      look[side] = longColour(codes);
    } else if ((code >= 30 && code < 50) || (code >= 90 && code < 108)) {
      const colour = code % 10;
      look[side] = (colour < 8 ? COLOURS[colour + (code < 90 ? 0 : 8)] : undefined) ?? '';
    }
  }
  return look;
}

/** One of 256 colours, or red, green and blue. */
function longColour(codes: number[]): string {
  if (codes.shift() === 2) {
    return `rgb(${codes.splice(0, 3).join()})`;
  }
  const number = codes.shift() ?? 0;
  const side = (step: number): number => (step === 0 ? 0 : 55 + 40 * step);
  const grey = 8 + 10 * (number - 232);
  const parts =
    number < 232
      ? [36, 6, 1].map(unit => side(Math.floor((number - 16) / unit) % 6))
      : [grey, grey, grey];
  return COLOURS[number] ?? `rgb(${parts.join()})`;
}
