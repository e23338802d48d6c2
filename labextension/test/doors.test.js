import assert from 'node:assert/strict';
import test from 'node:test';

import { labelQuestions } from '../lib/questions.js';
import { MARKUP, openPage } from './page.js';

openPage();

const SANDBOX = 'gvisor-python';

/** An area that shows a question as JupyterLab does. */
function open(nameOf = name => (name === SANDBOX ? 'Python 3 (gVisor)' : null)) {
  class Area {
    node = document.createElement('div');
    onInputRequest({ content }) {
      const item = document.createElement('div');
      const input = document.createElement('input');
      input.className = 'jp-Stdin-input';
      item.append(content.prompt, input);
      this.node.append(item);
    }
  }
  labelQuestions(Area.prototype, nameOf);
  const area = new Area();
  return {
    area,
    ask(name, password = false, future = { _kernel: { name } }) {
      area.onInputRequest({ content: { prompt: 'Name:', password } }, future);
      return area.node.lastElementChild;
    }
  };
}

test('a question of a sandbox has its name, before the text that is its own', () => {
  const item = open().ask(SANDBOX);
  assert.equal(item.firstElementChild.textContent, 'Python 3 (gVisor) asks, from its sandbox.');
  const input = item.querySelector('input');
  assert.equal(input.getAttribute('aria-describedby'), item.firstElementChild.id);
});

test('a password is never asked for without a warning', () => {
  assert.match(open().ask(SANDBOX, true).textContent, /Type no password that it must not know/);
});

test('each question has a label of its own', () => {
  const { area, ask } = open();
  ask(SANDBOX);
  ask(SANDBOX);
  const ids = [...area.node.querySelectorAll('.gk-question')].map(it => it.id);
  assert.equal(new Set(ids).size, 2);
});

test('a kernel without a sandbox asks as before', () => {
  assert.equal(open().ask('python3').querySelector('.gk-question'), null);
});

test('a question of which nobody knows the kernel is not taken for JupyterLab’s', () => {
  assert.match(open().ask(SANDBOX, false, {}).textContent, /^A kernel asks/);
});

test('a name is text', () => {
  const item = open(() => MARKUP).ask(SANDBOX);
  assert.equal(item.querySelector('img'), null);
});
