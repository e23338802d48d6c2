/** What of an output may stand in the page, and which of its types is drawn where. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  drawable,
  isFormula,
  isLongMarkdown,
  isPicture,
  mayTypeset,
  readLink,
  readMarkup,
  readMetadata
} from '../lib/inline.js';
import { mark, originOf, senderOf } from '../lib/origin.js';
import { makePlan, shareOf } from '../lib/plan.js';
import { originOfKernel } from '../lib/specs.js';
import { openPage } from './page.js';

openPage();
globalThis.location = new URL('http://localhost:8888/lab');

function htmlOf({ nodes }) {
  const node = document.createElement('div');
  node.append(nodes);
  return node.innerHTML;
}

function png(width, height, chunks = []) {
  const chunk = (kind, data) => {
    const size = Buffer.alloc(4);
    size.writeUInt32BE(data.length);
    return Buffer.concat([size, Buffer.from(kind), data, Buffer.alloc(4)]);
  };
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  return Buffer.concat([
    Buffer.from('89504e470d0a1a0a', 'hex'),
    chunk('IHDR', head),
    ...chunks.map(([kind, size]) => chunk(kind, Buffer.alloc(size))),
    chunk('IDAT', Buffer.alloc(4))
  ]).toString('base64');
}

function jpeg(width, height, { marker = 0xc0, scans = 1, first = [] } = {}) {
  const size = Buffer.from([0xff, marker, 0, 11, 8, 0, 0, 0, 0, 1, 0, 0, 0]);
  size.writeUInt16BE(height, 5);
  size.writeUInt16BE(width, 7);
  const part = Buffer.from([0xff, 0xe0, 0, 4, 0, 0]);
  const scan = Buffer.from([0xff, 0xda, 0, 2, 1, 2]);
  return Buffer.concat([
    Buffer.from([0xff, 0xd8]),
    Buffer.from(first),
    part,
    size,
    ...Array(scans).fill(scan)
  ]).toString('base64');
}

test('a table of pandas stays as it is', () => {
  const found = readMarkup(`<div><style scoped>
    .dataframe tbody tr th:only-of-type { vertical-align: middle; }
    .dataframe thead th, .dataframe td { text-align: right; }
    </style><table border="1" class="dataframe"><thead><tr style="text-align: right;"><th></th>
    <th>x</th></tr></thead><tbody><tr><th>0</th><td>1</td></tr></tbody></table></div>`);
  assert.equal(found.lost, false);
  const html = htmlOf(found);
  assert.match(html, /<table border="1" class="dataframe"><thead><tr style="text-align: right;">/);
  assert.doesNotMatch(html, /<style/);
});

for (const [name, html, kept] of [
  ['a script', '<b>b</b><script>act()</script>', '<b>b</b>'],
  ['a handler', '<p onclick="act()">p</p>', '<p>p</p>'],
  ['a picture of the network', '<img src="https://evil.example/x.png" alt="a">', 'a'],
  ['a picture of SVG', '<img src="data:image/svg+xml,<svg/>">', ''],
  ['a style that is not a table’s', '<style>.dataframe td { background: url(x); }</style>t', 't'],
  ['a style of the page', '<style>.jp-Cell { text-align: left; }</style>t', 't'],
  [
    'what covers the page',
    '<p style="position: fixed; color: red">p</p>',
    '<p style="color: red;">p</p>'
  ],
  ['an address in a style', '<p style="background-image: url(x)">p</p>', '<p>p</p>'],
  ['a variable', '<p style="color: var(--x)">p</p>', '<p>p</p>'],
  ['a link to this server', '<a href="http://localhost:8888/lab?x">a</a>', '<a>a</a>'],
  ['a relative link', '<a href="/lab">a</a>', '<a>a</a>'],
  ['a script’s link', '<a href="javascript:act()">a</a>', '<a>a</a>'],
  ['a form', '<form><input name="x"><button data-commandlinker-command="c">b</button></form>', 'b'],
  ['a frame', '<iframe src="x"></iframe>', ''],
  ['a drawing', '<svg onload="act()"><text>t</text></svg>', ''],
  ['mathematics', '<math><mtext><style><!--</style><img title="--&gt;<img onerror=1>">', '']
]) {
  test(`of ${name} only the harmless rest stays`, () => {
    const found = readMarkup(html);
    assert.equal(found.lost, true);
    assert.equal(htmlOf(found).trim(), kept);
  });
}

test('names and classes, which could be taken for the page’s own, are left out', () => {
  const found = readMarkup('<p id="main" class="jp-Button" name="x" data-x="1">p</p>');
  assert.equal(htmlOf(found), '<p>p</p>');
  assert.equal(found.lost, false);
});

test('a link to the web opens a page that does not know this one', () => {
  assert.equal(
    htmlOf(readMarkup('<a href="https://example.org/?a=1&b" target="_top">a</a>')),
    '<a href="https://example.org/?a=1&amp;b" target="_blank" rel="noopener noreferrer nofollow">a</a>'
  );
});

test('a table of more columns than it has cells is none', () => {
  const table = cells => `<table><tr>${'<td colspan=1000>x</td>'.repeat(cells)}</tr></table>`;
  assert.equal(readMarkup(table(9000)), null);
  assert.equal(readMarkup(table(3)).lost, false);
});

test('a style of more properties than there are is not read', () => {
  const style = Array.from({ length: 2000 }, (_, index) => `--p${index}: 1`).join(';');
  assert.equal(htmlOf(readMarkup(`<p style="color: red; ${style}">x</p>`)), '<p>x</p>');
});

test('too much HTML is none', () => {
  assert.equal(readMarkup('<b>'.repeat(700_000)), null);
  assert.equal(readMarkup('<b></b>'.repeat(10_001)), null);
  assert.equal(readMarkup('<DETAILS></details>'.repeat(301)), null);
});

test('so many levels of HTML as are laid out in a moment', () => {
  assert.equal(readMarkup('<div>'.repeat(50)).lost, false);
  assert.equal(readMarkup('<div>'.repeat(51)), null);
  assert.equal(readMarkup('<x-y>'.repeat(51)), null);
});

test('the budget of a notebook counts what is drawn in the page', () => {
  const share = (type, value) => shareOf({ [type]: value });
  assert.ok(share('text/plain', 'a line\n'.repeat(60)) < 0.001);
  assert.ok(share('text/plain', '\n'.repeat(900_000)) < 0.5, 'only its beginning is drawn');
  assert.ok(share('text/html', '<td>'.repeat(9000)) >= 0.5);
  assert.ok(share('text/latex', 'a'.repeat(9000)) > 0.4);
  assert.ok(share('text/markdown', 'a'.repeat(4000)) > 0.1);
  assert.ok(share('text/markdown', 'a'.repeat(5000)) < 0.1, 'a frame draws it');
  assert.ok(share('application/json', [...Array(99_999).keys()]) > 0.2);
  assert.equal(share('application/vnd.plotly.v1+json', { data: [] }), 0);
});

test('metadata are sizes, a text, and a shade', () => {
  const known = { width: 5, height: '7', alt: 'a', needs_background: 'light' };
  const other = { expanded: true, isolated: true, unconfined: true, trusted: true };
  const own = { ...known, ...other, width: 1e9, 'image/png': known };
  assert.deepEqual(
    readMetadata({ ...known, ...other, 'image/png': own, x: known }, ['image/png']),
    {
      ...known,
      height: 7,
      'image/png': { height: 7, alt: 'a', needs_background: 'light' }
    }
  );
});

test('a link opens no address of this server, by any of its names', () => {
  const names = [
    'localhost',
    '127.0.0.1',
    '127.1',
    '[::1]',
    '0.0.0.0',
    'a.localhost',
    'localhost.'
  ];
  for (const host of [...names, '2130706433', '[::ffff:127.0.0.1]']) {
    assert.equal(readLink(`http://${host}:8888/lab`), null, host);
    assert.ok(readLink(`http://${host}:8889/`), host);
  }
  for (const other of ['javascript:act()', 'file:///etc', '/lab', 'https://a@example.org/']) {
    assert.equal(readLink(other), null, other);
  }
  assert.ok(readLink('https://example.org/'));
});

test('a style of many parts is read at once', () => {
  const start = performance.now();
  readMarkup(`<style>${'.dataframe '.repeat(180)}</style><style>${' '.repeat(1990)}x</style>`);
  assert.ok(performance.now() - start < 5000);
});

test('Markdown that takes long is not parsed in the page', () => {
  assert.ok(isLongMarkdown('`a``b```c'.repeat(1000)));
  assert.equal(isLongMarkdown('`a` and text '.repeat(300)), false);
  assert.ok(isLongMarkdown('$a$ '.repeat(100)));
});

test('formulas set type and do nothing else', () => {
  assert.ok(
    isFormula(String.raw`$\frac{\alpha}{\sqrt{2}} \left(\begin{matrix}1\end{matrix}\right)$`)
  );
  assert.ok(
    isFormula(String.raw`$\displaystyle \operatorname{ref}{\left(x \right)} \textcolor{red}{x}$`)
  );
  const sum = String.raw`\frac{\left(x^{\left[0, 1\right)} + \xi\right)}{\sqrt{y}} \le 5\%`;
  assert.ok(isFormula(`$\\displaystyle ${Array(100).fill(sum).join(' + ')}$`));
  assert.ok(isFormula(`${'{'.repeat(30)}x${'}'.repeat(30)}`));
  for (const tex of [
    String.raw`\href{javascript:act()}{x}`,
    String.raw`\class{jp-Button}{x}`,
    String.raw`\cssId{main}{x}`,
    String.raw`\style{position:fixed}{x}`,
    String.raw`\bbox[background:url(x)]{x}`,
    String.raw`\require{html}`,
    String.raw`\gdef\alpha{x}`,
    String.raw`\renewcommand{\alpha}{x}`,
    String.raw`\newcommand*{\alpha}{x}`,
    String.raw`\DeclareMathOperator{\sin}{x}`,
    `\\begin{array}{c}${'&'.repeat(400)}${'\\\\'.repeat(400)}\\end{array}`,
    String.raw`\Newextarrow{\alpha}{5,5}{0x58}`,
    String.raw`\renewtagform{x}{[}{]}`,
    String.raw`\mathtoolsset{mathic=true}`,
    String.raw`\begin{alignat}{500000000}x\end{alignat}`,
    String.raw`\begin{empheq}{alignat = 500000000}x\end{empheq}`,
    String.raw`\begin{alignedat}[{t}]{500000000}x\end{alignedat}`,
    String.raw`\ce{${'(A2+ ->[b] '.repeat(300)}}`,
    String.raw`\label{x}`,
    String.raw`\unicode[serif;position:fixed]{65}`,
    '{'.repeat(200),
    // Levels that are no braces, or whose end is none: 400 end the page.
    String.raw`${'\\left('.repeat(50)}x${'\\right)'.repeat(50)}`,
    String.raw`${'\\begin{cases}'.repeat(50)}x${'\\end{cases}'.repeat(50)}`,
    String.raw`${'\\sqrt{\\}'.repeat(50)}x${'}'.repeat(50)}`,
    `${'{%}\n'.repeat(50)}x${'}'.repeat(50)}`,
    `${'\\sqrt{%{\n}'.repeat(50)}x${'}'.repeat(50)}`,
    String.raw`${'{\\verb|}|'.repeat(50)}x${'}'.repeat(50)}`,
    String.raw`${'\\left(\\text{\\right)}'.repeat(50)}x${'\\right)'.repeat(50)}`,
    String.raw`${'\\left(\\smash[\\right)]x'.repeat(50)}x${'\\right)'.repeat(50)}`,
    String.raw`\begin{prooftree}\AxiomC{A}\UnaryInfC{B}\end{prooftree}`,
    '\\color{red}'.repeat(200),
    '\\raise1em '.repeat(50),
    // What doubles the time for each level.
    `${'\\pmb{'.repeat(12)}x${'}'.repeat(12)}`,
    `${'\\boxed{'.repeat(30)}x${'}'.repeat(30)}`,
    `${'\\xrightarrow{'.repeat(20)}x${'}'.repeat(20)}`,
    `${'\\overset{'.repeat(20)}x${'}{\\Rightarrow}'.repeat(20)}`,
    `${'\\overset{'.repeat(20)}x${'}{\u21d2}'.repeat(20)}`,
    String.raw`\begin{CD}${'A@>>>B\\\\'.repeat(500)}\end{CD}`,
    'x'.repeat(30_000)
  ]) {
    assert.equal(isFormula(tex), false, tex.slice(0, 40));
  }
  assert.ok(mayTypeset(readMarkup('<p>$x$</p>')));
  assert.equal(mayTypeset(readMarkup('<p>no formula</p>')), false);
  assert.equal(mayTypeset(readMarkup(String.raw`<p>$\hr<wbr>ef{javascript:act()}{x}$</p>`)), false);
  assert.equal(mayTypeset(readMarkup(String.raw`<p>$\href<br>a{x}$</p>`)), false);
});

/** RST0, which has no length: a reader that takes the next bytes for one skips into a small size. */
const DECOY = [
  ...[0xff, 0xd0, 0xff, 0xe0, 0, 17, 0xff, 0xc0, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0],
  ...[0, 0, 0, 0]
];
/** Decoders skip the second 0xff, and find the large size; who reads it as a marker skips that. */
function withFillByte() {
  const large = Buffer.from(jpeg(20_000, 20_000), 'base64').subarray(2);
  const small = Buffer.from(jpeg(8, 8), 'base64').subarray(2);
  const skipped = Buffer.concat([large, Buffer.alloc(0xc000)], 0xc000);
  return Buffer.concat([Buffer.from([0xff, 0xd8, 0xff]), skipped, small]).toString('base64');
}

