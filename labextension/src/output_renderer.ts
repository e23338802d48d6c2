/** ``show("report.html")`` in a cell: the file of the outputs, in its frame. */

import { PathExt } from '@jupyterlab/coreutils';
import type { IRenderMime } from '@jupyterlab/rendermime';
import type { Message } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';

import type { ArtifactClient, Place } from './artifacts.js';
import type { Trackers } from './current.js';
import { fieldsOf } from './contract.js';
import { SHOW_TYPE } from './output_parts.js';
import { Preview, type PreviewActions } from './preview.js';

export { SHOW_TYPE };

export class OutputRenderer extends Widget implements IRenderMime.IRenderer {
  private readonly preview: Preview;
  private path: string | null = null;

  constructor(
    client: ArtifactClient,
    actions: PreviewActions,
    private readonly trackers: Trackers
  ) {
    super();
    this.addClass('gk-shown-output');
    this.preview = new Preview(client, actions);
    this.node.append(this.preview.node);
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    const { path } = fieldsOf(model.data[SHOW_TYPE]);
    // A saved notebook may say anything: a path that leaves the outputs is none.
    this.path = typeof path === 'string' && !path.split('/').includes('..') ? path : null;
    if (this.isAttached) {
      await this.showFile();
    }
  }

  /** Browsers load a frame anew when its node is moved, and only here is it known of which notebook
   *  this is: so the page begins each time that it is put into the document. */
  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    void this.showFile();
  }

  protected override onBeforeDetach(message: Message): void {
    this.preview.clear();
    super.onBeforeDetach(message);
  }

  private async showFile(): Promise<void> {
    const place = this.path === null ? null : this.find(this.path);
    if (place !== null) {
      await this.preview.show(place);
    }
  }

  override dispose(): void {
    this.preview.clear();
    super.dispose();
  }

  /** The kernel's outputs; without a kernel, the folder ``outputs`` beside the notebook. */
  private find(path: string): Place | null {
    let widget: Widget | null = this.parent;
    for (; widget !== null; widget = widget.parent) {
      const inside = widget;
      const found =
        this.trackers.notebooks?.has(inside) === true ||
        this.trackers.consoles?.has(inside) === true;
      if (found) {
        const { sessionContext } = widget as Widget & {
          sessionContext: { path: string; session: { kernel: { id: string } | null } | null };
        };
        const kernel = sessionContext.session?.kernel;
        return kernel
          ? { kernel_id: kernel.id, path }
          : { path: PathExt.join(PathExt.dirname(sessionContext.path), 'outputs', path) };
      }
    }
    return null;
  }
}
