// What of an output is drawn in a frame, and the names of libraries that outputs ask for.
import assert from 'node:assert/strict';
import test from 'node:test';

import { libraryOf, librariesIn, readLibrary } from '../lib/libraries.js';
import {
  canDraw,
  completes,
  hasScripts,
  heightOf,
  partsOf,
  relevantNames,
  setupOf
} from '../lib/output_parts.js';

const bundle = data => ({ data, metadata: {} });
const types = parts => parts.map(({ type }) => type);

test('types that a frame draws', () => {
  for (const type of [
    'text/html',
    'image/svg+xml',
    'application/javascript',
    'application/vnd.plotly.v1+json',
    'application/vnd.vegalite.v5+json',
    'application/vnd.vega.v6+json',
    'application/vnd.vegalite.v6.json',
    'application/vnd.bokehjs_exec.v0+json',
    'video/mp4'
  ]) {
    assert.ok(canDraw(type), type);
  }
  for (const type of ['text/plain', 'application/json', 'image/x', 'video/<b>', '']) {
    assert.ok(!canDraw(type), type);
  }
});

test('addresses mean libraries by their names', () => {
  const cases = {
    plotly: 'plotly',
    'https://cdn.plot.ly/plotly-3.0.1.min.js': 'plotly',
    'https://cdn.bokeh.org/bokeh/release/bokeh-3.9.2.min.js': 'bokeh',
    'https://cdn.bokeh.org/bokeh/release/bokeh-widgets-3.9.2.min.js': 'bokeh-widgets',
    'https://cdn.holoviz.org/panel/1.9.4/dist/panel.min.js': 'panel',
    'https://cdn.jsdelivr.net/npm/vega-lite@6.4.1?noext': 'own:vega',
    'https://d3js.org/d3.v5.js': 'd3-5',
    'https://d3js.org/d3.v7.min.js': 'own:libraries',
    'http://d3js.org/d3.v3.min': null,
    'https://cdnjs.cloudflare.com/ajax/libs/d3/3.5.17/d3.min.js': null,
    'https://code.jquery.com/jquery-3.7.1.min.js': 'own:jquery',
    'https://cdn.jsdelivr.net/npm/leaflet@1.9.3/dist/leaflet.js': 'own:leaflet',
    'https://cdn.jsdelivr.net/gh/bmabey/pyLDAvis@3.4.0/pyLDAvis/js/ldavis.v3.0.0.js': 'ldavis',
    'https://esm.sh/vega-embed@v7.0.2?deps=vega@6&deps=vega-lite@6.4.1': 'own:vega',
    'https://cdnjs.cloudflare.com/ajax/libs/mathjax/3.2.2/es5/tex-svg.min.js': 'nothing',
    'https://cdnjs.cloudflare.com/ajax/libs/leaflet.markercluster/1.1.0/leaflet.markercluster.js':
      'nothing',
    'gvisor:own:vega': 'own:vega',
    'gvisor:shap': 'shap',
    'https://evil.example/x.js': null,
    '': null
  };
  for (const [url, name] of Object.entries(cases)) {
    assert.equal(libraryOf(url, 'script'), name, url);
  }
  const style = 'https://cdn.holoviz.org/panel/1.9.4/dist/css/loading.css?v=1';
  assert.equal(libraryOf(style, 'style'), 'panel-loading.css');
});

test('a name of a library is never a path', () => {
  for (const url of [
    'gvisor:../x',
    'gvisor:plotly/../x',
    'x/panel/css/../../etc.css',
    'gvisor:x'
  ]) {
    for (const kind of ['script', 'style']) {
      assert.match(libraryOf(url, kind) ?? '', /^(own:)?[a-z0-9.-]*$/, url);
    }
  }
});

test('a library that is not known is named', async () => {
  const source = { script: async () => 'own', library: async () => 'theirs' };
  await assert.rejects(
    readLibrary(source, 'https://x.example/a.js', 'script'),
    /x\.example\/a\.js/
  );
  await assert.rejects(readLibrary(source, 'https://x.example/b/c/d.js', 'script'), {
    message: 'Not loaded, as outputs have no network: x.example/…/d.js'
  });
  assert.deepEqual(await readLibrary(source, 'vega', 'script'), { name: 'own:vega', text: 'own' });
});