test('a text has so many colours and links as are drawn in a moment', () => {
  assert.equal(drawable('x'.repeat(1_000_000), false), 1_000_000);
  assert.equal(drawable('x'.repeat(3_000_000), false), 2_000_000);
  for (const mark of ['\x1b[31mx', 'http://a.b ', 'www.a.b ', 'data:abc ']) {
    assert.equal(drawable(mark.repeat(20_000), false), mark.length * 20_000);
    const end = drawable(mark.repeat(150_000), false);
    assert.ok(end >= mark.length * 20_000 && end < mark.length * 20_001, mark);
  }
  assert.equal(drawable('a/b '.repeat(30_000), false), 120_000);
  assert.equal(drawable('a\n'.repeat(30_000), false), 60_000);
  assert.equal(drawable('a\n'.repeat(900_000), false), 60_001);
  assert.ok(drawable('a/b '.repeat(30_000), true) < 81_000);
});

test('a tree of JSON is small and flat', () => {
  const nest = depth => JSON.parse(`${'['.repeat(depth)}${']'.repeat(depth)}`);
  const planOf = value => makePlan({ 'application/json': value, 'text/plain': 't' }, none);
  assert.equal(planOf(nest(50)).type, 'application/json');
  assert.deepEqual(planOf(nest(5000)), { way: 'native', type: 'text/plain', lost: true });
  assert.deepEqual(planOf('x'.repeat(600_000)).type, 'text/plain');
});

