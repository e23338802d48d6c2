/**
 * An output that is drawn in a frame, in place of JupyterLab's own document.
 *
 * ``labextension/frame/output.ts`` draws it. Nothing of an output becomes an element here.
 */

import type { IRenderMime } from '@jupyterlab/rendermime';

import type { ReadFile } from './artifacts.js';
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

  constructor(
    private readonly mimeType: string,
    protected override readonly context: OutputContext,
    protected override readonly refuse: (why: string) => void
  ) {
    super(context, 'output');
  }

  renderModel({ data, metadata }: IRenderMime.IMimeModel): Promise<void> {
    const bundle: Bundle = { data, metadata };
    this.isLoad = isLoad(bundle);
    this.parts = partsOf(this.mimeType, bundle);
    if (sizeOf(this.parts) > MAX_OUTPUT) {
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
    const place = hasScripts(this.parts) ? findPlace(this, this.context.trackers) : null;
    const { parts, setups } =
      place === null ? { parts: this.parts, setups: [] } : setupsBefore(place, this.parts);
    const isPrepared = setups.some(({ isLoad: loads }) => loads);
    const libraries = librariesOf(parts, isPrepared);
    frame.send({ kind: 'draw', parts, setups, libraries });
  }

  protected get sender(): string | null {
    const place = findPlace(this, this.context.trackers);
    return place && senderOf(place.own);
  }

  protected failed(message: string, place: string): void {
    if (place === 'library') {
      this.notes.add(message);
    } else {
      console.warn(`gvisor-kernel: a script of an output: ${message}`);
    }
  }

  protected override async call(
    method: unknown,
    args: Readonly<Record<string, unknown>>
  ): Promise<Answered | undefined> {
    if (method !== 'file') {
      return undefined;
    }
    const { bytes, type } = await this.readFile(pathOf(String(args.path)));
    return { value: { bytes, type }, bytes: bytes.byteLength };
  }

  /** A file of the outputs: of the kernel, or beside the notebook. No other is shown in an output. */
  private async readFile(path: string): Promise<ReadFile> {
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
    return await this.context.client.read(fileOf(place.session, below));
  }
}

function sizeOf(parts: readonly Part[]): number {
  return parts.reduce(
    (sum, { data }) =>
      sum + (typeof data === 'string' ? data.length : JSON.stringify(data ?? null).length),
    0
  );
}
