import assert from 'node:assert/strict';
import test from 'node:test';

import { Card } from '../lib/card.js';
import { ChangesView } from '../lib/changes.js';
import { SandboxClient, ServerError } from '../lib/client.js';
import { escapeHidden, likeness, showName } from '../lib/dom.js';
import { History } from '../lib/history.js';
import { Notes } from '../lib/notes.js';
import { Sidebar } from '../lib/sidebar.js';
import { StatusView } from '../lib/status.js';
import { Thumbnails } from '../lib/thumbnails.js';
import { nameOf, rememberTitles, titles } from '../lib/titles.js';
import {
  HOME,
  MARKUP,
  bytes,
  changeAnswer,
  noAction,
  openPage,
  sandboxAnswer,
  settle
} from './page.js';

openPage();

test('what ends an output is said whatever its page has said before', () => {
  const notes = new Notes('Messages', 5);
  for (let it = 0; it < 9; it++) {
    notes.add(`Not loaded: host${it}`);
  }
  assert.equal(notes.node.children.length, 5);
  let count = 0;
  notes.add('It has ended.', () => (count += 1));
  notes.node.querySelector('button').click();
  assert.equal(count, 1);
});

test('the bar turns at 80 % of the limit, and words say it too', () => {
  const view = new StatusView();
  const show = used => view.update(sandboxAnswer({ memory: { used, limit: 100 } }));
  show(79);
  assert.equal(view.node.classList.contains('gk-full'), false);
  show(80);
  assert.equal(view.node.classList.contains('gk-full'), true);
  assert.match(view.node.getAttribute('aria-label'), /nearly full; no network/);
});

test('what was not loaded is one line, and other lines are their own', () => {
  const notes = new Notes('Messages', 3);
  const said = () => [...notes.node.children].map(line => line.textContent);
  for (const name of ['a.example', 'b\u202e.example', 'a.example', 'c.example', 'd.example']) {
    notes.add(`Not loaded, as outputs have no network: ${name}`);
  }
  notes.add('It ended: why', () => undefined);
  assert.deepEqual(said(), [
    'Not loaded, as outputs have no network: a.example, b\\u202e.example, c.example',
    'It ended: why Show again'
  ]);
  notes.add('It ended: why');
  notes.add('third');
  notes.add('fourth');
  assert.equal(said().length, 3);
});

test('a kernel that hibernates has a moon, and is offered to go on', () => {
  const asleep = { hibernated: { since: 1764425100, size: 214 * 1024 ** 2 } };
  const sandbox = sandboxAnswer({ ...asleep, memory: { used: null, limit: 4 * 1024 ** 3 } });
  const view = new StatusView();
  view.saving.add(sandbox.kernel_id);
  view.update(sandboxAnswer());
  assert.match(view.node.textContent, /saving/);
  view.saving.clear();
  view.update(sandbox);
  assert.match(view.node.textContent, /☾hibernated/);
  view.update(sandboxAnswer({ ...asleep, state: 'starting' }));
  assert.match(view.node.textContent, /☾waking/);
  const done = [];
  const card = new Card(sandbox, action => done.push(action));
  const shown = () => [...card.node.querySelectorAll('button')].filter(node => !node.hidden);
  assert.match(card.node.textContent, /Hibernated.*since .*2025.*, 214 MB on the disk/);
  const resume = shown().find(node => node.textContent === 'Resume');
  resume.click();
  assert.deepEqual(done, ['resume']);
  assert.ok(!shown().some(node => node.textContent === 'Hibernate'));
  card.update(sandboxAnswer(), 2000);
  view.update(sandboxAnswer());
  assert.ok(shown().some(node => node.textContent === 'Hibernate'));
  assert.ok(resume.hidden);
  assert.equal(view.node.querySelector('[aria-hidden]:not(svg)').hidden, true);
  card.update(sandboxAnswer({ state: 'busy' }), 2000);
  assert.ok(!shown().some(node => node.textContent === 'Hibernate'));
});