test('a picture is what its bytes say, and of checked size', () => {
  assert.ok(isPicture(png(800, 600)));
  assert.ok(isPicture(`${png(8000, 8000, [['tEXt', 30]])}\n`));
  assert.ok(isPicture(jpeg(640, 480)));
  assert.ok(isPicture(jpeg(640, 480, { marker: 0xc2, scans: 10 })));
  for (const [name, base64] of Object.entries({
    large: png(8001, 8000),
    moves: png(1, 1, [['acTL', 8]]),
    empty: png(0, 0),
    'large jpeg': jpeg(65535, 65535),
    'many scans': jpeg(640, 480, { marker: 0xc2, scans: 100 }),
    'a decoy after a mark without length': jpeg(65500, 900, { first: DECOY }),
    'a decoy after fill bytes': jpeg(65500, 900, { first: [0xff, ...DECOY.slice(2)] }),
    'a length that is none': jpeg(640, 480, { first: [0xff, 0xe0, 0, 0] }),
    'no length': jpeg(640, 480, { first: [0xff, 0xe0, 0, 1] }),
    'a jpeg that may be read otherwise': withFillByte(),
    cut: png(800, 600).slice(0, 20),
    gif: Buffer.from('GIF89a\x01\0\x01\0').toString('base64'),
    markup: '"><img src=x onerror=act()>',
    nothing: ''
  })) {
    assert.equal(isPicture(base64), false, name);
  }
});

