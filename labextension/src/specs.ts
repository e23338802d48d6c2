/** Which kernelspecs are ours, and what they say about the sandboxes to come. */

import { fieldsOf } from './contract.js';

const PROVISIONER = 'gvisor-provisioner';

export interface SpecModel {
  readonly name: string;
  readonly display_name: string;
  readonly metadata?: Readonly<Record<string, unknown>> | undefined;
}

export interface SpecModels {
  readonly default: string;
  readonly kernelspecs: Readonly<Record<string, SpecModel | undefined>>;
}

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

/** The kernel that is made ready: the default if it is ours, or else the first of ours. */
export function kernelToWarm(specs: SpecModels | null): string | null {
  if (specs === null) {
    return null;
  }
  const names = [specs.default, ...Object.keys(specs.kernelspecs).sort()];
  return names.find(name => isOurs(specs, name)) ?? null;
}

const LIMITS: readonly (readonly [string, string])[] = [
  ['memory_limit', 'memory'],
  ['disk_limit', 'disk'],
  ['pids_limit', 'processes'],
  ['cpu_shares', 'CPU shares']
];

/** For the launcher's card; null if the kernel is none of ours. */
export function describeSpec(spec: SpecModel | undefined): string | null {
  const provisioner = provisionerOf(spec);
  if (provisioner === null) {
    return null;
  }
  let config: Readonly<Record<string, unknown>> = {};
  try {
    config = fieldsOf(provisioner.config);
  } catch {
    // no settings: the defaults
  }
  const known = LIMITS.flatMap(([key, word]) => {
    const value = config[key];
    return typeof value === 'string' || typeof value === 'number' ? [`${word} ${value}`] : [];
  });
  // Jupyter's configuration may have other defaults than ours, so no figures are invented here.
  const image = typeof config.image === 'string' ? config.image : 'as configured';
  const limits = [...known, known.length < LIMITS.length ? 'as configured' : ''];
  return `Runs in a sandbox. Image: ${image}. Limits: ${limits.filter(Boolean).join(', ')}.`;
}
