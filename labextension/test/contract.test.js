/** What these tests take for answers of the server are such, as its description says. */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';

import Ajv from 'ajv/dist/2020.js';

import { changeAnswer, sandboxAnswer } from './page.js';

const document = new URL('../../gvisor_kernel/server/openapi.json', import.meta.url);
const { paths, components } = JSON.parse(readFileSync(document, 'utf8'));

function validatorOf(route, method = 'get') {
  const { schema } = paths[route][method].responses[200].content['application/json'];
  return new Ajv({ strict: false, allErrors: true }).compile({ ...schema, components });
}

test('answers in these tests have the form of the contract', () => {
  const changes = [changeAnswer({ path: 'a' }), changeAnswer({ path: 'b', conflict: 'both' })];
  for (const [route, answer] of [
    ['/kernels/{kernel_id}', sandboxAnswer()],
    ['/sandboxes', { sandboxes: [sandboxAnswer({ state: 'ended' })], leftovers: [] }],
    ['/kernels/{kernel_id}/changes', { changes, more: false, total: 2 }]
  ]) {
    const validate = validatorOf(route);
    assert.ok(validate(answer), JSON.stringify(validate.errors));
  }
  assert.equal(validatorOf('/kernels/{kernel_id}')(sandboxAnswer({ state: 'dancing' })), false);
});
