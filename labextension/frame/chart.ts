/** A file of Vega or Vega-Lite; the bundle `vega` draws it. Its data from elsewhere are not loaded. */

import { addDocumentStyle, register } from './renderer.js';

type Embed = (root: HTMLElement, chart: unknown, options: object) => Promise<unknown>;

register<string>(async (source, { dark, root }) => {
  addDocumentStyle(dark);
  const embed = (window as unknown as { vegaEmbed: Embed }).vegaEmbed;
  await embed(root, JSON.parse(source), { actions: false, ...(dark ? { theme: 'dark' } : {}) });
});
