/** What a sandbox is called: by the notebook or console of its kernel, which Jupyter's sessions name. */

import type { Session } from '@jupyterlab/services';

import type { Sandbox } from './contract.js';

/** ``path``: below the server's root. */
export interface Title {
  readonly name: string;
  readonly path: string;
}

/** Kernels whose names are remembered: what is told of a kernel that has ended names it, too. */
const MOST_TITLES = 200;

/** The page's sessions, which ``rememberTitles`` follows. */
export const titles: { of: (kernelId: string) => Title | null } = { of: () => null };

export function nameOf(
  sandbox: Pick<Sandbox, 'kernel_id' | 'display_name' | 'kernel_name'>
): string {
  return titles.of(sandbox.kernel_id)?.name ?? (sandbox.display_name || sandbox.kernel_name);
}

/** Names sandboxes by the sessions of the server from now on. */
export function rememberTitles(
  sessions: Pick<Session.IManager, 'running' | 'runningChanged'>,
  localPath: (path: string) => string
): void {
  const known = new Map<string, Title>();
  const look = (): void => {
    for (const { kernel, name, path, type } of sessions.running()) {
      if (kernel !== null) {
        const local = localPath(path);
        const short = type === 'notebook' ? (local.split('/').at(-1) ?? '') : name;
        known.delete(kernel.id);
        known.set(kernel.id, { name: short || name || local, path: local });
      }
    }
    for (const id of [...known.keys()].slice(0, Math.max(0, known.size - MOST_TITLES))) {
      known.delete(id);
    }
  };
  titles.of = id => known.get(id) ?? null;
  sessions.runningChanged.connect(look);
  look();
}
