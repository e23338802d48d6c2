/**
 * What the server answers: types made of its description, ``openapi.json``, before each build. The
 * server is of the same release and bounds what sandboxes put into its answers, so nothing is checked
 * here again; but texts may be anybody's, and are shown as text, never as markup.
 */

import type { paths } from '../lib/openapi.js';

type Answer<Route> = Route extends {
  responses: { 200: { content: { 'application/json': infer Body } } };
}
  ? Body
  : never;

export type Sandboxes = Answer<paths['/sandboxes']['get']>;
export type Sandbox = Sandboxes['sandboxes'][number];
export type Leftover = Sandboxes['leftovers'][number];
export type Mount = Sandbox['mounts'][number];
export type Lines = Answer<paths['/kernels/{kernel_id}/log']['get']>;
/** Files that are gone with a sandbox, or would be. ``more``: there are more than were counted. */
export type Unkept = Answer<paths['/kernels/{kernel_id}/unkept']['get']>;
export type Changes = Answer<paths['/kernels/{kernel_id}/changes']['get']>;
export type Change = Changes['changes'][number];
export type Applied = Answer<paths['/kernels/{kernel_id}/changes/apply']['post']>;
export type Undone = Answer<paths['/kernels/{kernel_id}/changes/undo']['post']>;
export type Outputs = Answer<paths['/outputs']['get']>;
export type Trust = Answer<paths['/trust']['get']>;
export type Kernelspecs = Answer<paths['/kernelspecs']['get']>;
export type Kernelspec = Kernelspecs['kernelspecs'][number];
export type Findings = Answer<paths['/doctor']['post']>;

export type Checkpoints = Answer<paths['/kernels/{kernel_id}/checkpoints']['get']>;
export type Checkpoint = Checkpoints['checkpoints'][number];
/** What was applied from a kernel and can be undone. */
export type Undoable = Checkpoints['applied'][number];
/** The files of outputs that are not as they were at the checkpoint, and what was undone. */
export type Rewound = Answer<paths['/kernels/{kernel_id}/rewind']['post']>;
/** The name under which a state was saved. */
export type Saved = Answer<paths['/kernels/{kernel_id}/checkpoints']['post']>;

/** What a sandbox that has ended took with it, as the server's event has it. */
export type Lost = Unkept & Pick<Sandbox, 'kernel_id' | 'kernel_name'>;

/** Returns the fields of what a page or a notebook says. */
export function fieldsOf(value: unknown): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new Error('This is no object.');
  }
  return value as Readonly<Record<string, unknown>>;
}
