/**
 * An output that is drawn in a frame, in place of JupyterLab's own document.
 *
 * ``labextension/frame/output.ts`` draws it. Nothing of an output becomes an element here.
 */

import type { IRenderMime } from '@jupyterlab/rendermime';

import type { Trackers } from './current.js';
import { fileOf, findPlace, setupsBefore } from './earlier_outputs.js';
import { FramedView, type ViewContext } from './framed_view.js';
import { librariesOf } from './libraries.js';
import { senderOf } from './origin.js';
import {
  type Bundle,
  MAX_OUTPUT,
  type Part,
  hasScripts,
  heightOf,
  isLoad,
  partsOf
} from './output_parts.js';
import { type Answered, type PageFrame, pathOf } from './page_frame.js';

/** What outputs in frames need of the extension. */
export interface OutputContext extends ViewContext {
  readonly trackers: Trackers;
}

export class OutputFrame extends FramedView implements IRenderMime.IRenderer {
  protected readonly source = '';
  private parts: readonly Part[] = [];
  /** Whether all of it is to load a library, which the outputs that use it do. */
  private isLoad = false;
  /** The kernels of all that its frame has got; null among them: of a file. */
  private readonly senders = new Set<string | null>();

  constructor(
    private readonly mimeType: string,
    protected override readonly context: OutputContext,
    override readonly refuse: (why: string) => void
  ) {
    super(context, 'output');
  }

  renderModel({ data, metadata }: IRenderMime.IMimeModel): Promise<void> {
    const bundle: Bundle = { data, metadata };
    this.isLoad = isLoad(bundle);
    this.parts = partsOf(this.mimeType, bundle);
    const isLarge = ({ data }: Part): boolean =>
      (typeof data === 'string' ? data : JSON.stringify(data ?? '')).length > MAX_OUTPUT;
    if (this.parts.some(isLarge)) {
      this.parts = [];
      this.notes.add('This output is not drawn: it has more than 64 million characters.');
    }
    if (this.frame !== null) {
      this.start(this.frame);
    } else {
      this.onAfterAttach();
    }
    return Promise.resolve();
  }

  protected override onAfterAttach(): void {
    if (this.isAttached && this.parts.length > 0 && !this.isLoad) {
      this.watch(heightOf(this.parts));
    }
  }

  protected start(frame: PageFrame): void {
    const place = findPlace(this, this.context.trackers);
    const { parts, setups, from } =
      place !== null && hasScripts(this.parts)
        ? setupsBefore(place, this.parts)
        : { parts: this.parts, setups: [], from: [] };
    for (const model of place === null ? [] : [place.own, ...from]) {
      this.senders.add(senderOf(model));
    }
    const isPrepared = setups.some(({ isLoad: loads }) => loads);
    const libraries = librariesOf(parts, isPrepared);
    frame.send({ kind: 'draw', parts, setups, libraries });
  }

  /** Scripts of an earlier output may be anybody's, and would ask in the kernel's name. */
  protected get sender(): string | null {
    const [sender = null, ...others] = this.senders;
    return others.length === 0 ? sender : null;
  }

  protected failed(message: string, place: string): void {
    if (place === 'library') {
      this.notes.add(message);
    } else {
      console.warn(`gvisor-kernel: a script of an output: ${message}`);
    }
  }

  /** A file of the outputs: of the kernel, or beside the notebook. No other is shown in an output. */
  protected override async call(
    method: unknown,
    args: Readonly<Record<string, unknown>>
  ): Promise<Answered | undefined> {
    if (method !== 'file') {
      return undefined;
    }
    const path = pathOf(String(args.path));
    const below = path.replace(/^\/?outputs\//, '');
    if (below === path || path.split('/').includes('..')) {
      throw new Error(
        `${path} is not shown: outputs show files of outputs/ alone; write it there.`
      );
    }
    const place = findPlace(this, this.context.trackers);
    if (place === null) {
      throw new Error(`${path} is not shown: it is not known of which notebook this output is.`);
    }
    const { bytes, type } = await this.context.client.read(fileOf(place.session, below));
    return { value: { bytes, type }, bytes: bytes.byteLength };
  }
}