const none = () => false;

test('the richest type that may be shown is drawn', () => {
  const picture = png(8, 8);
  const cases = [
    [{ 'text/plain': 't' }, { way: 'native', type: 'text/plain', lost: false }],
    [
      { 'text/plain': 't', 'text/html': '<b>t</b>' },
      { way: 'markup', type: 'text/html', lost: false }
    ],
    [
      { 'text/plain': 't', 'text/html': '<script>x</script>' },
      { way: 'native', type: 'text/plain', lost: true }
    ],
    [
      { 'text/plain': 't', 'text/html': '<b>t</b><script>x</script>' },
      { way: 'markup', type: 'text/html', lost: true }
    ],
    [
      { 'image/png': picture, 'text/html': '<script>x</script>', 'text/plain': 't' },
      { way: 'native', type: 'image/png', lost: true }
    ],
    [
      { 'image/svg+xml': '<svg/>', 'image/png': picture },
      { way: 'native', type: 'image/png', lost: true }
    ],
    [{ 'application/javascript': 'x' }, { way: 'nothing', type: '', lost: true }],
    [{ 'application/x-nobody-shows': 'x' }, { way: 'nothing', type: '', lost: false }],
    [
      { 'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 't' },
      { way: 'native', type: 'text/plain', lost: true }
    ]
  ];
  for (const [bundle, plan] of cases) {
    assert.deepEqual(makePlan(bundle, none), plan);
  }
});

test('a frame gets the richest type that it can draw', () => {
  const frames = type => ['text/html', 'application/vnd.plotly.v1+json'].includes(type);
  assert.deepEqual(
    makePlan(
      {
        'text/html': '<script>x</script>',
        'application/vnd.plotly.v1+json': {},
        'text/plain': 't'
      },
      frames
    ),
    { way: 'frame', type: 'application/vnd.plotly.v1+json', lost: false }
  );
  assert.deepEqual(makePlan({ 'text/html': '<b>t</b>' }, frames), {
    way: 'markup',
    type: 'text/html',
    lost: false
  });
  assert.deepEqual(makePlan({ 'text/html': '<script>x</script>' }, frames), {
    way: 'frame',
    type: 'text/html',
    lost: false
  });
});

test('only what this page has heard itself has an origin', () => {
  const modelOf = message => ({ _raw: { transient: message.content.transient } });
  for (const origin of ['local', 'sandbox', 'unknown']) {
    const message = { content: { data: {}, transient: { display_id: 'a' } } };
    mark(message, origin);
    assert.equal(message.content.transient.display_id, 'a');
    assert.equal(originOf(modelOf(structuredClone(message))), origin);
  }
  const forged = { content: { data: {}, transient: { 'gvisor-kernel:origin': 'local' } } };
  assert.equal(originOf(modelOf(forged)), 'unknown');
  mark(forged, 'sandbox', 'k1');
  assert.equal(originOf(modelOf(forged)), 'sandbox');
  assert.equal(senderOf(modelOf(forged)), 'k1');
  const other = structuredClone(forged);
  other.content.transient['gvisor-kernel:sender'] = 'k2';
  for (const [origin, sender] of [
    ['sandbox', 'k1'],
    ['local', null],
    ['unknown', null]
  ]) {
    mark(other, origin, 'k1');
    assert.equal(senderOf(modelOf(other)), sender, origin);
  }
  for (const raw of [undefined, {}, { transient: null }, { transient: 'local' }]) {
    assert.equal(originOf({ _raw: raw }), 'unknown');
  }
});

test('a kernel that is not listed may be anything', () => {
  const specs = {
    default: 'own',
    kernelspecs: {
      own: { name: 'own', display_name: 'Own', language: 'python', argv: ['python'] },
      ours: {
        name: 'ours',
        display_name: 'Ours',
        language: 'python',
        argv: ['python'],
        metadata: { kernel_provisioner: { provisioner_name: 'gvisor-provisioner' } }
      },
      started: {
        name: 's',
        display_name: 's',
        language: 'r',
        argv: ['-m', 'gvisor_kernel', 'launch']
      }
    }
  };
  assert.equal(originOfKernel(specs, 'own'), 'local');
  assert.equal(originOfKernel(specs, 'ours'), 'sandbox');
  assert.equal(originOfKernel(specs, 'started'), 'sandbox');
  assert.equal(originOfKernel(specs, 'gone'), 'unknown');
  assert.equal(originOfKernel(null, 'own'), 'unknown');
});