test('open routes are named, and a notebook directly in a home is told why', () => {
  const view = new StatusView();
  const egress = [{ name: 'pypi', kind: 'packages', hosts: ['pypi.org'] }];
  view.update(sandboxAnswer({ egress, workspace: HOME }));
  assert.match(view.node.textContent, /⇄ pypi/);
  assert.match(view.node.title, /lies directly in a home folder/);
});

test('an item without an answer says so, and no figure is left', () => {
  const view = new StatusView();
  view.update(sandboxAnswer());
  view.showUnreachable('HTTP 502');
  assert.match(view.node.textContent, /no answer/);
});

test('what servers and sandboxes send is text in each view', () => {
  const sandbox = sandboxAnswer({
    display_name: MARKUP,
    folder: MARKUP,
    image: MARKUP,
    last_death: { when: 1, reason: MARKUP },
    mounts: [{ source: MARKUP, target: MARKUP, read_only: false, description: MARKUP }],
    egress: [{ name: MARKUP, kind: MARKUP, hosts: [MARKUP] }]
  });
  const card = new Card(sandbox, noAction);
  const status = new StatusView();
  status.update(sandbox);
  const sidebar = new Sidebar({ doctor: async () => [] }, new History(), noAction);
  const leftovers = [
    { id: MARKUP, state: MARKUP, folder: MARKUP, created: 1, removed: null, next: false }
  ];
  sidebar.update({ sandboxes: [sandbox], leftovers }, 0);
  for (const view of [card, status, sidebar]) {
    assert.equal(view.node.querySelector('img'), null);
    assert.ok(view.node.textContent.includes(MARKUP));
  }
});

test('the sidebar says until when a saved kernel is kept, and what was removed', () => {
  const sidebar = new Sidebar({ doctor: async () => [] }, new History(), noAction);
  const one = { id: 'a', state: 'hibernated', folder: '/f', created: 1, removed: 9e5, next: false };
  const day = new Date(9e8).toLocaleDateString();
  const say = leftover => {
    sidebar.update({ sandboxes: [], leftovers: [leftover] }, 0);
    return sidebar.leftovers.textContent;
  };
  assert.ok(say(one).includes(`, kept until ${day}`));
  assert.ok(
    say({ ...one, next: true }).includes(`is removed before long, on ${day} at the latest`)
  );
  assert.ok(say({ ...one, state: 'removed' }).includes(`was removed on ${day}.`));
});

test('an unfolded list of the card stays through the next answer', () => {
  const card = new Card(sandboxAnswer(), noAction);
  const details = card.node.querySelector('details');
  card.update(sandboxAnswer({ memory: { used: 1, limit: 2 } }), 2000);
  assert.equal(card.node.querySelector('details'), details);
  assert.match(card.node.textContent, /1 B of 2 B/);
});

test('the buttons of the sidebar stay the same elements, and rows of ended kernels go', () => {
  const stopped = [];
  const act = (action, it) => stopped.push(`${action} ${it.id}`);
  const sidebar = new Sidebar({ doctor: async () => [] }, new History(), act);
  const answer = (...sandboxes) => ({ sandboxes, leftovers: [] });
  sidebar.update(answer(sandboxAnswer()), 0);
  const buttons = [...sidebar.node.querySelectorAll('.gk-row button')];
  sidebar.update(answer(sandboxAnswer({ id: 'second' })), 2);
  assert.deepEqual([...sidebar.node.querySelectorAll('.gk-row button')], buttons);
  buttons.find(node => node.title === 'End Sandbox').click();
  assert.deepEqual(stopped, ['stop second']);
  assert.equal(buttons.find(node => node.title === 'Outputs').hidden, true);
  sidebar.update(answer(), 4);
  assert.equal(sidebar.node.querySelector('.gk-row'), null);
});

