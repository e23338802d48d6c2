/** Memory and CPU of the last five minutes, from the answers that came while someone looked. */

import type { Sandbox } from './contract.js';

export const SPAN_SECONDS = 300;

export interface Sample {
  /** Seconds, of a clock that does not jump. */
  readonly time: number;
  readonly value: number;
}

interface Series {
  memory: Sample[];
  /** Shares of one core: 1.5 is one and a half. */
  cpu: Sample[];
  last: Sample | null;
}

export class History {
  private readonly series = new Map<string, Series>();

  add(sandbox: Sandbox, time: number): void {
    const one = this.series.get(sandbox.kernel_id) ?? { memory: [], cpu: [], last: null };
    this.series.set(sandbox.kernel_id, one);
    const oldest = time - SPAN_SECONDS;
    if (sandbox.memory.used !== null) {
      one.memory = recent([...one.memory, { time, value: sandbox.memory.used }], oldest);
    }
    if (sandbox.cpu_seconds !== null) {
      const { last } = one;
      // A fresh sandbox under the same kernel id counts from zero again.
      if (last !== null && time > last.time && sandbox.cpu_seconds >= last.value) {
        const value = (sandbox.cpu_seconds - last.value) / (time - last.time);
        one.cpu = recent([...one.cpu, { time, value }], oldest);
      }
      one.last = { time, value: sandbox.cpu_seconds };
    }
  }

  memory(kernelId: string): readonly Sample[] {
    return this.series.get(kernelId)?.memory ?? [];
  }

  cpu(kernelId: string): readonly Sample[] {
    return this.series.get(kernelId)?.cpu ?? [];
  }

  /** Forgets the kernels that are not in the list, so that a long day does not fill the page. */
  keep(kernelIds: ReadonlySet<string>): void {
    for (const id of this.series.keys()) {
      if (!kernelIds.has(id)) {
        this.series.delete(id);
      }
    }
  }
}

function recent(samples: readonly Sample[], oldest: number): Sample[] {
  return samples.filter(sample => sample.time >= oldest);
}

/** The points of a polyline in a box: time from left to right, ``most`` at the top. */
export function plotPoints(
  samples: readonly Sample[],
  now: number,
  most: number,
  width: number,
  height: number
): string {
  return samples
    .map(({ time, value }) => {
      const x = width * (1 - (now - time) / SPAN_SECONDS);
      const y = height * (1 - (most > 0 ? Math.min(1, value / most) : 0));
      return `${x.toFixed(1)},${y.toFixed(1)}`;
    })
    .join(' ');
}
