/**
 * A notebook that this person has neither saved nor trusted starts no kernel without a sandbox
 * before they have chosen. Nothing of JupyterLab is replaced: a session's kernel preference says
 * whether a kernel is started by itself, and it is set after the notebook was read and before
 * its session begins.
 */

import type { SpecModels } from './specs.js';
import { inOrder, isOurs } from './specs.js';

export interface Preference {
  readonly name?: string;
  readonly language?: string;
  readonly shouldStart?: boolean;
  readonly canStart?: boolean;
  readonly autoStartDefault?: boolean;
  readonly id?: string;
}

export interface CodeCell {
  readonly type: string;
  readonly trusted: boolean;
}

/**
 * Whether a notebook has cells and no code: then none of its cells says whether it is trusted, and
 * the server has to be asked. A new notebook has no cells, or one of code that is trusted.
 */
export function isUnknown(cells: Iterable<CodeCell>): boolean {
  const all = [...cells];
  return all.length > 0 && !all.some(cell => cell.type === 'code');
}

/**
 * Whether the server found this person's signature. It marks all code cells alike each time it
 * reads a notebook, whatever the file says of itself. A new notebook has no cell or a trusted one.
 */
export function isTrusted(cells: Iterable<CodeCell>): boolean {
  return ![...cells].some(cell => cell.type === 'code' && !cell.trusted);
}

/**
 * The kernelspec of ours to offer before anything starts; null if nothing has to be asked.
 *
 * ``preference`` is what the session will have, ``next`` the kernelspec that Jupyter would start by
 * itself, null if it would ask.
 */
export function kernelToOffer(
  specs: SpecModels | null,
  preference: Preference,
  next: string | null
): string | null {
  if (specs === null || preference.canStart === false || preference.shouldStart === false) {
    return null;
  }
  if (preference.id !== undefined || isOurs(specs, next)) {
    return null; // a kernel that runs already was chosen by somebody
  }
  const wanted = next ?? preference.name ?? '';
  const known = specs.kernelspecs[wanted]?.language ?? preference.language ?? '';
  const language = known === '' ? specs.kernelspecs[specs.default]?.language : known;
  return (
    inOrder(specs, language).find(
      name => isOurs(specs, name) && specs.kernelspecs[name]?.language === language
    ) ?? null
  );
}

/** The sentence in the dialog. */
export function whyOffered(specs: SpecModels | null, next: string | null, offered: string): string {
  const why = 'You have neither saved nor trusted this notebook here. ';
  if (specs !== null && Object.keys(specs.kernelspecs).every(name => isOurs(specs, name))) {
    return `${why}Every kernel here runs it in a sandbox.`;
  }
  const nameOf = (name: string): string => specs?.kernelspecs[name]?.display_name ?? name;
  const other = next === null ? 'Other kernels run' : `${nameOf(next)} runs`;
  return (
    why +
    `${nameOf(offered)} runs it in a sandbox. ` +
    `${other} without one: code of the notebook can then read and change all of your files.`
  );
}

/** What ``localStorage`` has of the web's storages. */
export interface Storage {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
}

export const MOST_CHOICES = 200;

/**
 * The notebooks whose kernel the person has chosen, each as it was then or as this page saved it
 * last: another file of the same name is asked about again.
 */
export class Choices {
  constructor(
    private readonly storage: Storage,
    private readonly key: string
  ) {}

  has(path: string, version: string): boolean {
    return this.read().some(([known, as]) => known === path && as === version);
  }

  knows(path: string): boolean {
    return this.read().some(([known]) => known === path);
  }

  add(path: string, version: string): void {
    const others = this.read().filter(([known]) => known !== path);
    const all = [...others, [path, version]].slice(-MOST_CHOICES);
    try {
      this.storage.setItem(this.key, JSON.stringify(all));
    } catch {
      // No room, or storage is not allowed: the person is asked again another time.
    }
  }

  private read(): readonly (readonly [string, string])[] {
    try {
      const all: unknown = JSON.parse(this.storage.getItem(this.key) ?? '[]');
      return Array.isArray(all)
        ? all.filter(
            (it): it is [string, string] =>
              Array.isArray(it) && typeof it[0] === 'string' && typeof it[1] === 'string'
          )
        : [];
    } catch {
      return [];
    }
  }
}