test('doctor shows first what needs a hand, and what to do', async () => {
  const checks = [
    { name: 'seccomp', state: 'ok', fact: 'available', fix: '' },
    { name: 'runsc', state: 'warning', fact: MARKUP, fix: 'install a current one' }
  ];
  const sidebar = new Sidebar({ doctor: async () => checks }, new History(), noAction);
  await sidebar.runDoctor();
  const text = sidebar.node.textContent;
  assert.ok(text.indexOf('runsc') < text.indexOf('seccomp'));
  assert.match(text, /What to do: install a current one/);
  assert.match(text, /1 check is fine/);
  assert.ok(text.includes(MARKUP));
});

/** The server's half of changes, in memory. */
class Double {
  calls = [];
  answer = [
    { path: 'a.txt', kind: 'changed', type: 'file', size: 5, old_size: 4, state: 's1' },
    { path: MARKUP, kind: 'added', type: 'file', size: 5, old_size: null, state: 's2' },
    {
      path: 'c.txt',
      kind: 'changed',
      type: 'file',
      size: 1,
      state: 's3',
      conflict: 'both changed'
    },
    { path: 'pipe', kind: 'added', type: 'other', size: 0, state: 's4' }
  ];
  result = {
    applied: ['a.txt'],
    refused: [{ path: 'c.txt', reason: 'It changed on disk.' }],
    undo: 'u1'
  };

  async changes() {
    const changes = this.answer.map(changeAnswer);
    return { changes, more: false, total: changes.length };
  }

  async content(id, { path }, side) {
    this.calls.push(`${side} ${path}`);
    return bytes(side === 'old' ? 'old\n' : `new ${MARKUP}\n`);
  }

  async apply(id, changes, force) {
    this.calls.push({ paths: changes.map(it => [it.path, it.state]), force });
    return this.result;
  }

  undone = { undone: ['a.txt'], refused: [] };

  async undo(id, undo) {
    this.calls.push(`undo ${undo}`);
    return this.undone;
  }
}

/** What shows pictures, and knows those that are there. */
class FakePreview {
  static alive = new Set();
  node = document.createElement('p');

  async showBytes(path, content) {
    FakePreview.alive.add(this);
    this.node.textContent = `${path} ${content.byteLength}`;
  }

  clear() {
    FakePreview.alive.delete(this);
  }
}

async function openChanges(double = new Double()) {
  const view = new ChangesView(double, 'k1', () => new FakePreview());
  document.body.replaceChildren(view.node); // a checkbox outside of a page sends no event
  await view.refresh();
  const find = label =>
    [...view.node.querySelectorAll('button')].find(it =>
      [it.textContent, it.title].some(text => text.startsWith(label))
    );
  const tick = label => view.node.querySelector(`input[aria-label="${label}"]`);
  const click = async node => {
    node.click();
    await settle();
  };
  return { double, view, find, tick, click };
}

test('changes are listed as text, with conflicts, and special files cannot be chosen', async () => {
  const { view, tick } = await openChanges();
  assert.equal(view.node.querySelector('img'), null);
  assert.ok(view.node.textContent.includes(MARKUP));
  assert.match(view.node.textContent, /both changed/);
  assert.equal(tick('Choose pipe').disabled, true);
});

test('files that may run by themselves are apart, and each is ticked and named', async () => {
  const double = new Double();
  const runs = 'tools that build run it';
  const file = { kind: 'added', type: 'file', size: 1 };
  double.answer.splice(0, 0, { ...file, path: 'Makefile', state: 's0', runs });
  const { view, tick, click, find } = await openChanges(double);
  const [usual, running] = view.node.querySelectorAll('tbody');
  assert.doesNotMatch(usual.textContent, /Makefile/);
  assert.match(running.textContent, /May run later without being opened.*Makefile.*tools that/);
  await click(tick('All changes but those that may run by themselves'));
  assert.equal(tick('Choose a.txt').checked, true);
  assert.equal(tick('Choose Makefile').checked, false);
  await click(tick('Choose Makefile'));
  await click(tick('All changes but those that may run by themselves'));
  await click(find('Apply selected (1)'));
  assert.deepEqual(double.calls, [{ paths: [['Makefile', 's0']], force: false }]);

  const { requests, client: asked } = client(200, { applied: [], refused: [], undo: null });
  await asked.apply('k', (await double.changes()).changes.slice(0, 2), false);
  assert.deepEqual(requests[0].body.named, ['Makefile']);
});

