import assert from 'node:assert/strict';
import test from 'node:test';

import {
  Choices,
  MOST_CHOICES,
  isTrusted,
  isUnknown,
  kernelToOffer,
  whyOffered
} from '../lib/care.js';
import { Card } from '../lib/card.js';
import { describeCards } from '../lib/launcher.js';
import { FILES_LOST, LONGEST_MESSAGE, LostFiles, describeLost } from '../lib/lost.js';
import { StatusView } from '../lib/status.js';
import { UnkeptLook, UnkeptView, listFiles } from '../lib/unkept.js';
import { Clock, HOME, MARKUP, noAction, openPage, sandboxAnswer, settle } from './page.js';

openPage();

const THREE = { total: 3, more: false, paths: ['a', 'b', 'c'] };

test('the count of files that are not kept is beside the shield, while there are some', () => {
  const view = new UnkeptView(() => {}, new Clock());
  const [button] = view.node.children;
  const label = () => button.firstChild.textContent;
  assert.equal(button.hidden, true);
  view.update(THREE);
  assert.equal(button.hidden, false);
  assert.equal(label(), '3 files not kept');
  view.update({ ...THREE, total: 1 });
  assert.equal(label(), '1 file not kept');
  view.update({ ...THREE, more: true });
  assert.equal(label(), 'at least 3 files not kept');
  view.update({ total: 0, more: false, paths: [] });
  assert.equal(button.hidden, true);
  view.update({ total: 0, more: true, paths: [] });
  assert.equal(button.hidden, false);
  assert.equal(label(), 'there may be files that are not kept');
});

test('each further file is named like the first one, and told to a screen reader', () => {
  const clock = new Clock();
  const view = new UnkeptView(() => {}, clock);
  const news = view.node.querySelector('.gk-news');
  const files = (...paths) => ({ total: paths.length, more: false, paths });
  view.update(files(MARKUP), 'k1');
  assert.equal(news.textContent, `+1: ${MARKUP}`);
  assert.equal(news.querySelector('img'), null);
  clock.move(60);
  assert.equal(news.hidden, true);
  view.update(files(MARKUP), 'k1');
  assert.equal(news.hidden, true);
  view.update(files(MARKUP, 'b.csv', 'c.csv'), 'k1');
  assert.equal(news.hidden, false);
  assert.equal(news.textContent, '+2: b.csv, …');
  assert.match(view.node.querySelector('[role=status]').textContent, /Not kept: \+2: b.csv/);
  view.update(null); // another notebook, and back
  view.update(files(MARKUP, 'b.csv', 'c.csv'), 'k1');
  assert.equal(news.hidden, true);
});

test('a list names the first files as text, and says how many there are beside', () => {
  const paths = Array.from({ length: 10 }, (_, index) => `${MARKUP}${index}`);
  const node = listFiles({ total: 12, more: false, paths });
  assert.equal(node.querySelectorAll('li').length, 10);
  assert.equal(node.querySelector('img'), null);
  assert.match(node.textContent, /and 2 more$/);
  const odd = listFiles({ total: 2, more: false, paths: ['a\\u200b', 'a\u200b'] });
  assert.deepEqual(
    [...odd.querySelectorAll('li')].map(it => it.textContent),
    ['a\\\\u200b', 'a\\u200b']
  );
});

function openLook(visible = { now: true }) {
  const asked = [];
  const shown = [];
  const clock = new Clock();
  const ask = id =>
    new Promise(resolve => {
      asked.push({ id, answer: resolve });
    });
  const look = new UnkeptLook(
    ask,
    it => shown.push(it),
    clock,
    () => visible.now
  );
  return { asked, shown, clock, look, visible };
}

test('many cells that end at once are one question, and the last notebook counts', async () => {
  const { asked, shown, clock, look } = openLook();
  look.follow('k1');
  look.want();
  look.want();
  clock.move(1);
  assert.deepEqual(
    asked.map(it => it.id),
    ['k1']
  );
  look.follow('k2');
  asked[0].answer(THREE); // about the notebook that the person has left
  await settle();
  assert.deepEqual(shown, [null, null]);
  clock.move(1);
  asked[1].answer(THREE);
  await settle();
  assert.equal(shown.at(-1), THREE);
  look.follow(null);
  clock.move(1);
  assert.equal(shown.at(-1), null);
  assert.equal(asked.length, 2);
});

test('a hidden page asks nothing, and asks when it is seen again', () => {
  const { asked, clock, look, visible } = openLook({ now: false });
  look.follow('k1');
  look.want();
  clock.move(10);
  assert.equal(asked.length, 0);
  visible.now = true;
  look.seen();
  clock.move(1);
  assert.equal(asked.length, 1);
  look.want(); // the server would answer the same again
  clock.move(1);
  assert.equal(asked.length, 1);
  clock.move(2);
  assert.equal(asked.length, 2);
  look.seen(); // nothing has happened since
  clock.move(10);
  assert.equal(asked.length, 2);
});

