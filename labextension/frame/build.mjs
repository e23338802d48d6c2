// Bundles what shows a source in a page's frame: one script for each type, as text without imports.
// They run in the frame alone, which reaches no network, so each has all that it needs.
import { build } from 'esbuild';

const RENDERERS = [
  'jsx',
  'libraries',
  'markdown',
  'mermaid',
  'notebook',
  'pdf',
  'picture',
  'table',
  'tailwind'
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
  target: 'es2022',
  define: { 'process.env.NODE_ENV': '"production"' }
});