test('only what is ticked is applied, with the state that was looked at', async () => {
  const { double, view, find, tick, click } = await openChanges();
  assert.equal(find('Apply selected').disabled, true);
  await click(tick('Choose a.txt'));
  await click(tick('Choose c.txt'));
  await click(find('Apply selected (2)'));
  assert.deepEqual(double.calls, [
    {
      paths: [
        ['a.txt', 's1'],
        ['c.txt', 's3']
      ],
      force: false
    }
  ]);
  const status = view.node.querySelector('[role=status]').textContent;
  assert.match(status, /1 change applied\.\n1 refused\.\nc\.txt: It changed on disk\./);
  assert.equal(find('Apply selected').disabled, true);

  await click(find('Undo'));
  assert.equal(double.calls.at(-1), 'undo u1');
  assert.equal(find('Undo').disabled, true);
});

test('an undo that was refused is told, and can be tried again', async () => {
  const double = new Double();
  double.undone = { undone: [], refused: [{ path: 'a.txt', reason: 'It changed since.' }] };
  const { view, find, tick, click } = await openChanges(double);
  await click(tick('Choose a.txt'));
  await click(find('Apply selected (1)'));
  await click(find('Undo'));
  const status = view.node.querySelector('[role=status]').textContent;
  assert.match(status, /0 changes undone\.\n1 refused\.\na\.txt: It changed since\./);
  assert.equal(find('Undo').disabled, false);
});

test('an undo of nothing is no undo, and an apply of nothing leaves the last undo', async () => {
  const double = new Double();
  double.undone = { undone: [], refused: [] };
  const { view, find, tick, click } = await openChanges(double);
  await click(tick('Choose a.txt'));
  await click(find('Apply selected (1)'));
  double.result = { applied: [], refused: [{ path: 'a.txt', reason: 'no' }], undo: null };
  await click(tick('Choose a.txt'));
  await click(find('Apply selected (1)'));
  assert.equal(find('Undo').disabled, false);
  await click(find('Undo'));
  assert.match(view.node.querySelector('[role=status]').textContent, /Nothing was left to undo/);
});

test('what was applied is told although no new list comes, and the tick of force is gone', async () => {
  const double = new Double();
  const { view, find, tick, click } = await openChanges(double);
  const force = view.node.querySelector('input[aria-label^="Also apply conflicts"]');
  await click(force);
  await click(tick('Choose a.txt'));
  double.changes = async () => {
    throw new ServerError(409, 'The sandbox has ended.');
  };
  await click(find('Apply selected (1)'));
  const status = view.node.querySelector('[role=status]').textContent;
  assert.match(status, /1 change applied\.[^]*The sandbox has ended/);
  assert.equal(force.checked, false);
});

test('a difference of an older state is marked, and one of what is gone is taken away', async () => {
  const { double, view, find, click } = await openChanges();
  const shown = view.node.querySelector('.gk-difference');
  await click(find('a.txt'));
  await click(find('Refresh'));
  assert.equal(shown.querySelector('.gk-outdated'), null);
  double.answer[0] = { ...double.answer[0], state: 's9' };
  await click(find('Refresh'));
  assert.match(shown.textContent, /^Outdated/);
  await click(find('a.txt'));
  assert.equal(shown.querySelector('.gk-outdated'), null);
  double.answer = double.answer.slice(1);
  await click(find('Refresh'));
  assert.equal(shown.textContent, '');
});

