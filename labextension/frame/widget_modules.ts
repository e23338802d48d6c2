/** Widget packages that are not bundled. A frame has no network, so each is refused with a reason. */

import type { Tools } from './renderer.js';

type Exports = Readonly<Record<string, unknown>>;

export function readModule(tools: Tools): (name: string, version: string) => Promise<Exports> {
  return (name, version) => {
    const text = `The widget package "${name.slice(0, 100)}" ${version.slice(0, 30)} cannot be shown in a frame.`;
    tools.reportError(text);
    return Promise.reject(new Error(text));
  };
}