test('what an output uses without loading it', () => {
  assert.deepEqual(librariesIn('Plotly.newPlot(a)', false), ['gvisor:plotly']);
  assert.deepEqual(librariesIn('root.Bokeh.embed', true), []);
  assert.equal(librariesIn('root.Bokeh.embed', false)[0], 'gvisor:bokeh');
  assert.deepEqual(librariesIn('x'.repeat(1_000_001) + 'Plotly.', false), []);
});

test('a height is known before an output is drawn, as far as its data say it', () => {
  const plotly = 'application/vnd.plotly.v1+json';
  const svg = 'image/svg+xml';
  const vega = 'application/vnd.vegalite.v5+json';
  const html = 'text/html';
  const cases = [
    [plotly, { layout: { height: 700 } }, 700],
    [plotly, {}, 360],
    [plotly, { layout: { height: 1e9 } }, 5000],
    [plotly, { layout: { height: -5 } }, 10],
    [plotly, null, 360],
    [vega, { mark: 'bar', height: 120 }, 120],
    [vega, { mark: 'bar' }, 300],
    [svg, '<svg width="40" height="30"></svg>', 30],
    [svg, '<svg height="300pt"></svg>', 400],
    [svg, '<svg height="100%"></svg>', undefined],
    [html, '<div style="line-height: 9px; height: 250px"></div>', 250],
    [html, '<table>' + '<tr><td>1</td></tr>'.repeat(20) + '</table>', 420],
    [html, '<tr>'.repeat(100_000), 5000],
    [html, '<p>text</p>', undefined]
  ];
  for (const [type, data, height] of cases) {
    const parts = [{ type, data, metadata: {} }];
    assert.equal(heightOf(parts), height, `${type} ${JSON.stringify(data).slice(0, 60)}`);
  }
  assert.equal(heightOf([]), undefined);
});

test("Bokeh's bundles have elements and the script that fills them", () => {
  const data = {
    'application/vnd.holoviews_exec.v0+json': '',
    'text/html': '<div></div>',
    'application/javascript': 'fill()'
  };
  const drawn = partsOf('application/vnd.holoviews_exec.v0+json', bundle(data));
  assert.deepEqual(types(drawn), ['text/html', 'application/javascript']);
  const before = bundle({ 'text/html': '<div data-root-id="p1"></div>' });
  assert.equal(completes(before, 'embed("p1")').length, 1);
  assert.equal(completes(before, 'embed("p2")').length, 0);
});

test('outputs that only prepare the page', () => {
  const prepares = [
    { 'text/html': '<script>window.a = 1</script>\n<style>b {}</style><!-- c -->' },
    { 'text/html': `<div><b>logo</b></div><script>${'x;'.repeat(20_000)}</script>` },
    { 'text/html': '<style>.dataTable { width: 9px }</style>' },
    { 'application/javascript': 'window.a = 1' },
    { 'application/vnd.bokehjs_load.v0+json': 'load()' }
  ];
  for (const data of prepares) {
    assert.equal(setupOf(bundle(data)).length, 1, JSON.stringify(data).slice(0, 80));
  }
  const draws = [
    { 'text/html': '<p>text</p><script>1</script>' },
    { 'text/html': `<div id=x></div><script>${'x;'.repeat(20_000)}</script>` },
    { 'text/html': '<b>no script</b>' },
    { 'application/javascript': 'element.append(1)' },
    { 'application/vnd.bokehjs_exec.v0+json': '', 'application/javascript': 'x' },
    { 'text/plain': 'x' }
  ];
  for (const data of draws) {
    assert.equal(setupOf(bundle(data)).length, 0, JSON.stringify(data).slice(0, 80));
  }
});

test('names that an output expects', () => {
  const names = relevantNames('if (window.SHAP) SHAP.render(document.body, _itables_2_9.then())');
  assert.ok(names.includes('SHAP') && names.includes('_itables_2_9') && !names.includes('then'));
  assert.ok(!names.includes('if') && !names.includes('setTimeout'));
  assert.ok(hasScripts(partsOf('text/html', bundle({ 'text/html': '<b onclick="x()">' }))));
  assert.ok(!hasScripts(partsOf('text/html', bundle({ 'text/html': '<table></table>' }))));
});

test('looking at a hostile output takes time that grows with its length', () => {
  for (const part of [
    '<script',
    '<style>',
    '<!--',
    '</script>',
    ' id',
    ' on',
    'window.',
    '<link '
  ]) {
    const html = part.repeat(8_000_000 / part.length);
    setupOf(bundle({ 'text/html': html }));
    hasScripts(partsOf('text/html', bundle({ 'text/html': html })));
    relevantNames(html);
    librariesIn(html, false);
  }
});