test('a list that comes while a difference is read marks it, too', async () => {
  const { double, view, find, click } = await openChanges();
  const content = double.content.bind(double);
  let go;
  const gate = new Promise(resolve => (go = resolve));
  double.content = async (...all) => {
    await gate;
    return content(...all);
  };
  await click(find('a.txt'));
  double.answer[0] = { ...double.answer[0], state: 's9' };
  await click(find('Refresh'));
  go();
  await settle();
  assert.match(view.node.querySelector('.gk-difference').textContent, /Outdated/);
});

test('a file whose state has no digest is told to be not checked', async () => {
  const double = new Double();
  const digest = 'a'.repeat(64);
  double.answer[0] = { ...double.answer[0], state: `1.2 file.5.7.${digest}` };
  double.answer[1] = { ...double.answer[1], state: 'absent file.5.7.' };
  const { view, find, click } = await openChanges(double);
  assert.doesNotMatch(view.node.querySelector('tbody tr').textContent, /Not checked/);
  assert.match(view.node.querySelectorAll('tbody tr')[1].textContent, /Not checked/);
  await click(find('<img'));
  assert.match(view.node.querySelector('.gk-difference').textContent, /Not checked/);
});

test('a refusal of other content is shown instead of a difference', async () => {
  const double = new Double();
  double.content = async () => {
    throw new ServerError(409, 'a.txt: the kernel has changed it since it was listed: look again');
  };
  const { view, find, click } = await openChanges(double);
  await click(find('a.txt'));
  const shown = view.node.querySelector('.gk-difference');
  assert.match(shown.textContent, /has changed it since it was listed/);
  assert.equal(shown.querySelector('pre'), null);
});

test('a drawing is text until the person wants to see it', async () => {
  const double = new Double();
  double.answer = [{ path: 'a.svg', kind: 'added', type: 'file', size: 1, state: 's' }];
  double.content = async () => bytes('<svg xmlns="http://www.w3.org/2000/svg"><g/></svg>');
  const { view, find, click } = await openChanges(double);
  await click(find('a.svg'));
  const shown = view.node.querySelector('.gk-difference');
  assert.equal(FakePreview.alive.size, 0);
  assert.match(shown.textContent, /\+ <svg/);
  await click(find('Show as picture'));
  assert.equal(shown.querySelector('.gk-pictures p').textContent, 'After: a.svg 50');
  view.dispose();
  assert.equal(FakePreview.alive.size, 0);
});

test('of many pictures the two of one change are there, and no more', async () => {
  const double = new Double();
  const name = number => `${number}.png`;
  double.answer = Array.from({ length: 500 }, (_, number) => ({
    path: name(number),
    kind: 'changed',
    type: 'file',
    size: 1,
    state: `s${number}`
  }));
  const { view, find, click } = await openChanges(double);
  assert.equal(FakePreview.alive.size, 0);
  for (const number of [0, 7, 499]) {
    await click(find(name(number)));
    assert.deepEqual(
      [...FakePreview.alive].map(it => it.node.textContent),
      [`Before: ${name(number)} 4`, `After: ${name(number)} ${bytes(`new ${MARKUP}\n`).byteLength}`]
    );
    assert.equal(view.node.querySelector('img'), null);
  }
  double.answer = [];
  await click(find('Refresh'));
  assert.equal(FakePreview.alive.size, 0);
});