function openLost(ended = {}) {
  const told = [];
  const clock = new Clock();
  const client = {
    kernel: async id => (ended[id] ? sandboxAnswer({ kernel_id: id, ...ended[id] }) : null)
  };
  const lost = new LostFiles(
    client,
    name => name.startsWith('gvisor'),
    it => told.push(it),
    clock
  );
  return { told, clock, lost };
}

const ours = id => ({ id, name: 'gvisor-python' });
const event = (id, fields = {}) => ({
  schema_id: FILES_LOST,
  kernel_id: id,
  kernel_name: 'gvisor-python',
  ...THREE,
  ...fields
});

test('what a kernel took with it is told once, from the list of kernels or from the event', async () => {
  const { told, lost } = openLost({ k1: { state: 'ended', unkept: THREE }, k2: {} });
  await lost.follow([ours('k1'), ours('k2'), { id: 'k3', name: 'python3' }]);
  await lost.follow([ours('k2')]);
  assert.deepEqual(
    told.map(it => [it.kernel_id, it.paths]),
    [['k1', ['a', 'b', 'c']]]
  );
  lost.event(event('k1'));
  assert.equal(told.length, 1);
  await lost.follow([]); // k2 took nothing with it
  assert.equal(told.length, 1);
});

test('each death is told, whoever else sends the same again', () => {
  const { told, clock, lost } = openLost();
  lost.event(event('k1'));
  lost.event(event('k1'));
  assert.equal(told.length, 1);
  clock.move(61);
  lost.event(event('k1'));
  assert.equal(told.length, 2);
  lost.event(event('k1', { schema_id: 'urn:gvisor-kernel:event:died:v1' }));
  lost.event(event('k9', { total: 0, paths: [] }));
  assert.equal(told.length, 2);
});

test('a death of which the server knows nothing is told from what was seen last', async () => {
  const ended = { k1: { id: 'second' } };
  const { told, clock, lost } = openLost(ended);
  const sandbox = sandboxAnswer({ id: 'first' });
  const wait = async seconds => {
    clock.move(seconds);
    await settle();
  };
  lost.died(sandbox, THREE);
  await wait(4);
  assert.equal(told.length, 1);
  await wait(100);
  lost.died(sandbox, { ...THREE, total: 2 });
  lost.event(event('k1')); // the server knows better
  await wait(4);
  assert.deepEqual(
    told.map(it => it.total),
    [3, 3]
  );
  await wait(100);
  ended.k1.id = 'first'; // the sandbox lives on, with the files
  lost.died(sandbox, THREE);
  await wait(4);
  assert.equal(told.length, 2);
  ended.k1.state = 'ended';
  lost.died(sandbox, THREE);
  await wait(4);
  assert.equal(told.length, 3);
});

test('whoever has seen the list before is not told again, unless the kernel lives on', async () => {
  const { told, lost } = openLost({ k1: { state: 'ended', unkept: THREE } });
  await lost.follow([ours('k1')]);
  lost.agree('k1');
  lost.event(event('k1'));
  await lost.follow([]);
  assert.equal(told.length, 0);
  lost.agree('k2');
  lost.disagree('k2');
  lost.event(event('k2'));
  assert.equal(told.length, 1);
});

test('a notification has the names that there is room for', () => {
  const lost = { kernel_id: 'k', kernel_name: 'x', ...THREE };
  assert.equal(
    describeLost(lost, 'Python'),
    '3 files in /workspace are gone with the sandbox of Python: a, b, c.'
  );
  const many = {
    ...lost,
    total: 12,
    paths: ['name-of-a-file-1.parquet', 'name-of-a-file-2.parquet']
  };
  assert.match(
    describeLost({ ...many, paths: [...many.paths, 'x'.repeat(60)] }, 'Python'),
    /: name-of-a-file-1\.parquet, name-of-a-file-2\.parquet and 10 more\.$/
  );
  const long = { ...lost, total: 1, more: true, paths: ['x'.repeat(500)] };
  assert.doesNotMatch(describeLost(long, 'a\u202e\nb'), /[\u202e\n]/);
  const text = describeLost(long, 'N'.repeat(200));
  assert.ok(text.length <= LONGEST_MESSAGE, text);
  assert.match(text, /^At least 1 files in \/workspace are gone/);
});

test('a notebook in a home is told so in the bar and on the card, with what to do', () => {
  const sandbox = sandboxAnswer({ workspace: HOME });
  const view = new StatusView();
  view.update(sandbox);
  const home = view.node.querySelector('.gk-home');
  assert.equal(home.hidden, false);
  assert.match(view.node.getAttribute('aria-label'), /Move the notebook/);
  assert.match(new Card(sandbox, noAction).node.textContent, /to a folder of their own/);
  view.update(sandboxAnswer());
  assert.equal(home.hidden, true);
});

const spec = (name, language, isOurs) => ({
  name,
  display_name: `${MARKUP} ${name}`,
  language,
  metadata: isOurs ? { kernel_provisioner: { provisioner_name: 'gvisor-provisioner' } } : {}
});
const SPECS = {
  default: 'python3',
  kernelspecs: {
    python3: spec('python3', 'python', false),
    ir: spec('ir', 'R', false),
    'gvisor-python': spec('gvisor-python', 'python', true),
    julia: spec('julia', 'julia', false),
    'gvisor-r': spec('gvisor-r', 'R', true)
  }
};

