// Bundles what shows a source in a page's frame: one script for each type, as text without imports.
// They run in the frame alone, which reaches no network, so each has all that it needs.
import { build } from 'esbuild';

const RENDERERS = [
  'jsx',
  'esm',
  'jquery',
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
  'vega'
];

await build({
  entryPoints: RENDERERS.map(name => `frame/${name}.ts`),
  outdir: 'dist/static/frame',
  bundle: true,
  charset: 'utf8',
  format: 'iife',
  legalComments: 'external',
  logLevel: 'warning',
  minify: true,
  platform: 'browser',
  loader: { '.css': 'text', '.png': 'dataurl' },
  target: 'es2022',
  define: { 'process.env.NODE_ENV': '"production"' }
});