test('no character that nobody sees is left in a name, and no escape can be written', () => {
  const shown = name => escapeHidden(showName(name));
  for (const code of [
    0x200b, 0x200c, 0x200d, 0x2060, 0xfeff, 0xad, 0x180e, 0x3164, 0x2800, 0x34f, 0xfe00, 0xfe0f,
    0xa0, 0x2000, 0x200a, 0x202f, 0x205f, 0x3000, 0x2065, 0xe0000, 0xe0041, 0xe007f
  ]) {
    assert.match(shown(`a${String.fromCodePoint(code)}b`), /^a\\u[0-9a-f{}]+b$/, code.toString(16));
  }
  const names = ['a ', 'a␣', 'a\\u2423', 'a\n', 'a\\n', ' a', 'a'];
  assert.equal(new Set(names.map(shown)).size, names.length);
  assert.equal(likeness('Stra\u00dfe'), likeness('STRASSE'));
  assert.equal(likeness('\u00e9'), likeness('e\u0301'));
});

test('names that look alike are told apart', async () => {
  const double = new Double();
  const state = `absent file.1.1.${'a'.repeat(64)}`;
  const name = path => ({ path, kind: 'added', type: 'file', size: 1, state });
  double.answer = ['a b', 'a  b', ' a', 'x\u200by', 'x\\u200by', 'é.py', 'e\u0301.py', 'A'].map(
    name
  );
  const { view } = await openChanges(double);
  const rows = [...view.node.querySelectorAll('tbody tr')].map(row => row.cells[1].textContent);
  assert.equal(new Set(rows).size, rows.length);
  assert.equal(rows[1], 'a␣␣b');
  assert.equal(rows[2], '␣a');
  assert.equal(rows[3], 'x\\u200by');
  assert.equal(rows[4], 'x\\\\u200by');
  assert.equal(rows.filter(row => row.includes('looks the same')).length, 2);
});

test('conflicts are applied only when the person says so', async () => {
  const { double, view, find, tick, click } = await openChanges();
  await click(tick('All changes but those that may run by themselves'));
  const force = view.node.querySelector('input[aria-label^="Also apply conflicts"]');
  assert.match(
    force.closest('label').textContent,
    /overwrite .* on disk, and apply what is not checked/
  );
  await click(force);
  await click(find('Apply selected (3)'));
  assert.equal(double.calls[0].force, true);
  assert.equal(force.checked, false); // the next apply asks again
});

test('a failure is told, and the same can be tried again', async () => {
  const double = new Double();
  double.apply = async () => {
    throw new ServerError(503, 'The sandbox is busy.');
  };
  const { view, find, tick, click } = await openChanges(double);
  await click(tick('Choose a.txt'));
  await click(find('Apply selected (1)'));
  assert.match(view.node.querySelector('[role=status]').textContent, /The sandbox is busy/);
  assert.equal(find('Apply selected (1)').disabled, false);
});

test('a difference shows markup as text, and an added file has no old side', async () => {
  const { double, view, find, click } = await openChanges();
  await click(find('a.txt'));
  const shown = view.node.querySelector('.gk-difference');
  assert.match(shown.textContent, /- old/);
  assert.ok(shown.textContent.includes(`+ new ${MARKUP}`));
  assert.equal(shown.querySelector('img'), null);
  double.calls = [];
  await click(find('<img'));
  assert.deepEqual(double.calls, [`new ${MARKUP}`]);
});

test('a file that is too large says so', async () => {
  const double = new Double();
  double.content = async () => {
    throw new ServerError(413, 'x');
  };
  const { view, find, click } = await openChanges(double);
  await click(find('a.txt'));
  assert.match(view.node.querySelector('.gk-difference').textContent, /too large/);
});

function client(status, body) {
  const requests = [];
  const send = async (path, init) => {
    requests.push({ path, body: init.body && JSON.parse(init.body) });
    return new Response(JSON.stringify(body), { status });
  };
  return { requests, client: new SandboxClient(send) };
}

test('ids and paths are encoded in addresses', async () => {
  const { requests, client: it } = client(200, {});
  await it.content('a/../b', { path: 'x&side=old#?.txt', state: 'a b' }, 'new');
  assert.equal(
    requests[0].path,
    'kernels/a%2F..%2Fb/changes/content?path=x%26side%3Dold%23%3F.txt&side=new&state=a+b'
  );
});

