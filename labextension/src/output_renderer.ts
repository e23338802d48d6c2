/** ``show("report.html")`` in a cell: the file of the outputs, in its frame. */

import type { IRenderMime } from '@jupyterlab/rendermime';
import type { Message } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';

import type { ArtifactClient } from './artifacts.js';
import { fieldsOf } from './contract.js';
import type { Trackers } from './current.js';
import { fileOf, findPlace } from './earlier_outputs.js';
import { SHOW_TYPE } from './output_parts.js';
import { Preview, type PreviewActions } from './preview.js';

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
    const place = findPlace(this, this.trackers);
    if (this.path !== null && place !== null) {
      await this.preview.show(fileOf(place.session, this.path));
    }
  }

  override dispose(): void {
    this.preview.clear();
    super.dispose();
  }
}
