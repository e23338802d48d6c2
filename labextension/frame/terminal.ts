/** Text as a terminal shows it: with colours, and lines that begin anew. Nothing else is obeyed. */

// As JupyterLab has them, in its light and dark themes.
const COLOURS = '#3e424d #e75c58 #00a250 #ddb62b #208ffb #d160c4 #60c6c8 #c5c1b4'.split(' ');
const BRIGHT = '#282c36 #b22b31 #007427 #b27d12 #0065ca #a03196 #258f8f #a1a6b2'.split(' ');
/** Styles that are on and off by a number; a colour by several. */
const ESCAPE = /\u001b\[([0-9;]{0,60})([A-Za-z])/g;
/** Spans of a text: above, it has no more colours. */
const MAX_SPANS = 20_000;

interface Look {
  color: string;
  background: string;
  bold: boolean;
  underline: boolean;
  inverse: boolean;
}

const plain = (): Look => ({
  color: '',
  background: '',
  bold: false,
  underline: false,
  inverse: false
});

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
  let look = plain();
  let place = 0;
  const show = (end: number): void => {
    const shown = text.slice(place, end);
    if (shown !== '') {
      const { color, background, bold, underline, inverse } = look;
      const span = document.createElement('span');
      span.textContent = shown;
      span.style.color = inverse ? background || 'Canvas' : color;
      span.style.backgroundColor = inverse ? color || 'CanvasText' : background;
      span.style.fontWeight = bold ? 'bold' : '';
      span.style.textDecoration = underline ? 'underline' : '';
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
    const colour = code % 10;
    const isBack = code >= 100 || (code >= 40 && code < 50);
    const side = isBack ? 'background' : 'color';
    if (code === 0) {
      look = plain();
    } else if (code === 1 || code === 22) {
      look.bold = code === 1;
    } else if (code === 4 || code === 24) {
      look.underline = code === 4;
    } else if (code === 7 || code === 27) {
      look.inverse = code === 7;
    } else if (code === 38 || code === 48) {
      look[side] = longColour(codes);
    } else if (code >= 30 && code < 50) {
      look[side] = COLOURS[colour] ?? '';
    } else if (code >= 90 && code < 108) {
      look[side] = BRIGHT[colour] ?? '';
    }
  }
  return look;
}

/** One of 256 colours, or red, green and blue. */
function longColour(codes: number[]): string {
  if (codes.shift() === 2) {
    const [red = 0, green = 0, blue = 0] = codes.splice(0, 3);
    return `rgb(${red}, ${green}, ${blue})`;
  }
  const number = codes.shift() ?? 0;
  if (number < 16) {
    return (number < 8 ? COLOURS : BRIGHT)[number % 8] ?? '';
  }
  if (number >= 232) {
    const grey = 8 + 10 * (number - 232);
    return `rgb(${grey}, ${grey}, ${grey})`;
  }
  const side = (step: number): number => (step === 0 ? 0 : 55 + 40 * step);
  const [red, green, blue] = [36, 6, 1].map(unit => side(Math.floor((number - 16) / unit) % 6));
  return `rgb(${red ?? 0}, ${green ?? 0}, ${blue ?? 0})`;
}
