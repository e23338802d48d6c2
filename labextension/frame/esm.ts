/** Turns a module of JavaScript into a function: the frame runs no modules. */

import { transform } from 'sucrase';

window.gvisorModule = (source: string): string =>
  transform(source, {
    transforms: ['imports'],
    disableESTransforms: true,
    preserveDynamicImport: true
  }).code;

declare global {
  interface Window {
    gvisorModule?: (source: string) => string;
  }
}
