/** Text as a terminal shows it: with colours, and lines that begin anew. */

import { AnsiUp } from 'ansi_up';

// As JupyterLab has them, in its light and dark themes: the usual ones, then the bright ones.
const COLOURS = (
  '3e424d e75c58 00a250 ddb62b 208ffb d160c4 60c6c8 c5c1b4 ' +
  '282c36 b22b31 007427 b27d12 0065ca a03196 258f8f a1a6b2'
).split(' ');

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
  const ansi = new AnsiUp();
  const { ansi_colors: colours } = ansi as unknown as { ansi_colors: { rgb: number[] }[][] };
  colours.flat().forEach((colour, index) => {
    const number = parseInt(COLOURS[index] ?? '', 16);
    colour.rgb = [number >> 16, (number >> 8) & 255, number & 255];
  });
  pre.innerHTML = ansi.ansi_to_html(text); // which escapes it
  parent.appendChild(pre);
  return pre;
}
