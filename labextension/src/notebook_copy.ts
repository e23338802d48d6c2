/** A copy of an open notebook as it is on the screen, beside its file. */

import type { DocumentRegistry } from '@jupyterlab/docregistry';
import { PathExt } from '@jupyterlab/coreutils';
import { type Contents, Drive, ServerConnection } from '@jupyterlab/services';

/** ``path``: as it is opened. ``local``: below the server's root. */
export interface Copy {
  readonly path: string;
  readonly local: string;
  remove(): Promise<void>;
}

const MOST_COPIES = 100;

/**
 * Makes NAME-branch.ipynb, or NAME-branch-2.ipynb and so on: no file is written over.
 *
 * @throws Error if the server cannot write it; there is no copy then
 */
export async function copyBeside(
  contents: Contents.IManager,
  context: Pick<DocumentRegistry.Context, 'path' | 'model'>
): Promise<Copy> {
  const drive = contents.driveName(context.path);
  const source = contents.localPath(context.path);
  const content = context.model.toJSON();
  const stem = PathExt.basename(source, '.ipynb');
  // Not by ``contents``, which tells the file browser: it would list the folder meanwhile, and the
  // server answers 404 for a folder of which a file is renamed as it is listed.
  const disk = new Drive({ serverSettings: contents.serverSettings });
  const made = await disk.newUntitled({ path: PathExt.dirname(source), type: 'notebook' });
  let local = made.path;
  const remove = async (): Promise<void> => {
    await contents.delete(local).catch(() => undefined); // it was removed by somebody else
  };
  try {
    local = await rename(disk, local, stem);
    await contents.save(local, { type: 'notebook', format: 'json', content });
  } catch (error) {
    await remove();
    throw error;
  }
  return { path: drive === '' ? local : `${drive}:${local}`, local, remove };
}

async function rename(disk: Contents.IDrive, path: string, stem: string): Promise<string> {
  for (let number = 1; ; number += 1) {
    const name = `${stem}-branch${number === 1 ? '' : `-${number}`}.ipynb`;
    try {
      return (await disk.rename(path, PathExt.join(PathExt.dirname(path), name))).path;
    } catch (error) {
      // 409: there is a file of this name
      const { status } = error instanceof ServerConnection.ResponseError ? error.response : {};
      if (status !== 409 || number >= MOST_COPIES) {
        throw error;
      }
    }
  }
}
