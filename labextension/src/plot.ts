/** A small line over the last five minutes. The figure beside it says the same in words. */

import { drawing } from './dom.js';
import { type Sample, plotPoints } from './history.js';

const WIDTH = 100;
const HEIGHT = 24;

export class Plot {
  readonly node: SVGElement;
  private readonly line: SVGElement;

  constructor(kind: 'memory' | 'cpu') {
    this.line = drawing('polyline', { points: '', class: `gk-line gk-line-${kind}` });
    this.node = drawing(
      'svg',
      {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        preserveAspectRatio: 'none',
        class: 'gk-plot',
        'aria-hidden': 'true'
      },
      this.line
    );
  }

  /** ``most`` is the value at the top. */
  update(samples: readonly Sample[], now: number, most: number): void {
    this.line.setAttribute('points', plotPoints(samples, now, most, WIDTH, HEIGHT));
  }
}
