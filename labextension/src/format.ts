/** Figures as people read them. */

import type { Sandbox } from './contract.js';

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB'];

/** ``222298112`` is ``212 MB``: 1024 bytes a step, as settings mean ``4G``. */
export function formatBytes(bytes: number): string {
  let unit = 0;
  let value = bytes;
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit > 1 && value < 9.95 && !Number.isInteger(value) ? 1 : 0;
  return `${value.toFixed(digits)} ${UNITS[unit] ?? ''}`;
}

export function formatSeconds(seconds: number): string {
  if (seconds < 10) {
    return `${seconds.toFixed(1)} s`;
  }
  if (seconds < 60) {
    return `${Math.floor(seconds)} s`;
  }
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) {
    return `${minutes} min`;
  }
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

/** Used memory as a share of the limit; null if one of them is unknown. */
export function memoryShare(sandbox: Sandbox): number | null {
  if (sandbox.memory.used === null || sandbox.memory.limit <= 0) {
    return null;
  }
  return Math.min(1, sandbox.memory.used / sandbox.memory.limit);
}

/** From this share on, the bar has the colour of a warning. */
export const NEARLY_FULL = 0.8;

/** Why a sandbox's folder is empty, and what to do. */
export const NO_FILES =
  'This notebook lies directly in a home folder, so its sandbox sees none of the files there. ' +
  'Move the notebook and its files to a folder of their own, and open it there.';

export function describeMemory(sandbox: Sandbox): string {
  if (sandbox.hibernated !== null) {
    return `${formatBytes(sandbox.hibernated.size)} on the disk`;
  }
  const limit = formatBytes(sandbox.memory.limit);
  return sandbox.memory.used === null
    ? `limit ${limit}`
    : `${formatBytes(sandbox.memory.used)} of ${limit}`;
}

/** Since when a kernel hibernates, in this browser's time, and what it has on the disk. */
export function describeHibernated({ since, size }: NonNullable<Sandbox['hibernated']>): string {
  const when = new Date(since * 1000).toLocaleString([], {
    dateStyle: 'medium',
    timeStyle: 'short'
  });
  return `since ${when}, ${formatBytes(size)} on the disk; the next cell that you run wakes it`;
}

/** ``1 file``, ``2 files``. */
export function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}

export function describeStart(kind: string): string {
  const words: Readonly<Record<string, string>> = {
    cold: 'without a snapshot',
    snapshot: 'from a snapshot',
    spare: 'from a snapshot that was ready'
  };
  return words[kind] ?? kind;
}

/** One word for what a sandbox does. */
export function nameState({ state, hibernated }: Sandbox): string {
  if (hibernated === null) {
    return state;
  }
  return state === 'starting' || state === 'waiting' ? 'waking' : 'hibernated';
}

/** What the status bar says beside the shield: of a kernel that has started, JupyterLab says there
 *  whether it is idle or busy. */
export function describeState(sandbox: Sandbox): string {
  if (sandbox.hibernated !== null) {
    return nameState(sandbox);
  }
  switch (sandbox.state) {
    case 'waiting':
      return sandbox.waits_for || 'waiting';
    case 'starting':
      return sandbox.start?.kind === 'snapshot' || sandbox.start?.kind === 'spare'
        ? 'starting from snapshot'
        : 'starting';
    case 'ended':
      return 'ended';
    case 'idle':
    case 'busy':
      return describeMemory(sandbox);
  }
}