test('a kernel of others has no sandbox; other failures carry the server’s text', async () => {
  assert.equal(await client(404, { message: 'no' }).client.kernel('k'), null);
  await assert.rejects(client(500, { message: 'Broken.' }).client.kernel('k'), /Broken\./);
  await assert.rejects(client(502, null).client.sandboxes(), /The server answered 502\./);
});

test('a sandbox is called by its notebook, and two of one folder are told apart', () => {
  const session = (id, path) => ({ kernel: { id }, name: path, path, type: 'notebook' });
  const models = [session('k1', 'RTC:p/a.ipynb'), session('k2', `p/${MARKUP}.ipynb`)];
  const runningChanged = { connect: it => (runningChanged.call = it) };
  const sessions = { running: () => models, runningChanged };
  rememberTitles(sessions, path => path.replace('RTC:', ''));
  try {
    assert.deepEqual(titles.of('k1'), { name: 'a.ipynb', path: 'p/a.ipynb' });
    const sidebar = new Sidebar({ doctor: async () => [] }, new History(), noAction);
    const both = ['k1', 'k2', 'k3'].map(kernel_id => sandboxAnswer({ kernel_id }));
    sidebar.update({ sandboxes: both, leftovers: [] }, 0);
    const headings = [...sidebar.node.querySelectorAll('h3')].map(it => it.textContent);
    assert.deepEqual(headings, ['a.ipynb', `${MARKUP}.ipynb`, 'Python 3 (gVisor)']);
    assert.match(sidebar.node.textContent, /idle/);
    models.length = 0;
    runningChanged.call(); // what is told of a kernel that has ended names it, too
    assert.equal(nameOf(sandboxAnswer()), 'a.ipynb');
  } finally {
    titles.of = () => null;
  }
});

test('a card says first what matters, and offers to show the project', () => {
  const acted = [];
  titles.of = () => ({ name: 'a.ipynb', path: 'p/a.ipynb' });
  try {
    const project = { folder: MARKUP, shown: false };
    const died = { when: 1, reason: 'memory' };
    const unkept = { total: 2, more: false, paths: [MARKUP, 'b'] };
    const act = (action, { project: it }) => acted.push(`${action} ${it.folder}`);
    const card = new Card(sandboxAnswer({ project, last_death: died }), act, unkept);
    const names = node => [...node.querySelectorAll('dt')].map(it => it.textContent);
    const [first, rest] = card.node.querySelectorAll('dl');
    assert.deepEqual(names(first), ['Memory', 'Network', 'Folder', 'Project', 'Not kept']);
    assert.equal(rest.closest('details').open, false);
    assert.ok(names(rest).includes('Last death'));
    assert.doesNotMatch(card.node.textContent, /container_/);
    const offer = [...first.querySelectorAll('button')];
    offer[0].click();
    assert.deepEqual(acted, [`project ${MARKUP}`]);
    card.update(sandboxAnswer({ project: { ...project, shown: true } }), 1);
    assert.match(first.textContent, /is shownShow the folder alone/);
    card.update(sandboxAnswer(), 1); // a server that knows of no projects
    assert.deepEqual(names(first), ['Memory', 'Network', 'Folder']);
  } finally {
    titles.of = () => null;
  }
});

test('a list that follows the kernel keeps what is ticked, unless it has changed', async () => {
  const { double, view, tick } = await openChanges();
  tick('Choose a.txt').checked = true;
  tick('Choose c.txt').checked = true;
  double.answer = double.answer.map(it => (it.path === 'c.txt' ? { ...it, state: 's9' } : it));
  double.answer.push({ path: 'later.txt', kind: 'added', type: 'file', size: 1, state: 's5' });
  await view.follow();
  assert.match(view.node.textContent, /later\.txt/);
  assert.equal(tick('Choose a.txt').checked, true);
  assert.equal(tick('Choose c.txt').checked, false);
});