test('our kernel of the same language is offered, if the next one has no sandbox', () => {
  const offer = (preference, next) => kernelToOffer(SPECS, preference, next);
  assert.equal(offer({ name: 'python3', language: 'python' }, 'python3'), 'gvisor-python');
  assert.equal(offer({ name: 'ir' }, 'ir'), 'gvisor-r');
  assert.equal(offer({ name: 'gone', language: 'R' }, null), 'gvisor-r');
  assert.equal(offer({}, null), 'gvisor-python');
  assert.equal(offer({ name: 'gone', language: '' }, null), 'gvisor-python');
});

test('nothing is asked if ours comes next, or there is none, or nothing would start', () => {
  const offer = (preference, next) => kernelToOffer(SPECS, preference, next);
  assert.equal(offer({ name: 'gvisor-python' }, 'gvisor-python'), null);
  assert.equal(offer({ name: 'julia', language: 'julia' }, 'julia'), null);
  assert.equal(offer({ name: 'python3', shouldStart: false }, 'python3'), null);
  assert.equal(offer({ name: 'python3', canStart: false }, 'python3'), null);
  assert.equal(offer({ name: 'python3', id: 'k1' }, 'python3'), null);
  assert.equal(kernelToOffer(null, { name: 'python3' }, 'python3'), null);
});

test('a notebook is trusted if the server says so of all its code', () => {
  const code = trusted => ({ type: 'code', trusted });
  assert.equal(isTrusted([code(true), { type: 'markdown', trusted: false }]), true);
  assert.equal(isTrusted([code(true), code(false)]), false);
  assert.equal(isTrusted([]), true);
  const markdown = { type: 'markdown', trusted: true };
  assert.equal(isUnknown([markdown]), true); // whatever the file says of itself
  assert.equal(isUnknown([markdown, code(true)]), false);
  assert.equal(isUnknown([]), false);
});

test('the sentence says what each kernel means', () => {
  assert.match(whyOffered(SPECS, 'python3', 'gvisor-python'), /python3 runs without one/);
  assert.match(whyOffered(SPECS, null, 'gvisor-python'), /Other kernels run without one/);
  const { 'gvisor-python': only } = SPECS.kernelspecs;
  const alone = { ...SPECS, kernelspecs: { 'gvisor-python': only } };
  assert.match(
    whyOffered(alone, null, 'gvisor-python'),
    /Every kernel here runs it in a sandbox\.$/
  );
});

test('a choice stands for the notebook as it was, and another file of its name is asked about', () => {
  const stored = new Map();
  const storage = {
    getItem: key => stored.get(key) ?? null,
    setItem: (key, value) => stored.set(key, value)
  };
  const choices = new Choices(storage, 'key');
  assert.equal(choices.has('a.ipynb', 'v1'), false);
  choices.add('a.ipynb', 'v1');
  assert.equal(new Choices(storage, 'key').has('a.ipynb', 'v1'), true);
  assert.equal(choices.has('a.ipynb', 'v2'), false);
  for (let index = 0; index < MOST_CHOICES; index += 1) {
    choices.add(`${index}`, 'v');
  }
  assert.equal(choices.knows('a.ipynb'), false);
  stored.set('key', '{"no": "list"}');
  assert.equal(choices.knows('0'), false);
});

function openLauncher(untrusted) {
  const node = document.createElement('div');
  const launcher = document.createElement('div');
  launcher.className = 'jp-Launcher';
  node.append(launcher);
  for (const name of ['python3', 'gvisor-python']) {
    const card = document.createElement('div');
    card.className = 'jp-LauncherCard';
    card.title = SPECS.kernelspecs[name].display_name;
    launcher.append(card);
  }
  globalThis.MutationObserver = window.MutationObserver;
  const widget = { node, content: { cwd: 'folder' }, disposed: { connect() {} } };
  const limits = { memory: 1024, disk: 1024, processes: 1, cpu_shares: 1 };
  const facts = { name: 'gvisor-python', image: MARKUP, limits, problem: null };
  const look = describeCards(
    { widgets: () => [widget], layoutModified: { connect() {} } },
    {
      specs: () => SPECS,
      kernelspecs: () => new Map([['gvisor-python', facts]]),
      hasUntrusted: async folder => untrusted.includes(folder)
    }
  );
  look();
  return { widget, look, cards: [...launcher.children] };
}

test('cards of ours come first in a folder with notebooks from elsewhere, and only there', async () => {
  const { widget, look, cards } = openLauncher(['folder']);
  await settle();
  assert.deepEqual(
    cards.map(card => card.style.order),
    ['', '-1']
  );
  assert.match(cards[1].title, /\nRuns in a sandbox\.[^\n]*\nFirst, since this folder/);
  assert.ok(cards[1].title.includes(MARKUP));
  assert.equal(cards[1].querySelector('img'), null);
  widget.content.cwd = 'other';
  look();
  await settle();
  assert.equal(cards[1].style.order, '');
  assert.doesNotMatch(cards[1].title, /First/);
});
