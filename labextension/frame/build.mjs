// Bundles what shows a source in a page's frame: one script for each type, as text without imports.
// They run in the frame alone, which reaches no network, so each has all that it needs.
import { copyFile, readFile, writeFile } from 'node:fs/promises';

import { build } from 'esbuild';

const RENDERERS = [
  'chart',
  'jsx',
  'esm',
  'jquery',
  'katex',
  'leaflet',
  'libraries',
  'markdown',
  'mermaid',
  'notebook',
  'output',
  'pdf',
  'picture',
  'table',
  'tailwind',
  'vega',
  'widgets'
];

// Style sheets are texts in the scripts, with what they import and the newest form of their fonts.
const styles = {
  name: 'styles',
  setup: ({ onLoad }) =>
    onLoad({ filter: /\.css$/ }, async ({ path }) => {
      const { outputFiles } = await build({
        entryPoints: [path],
        bundle: true,
        charset: 'utf8',
        legalComments: 'none',
        loader: {
          '.eot': 'empty',
          '.png': 'dataurl',
          '.svg': 'empty',
          '.ttf': 'empty',
          '.woff': 'empty',
          '.woff2': 'dataurl'
        },
        logLevel: 'warning',
        minify: true,
        write: false
      });
      return { contents: outputFiles[0].text, loader: 'text' };
    })
};

await build({
  entryPoints: RENDERERS.map(name => `frame/${name}.ts`),
  outdir: 'dist/static/frame',
  bundle: true,
  charset: 'utf8',
  format: 'iife',
  legalComments: 'external',
  logLevel: 'warning',
  minify: true,
  plugins: [styles],
  platform: 'browser',
  loader: { '.png': 'dataurl' },
  target: 'es2022',
  define: { 'process.env.NODE_ENV': '"production"' }
});
// A module of RequireJS as it is: its ``import()`` is rewritten when it runs (``page_scripts.ts``). It
// gives up on a widget's module after two seconds, and a frame takes longer to rewrite a large one.
const anywidget = await readFile('node_modules/anywidget/dist/index.js', 'utf8');
const target = 'dist/static/frame/anywidget.js';
await writeFile(target, anywidget.replace('AbortSignal.timeout(2e3)', 'AbortSignal.timeout(6e4)'));
await copyFile('node_modules/anywidget/LICENSE', `${target}.LEGAL.txt`);