test('a list at which the person is stays as they see it, and says that it is old', async () => {
  const { double, view, tick, find, click } = await openChanges();
  tick('Choose a.txt').focus();
  const changes = double.changes.bind(double);
  double.answer = [];
  await view.follow();
  assert.match(view.node.textContent, /a\.txt/);
  document.activeElement.blur();
  double.changes = async () => {
    tick('Choose a.txt').focus(); // while the answer comes
    return changes();
  };
  await view.follow();
  assert.match(view.node.textContent, /a\.txt/);
  assert.match(view.node.querySelector('[role=status]').textContent, /changed files since/);
  double.changes = changes;
  await click(find('Refresh'));
  assert.doesNotMatch(view.node.textContent, /a\.txt/);
});

test('the rest is what needs no decision of its own, whatever is ticked', async () => {
  const double = new Double();
  const file = { kind: 'added', type: 'file', size: 1 };
  double.answer.push({ ...file, path: 'Makefile', state: 's7', runs: 'tools that build run it' });
  for (const it of double.answer) {
    it.state = `absent ${it.path}.${'a'.repeat(64)}`;
  }
  double.answer.push({ ...file, path: 'large', state: 'absent' });
  const { view, tick, find, click } = await openChanges(double);
  await click(view.node.querySelector('input[aria-label^="Also apply conflicts"]'));
  await click(tick('Choose c.txt'));
  await click(find('Apply all'));
  assert.deepEqual(
    double.calls[0].paths.map(([path]) => path),
    ['a.txt', MARKUP]
  );
  assert.equal(double.calls[0].force, false);
  assert.ok(find('Apply the rest'));
});

test('a thumbnail is a small picture that a look at its header lets pass', async () => {
  const size = (width, height) => [
    0,
    0,
    0,
    13,
    ...bytesOf('IHDR'),
    ...long(width),
    ...long(height)
  ];
  const long = it => [it >>> 24, (it >>> 16) & 255, (it >>> 8) & 255, it & 255];
  const bytesOf = text => [...new TextEncoder().encode(text)];
  const png = (...of) => [0x89, ...bytesOf('PNG\r\n\x1a\n'), ...size(...of)];
  const files = {
    'good.png': png(100, 100),
    'large.png': png(60_000, 1000),
    'moves.png': [...png(10, 10), ...bytesOf('acTL')],
    'other.png': bytesOf('<svg/>'),
    'text.txt': png(10, 10)
  };
  const asked = [];
  const read = async ({ path }) => {
    asked.push(path);
    return { bytes: Uint8Array.from(files[path]).buffer };
  };
  const thumbnails = new Thumbnails({ read }, 'k1');
  const list = Object.keys(files).map(path => ({ path, size: 9, modified: 1 }));
  const show = async () => {
    const places = list.map(file => [file, document.createElement('span')]);
    thumbnails.show(places);
    await new Promise(resolve => setTimeout(resolve, 0));
    return places.map(([, place]) => place.querySelector('img')?.src.slice(0, 22) ?? '');
  };
  const shown = ['data:image/png;base64,', '', '', '', ''];
  assert.deepEqual(await show(), shown);
  assert.deepEqual(await show(), shown);
  assert.deepEqual(asked, ['good.png', 'large.png', 'moves.png', 'other.png']); // each once
});

test('thumbnails of files that were replaced meanwhile are not read', async () => {
  const asked = [];
  const read = ({ path }) => new Promise(() => asked.push(path));
  const thumbnails = new Thumbnails({ read }, 'k1');
  for (let modified = 0; modified < 5; modified += 1) {
    const paths = ['a.png', 'b.png'];
    thumbnails.show(
      paths.map(path => [{ path, size: 9, modified }, document.createElement('span')])
    );
    await new Promise(resolve => setTimeout(resolve, 0));
  }
  assert.deepEqual(asked, ['a.png']);
});
