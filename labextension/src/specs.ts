/** Which kernelspecs are ours, and what they say about the sandboxes to come. */

import type { KernelSpec } from '@jupyterlab/services';

import { type Kernelspec, fieldsOf } from './contract.js';
import { formatBytes } from './format.js';

const PROVISIONER = 'gvisor-provisioner';

type SpecModel = KernelSpec.ISpecModel;
export type SpecModels = KernelSpec.ISpecModels;

function provisionerOf(spec: SpecModel | undefined): Readonly<Record<string, unknown>> | null {
  try {
    const provisioner = fieldsOf(fieldsOf(spec?.metadata).kernel_provisioner);
    return provisioner.provisioner_name === PROVISIONER ? provisioner : null;
  } catch {
    return null; // any other kernel
  }
}

export function isOurs(specs: SpecModels | null, name: string | undefined | null): boolean {
  return name !== undefined && name !== null && provisionerOf(specs?.kernelspecs[name]) !== null;
}

/** Names of kernelspecs: the default, the one that ``gvisor-kernel install`` makes, the others. */
export function inOrder(specs: SpecModels, language = 'python'): readonly string[] {
  return [specs.default, `gvisor-${language}`, ...Object.keys(specs.kernelspecs).sort()];
}

/** The kernel that is made ready: the default if it is ours, or else the first of ours. */
export function kernelToWarm(specs: SpecModels | null): string | null {
  if (specs === null) {
    return null;
  }
  return inOrder(specs).find(name => isOurs(specs, name)) ?? null;
}

/** For the launcher's card; null if the kernel is none of ours, or the server does not say. */
export function describeSpec(facts: Kernelspec | undefined): string | null {
  if (!facts?.limits) {
    return null;
  }
  const image = facts.image === 'host' ? "this computer's programs" : (facts.image ?? '');
  const { memory, disk, processes, cpu_shares } = facts.limits;
  const limits = [
    `memory ${formatBytes(memory)}`,
    `files ${formatBytes(disk)}`,
    `${processes} processes`,
    `CPU shares ${cpu_shares}`
  ];
  return `Runs in a sandbox. Image: ${image}. Limits: ${limits.join(', ')}.`;
}

/** What an output of such a kernel may be taken for: a kernel that is not listed may be anything. */
export function originOfKernel(
  specs: SpecModels | null,
  name: string
): 'local' | 'sandbox' | 'unknown' {
  const spec = specs?.kernelspecs[name];
  if (spec === undefined) {
    return 'unknown';
  }
  const starts = spec.argv.some(it => /gvisor[_-]kernel/.test(it));
  return starts || isOurs(specs, name) ? 'sandbox' : 'local';
}
