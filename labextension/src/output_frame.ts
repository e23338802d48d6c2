/**
 * An output that is drawn in a frame, in place of JupyterLab's own document.
 *
 * ``labextension/frame/output.ts`` draws it. Nothing of an output becomes an element here.
 */

import type { IRenderMime } from '@jupyterlab/rendermime';
import type { Message } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';

import type { ArtifactClient, ReadFile } from './artifacts.js';
import { messageOf } from './client.js';
import type { Trackers } from './current.js';
import { element, replace, setText } from './dom.js';
import { fileOf, findPlace, setupsBefore } from './earlier_outputs.js';
import { FramePool, type Framed } from './frame_pool.js';
import { frameTheme } from './frame_theme.js';
import { giveLibraries, librariesOf } from './libraries.js';
import { type Bundle, MAX_OUTPUT, type Part, hasScripts, isLoad, partsOf } from './output_parts.js';
import { PageFrame, pathOf } from './page_frame.js';

/** What outputs in frames need of the extension. */
export interface OutputContext {
  readonly client: ArtifactClient;
  readonly trackers: Trackers;
  readonly confirmLink: (url: string) => void;
  readonly isDark: () => boolean;
  /** Calls back when the theme has changed; the function that is returned ends that. */
  onThemeChange(callback: () => void): () => void;
}

const FIRST_HEIGHT = 60;
const MAX_NOTES = 5;

/** Of all outputs of the page, and of widgets. */
export const pool = new FramePool();

export class OutputFrame extends Widget implements IRenderMime.IRenderer, Framed {
  private readonly content = element('div', { class: 'gk-output-frame' });
  private readonly notes = element('ul', {
    class: 'gk-notes',
    attributes: { 'aria-live': 'polite', 'aria-label': 'Messages of the output' }
  });
  private model: IRenderMime.IMimeModel | null = null;
  private parts: readonly Part[] = [];
  private frame: PageFrame | null = null;
  private turn = 0;
  private readonly stopListening: () => void;

  constructor(
    private readonly mimeType: string,
    private readonly context: OutputContext,
    private readonly refused: (why: string) => void
  ) {
    super();
    this.addClass('gk-framed-output');
    this.notes.hidden = true;
    this.node.append(this.content, this.notes);
    this.stopListening = context.onThemeChange(() => {
      this.frame?.send(frameTheme(context.isDark()));
    });
  }

  renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this.model = model;
    this.parts = partsOf(this.mimeType, bundleOf(model));
    if (sizeOf(this.parts) > MAX_OUTPUT) {
      this.parts = [];
      this.note('This output is not drawn: it has more than 64 million characters.');
    }
    if (this.frame !== null) {
      this.draw(this.frame);
    } else if (this.isAttached) {
      this.watch();
    }
    return Promise.resolve();
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    this.watch();
  }

  /** Browsers load a frame anew when its node is moved. */
  protected override onBeforeDetach(message: Message): void {
    pool.leave(this);
    super.onBeforeDetach(message);
  }

  override dispose(): void {
    this.stopListening();
    pool.leave(this);
    super.dispose();
  }

  private watch(): void {
    if (this.model !== null && this.parts.length > 0 && !isLoad(bundleOf(this.model))) {
      if (this.content.style.height === '') {
        this.setHeight(FIRST_HEIGHT);
      }
      pool.watch(this);
    }
  }

  /** The pool has a place for its frame. */
  begin(): void {
    const turn = ++this.turn;
    this.context.client.script('output').then(
      script => {
        if (turn === this.turn) {
          this.make(script);
        }
      },
      (error: unknown) => {
        this.note(messageOf(error));
      }
    );
  }

  /** Its frame is given to others: what the person has done in it is lost, its height stays. */
  end(): void {
    this.turn += 1;
    this.frame?.dispose();
    this.frame = null;
    replace(this.content);
  }

  private make(script: string): void {
    const { client, confirmLink, isDark } = this.context;
    replace(this.notes);
    this.notes.hidden = true;
    const give = giveLibraries(client);
    const frame = new PageFrame(
      client,
      {
        type: 'output',
        name: 'output',
        file: { bytes: new ArrayBuffer(0), type: this.mimeType, ticket: '' },
        isText: true,
        scripts: [script],
        answer: async (method, args) => {
          if (method === 'library') {
            return await give(args);
          }
          if (method === 'file') {
            const { bytes, type } = await this.readFile(pathOf(String(args.path)));
            return { value: { bytes, type }, bytes: bytes.byteLength };
          }
          throw new Error('Outputs keep nothing, and have no network.');
        }
      },
      {
        error: (message, place) => {
          if (place === 'library') {
            this.note(message);
          } else {
            console.warn(`gvisor-kernel: a script of an output: ${message}`);
          }
        },
        link: confirmLink,
        blocked: url => {
          const host = URL.canParse(url) ? new URL(url).host : url;
          this.note(`Not loaded, as outputs have no network: ${host}`);
        },
        shown: () => undefined,
        ended: (reason, isRefused) => {
          if (isRefused) {
            this.refused(reason);
          } else {
            this.note(reason);
          }
        },
        size: height => {
          this.setHeight(height);
        },
        talk: () => undefined,
        renewed: () => {
          start();
        }
      },
      isDark()
    );
    const start = (): void => {
      frame.send(frameTheme(isDark()));
      this.draw(frame);
    };
    this.frame = frame;
    replace(this.content, frame.node);
    start();
  }

  private draw(frame: PageFrame): void {
    const place = hasScripts(this.parts) ? findPlace(this, this.context.trackers) : null;
    const { parts, setups } =
      place === null ? { parts: this.parts, setups: [] } : setupsBefore(place, this.parts);
    const isPrepared = setups.some(({ isLoad: loads }) => loads);
    const libraries = librariesOf(parts, isPrepared);
    frame.send({ kind: 'draw', parts, setups, libraries });
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

  private setHeight(height: number): void {
    this.content.style.height = `${height}px`;
  }

  /** An output may say the same thing a thousand times. */
  private note(text: string): void {
    const present = [...this.notes.children];
    if (present.length < MAX_NOTES && !present.some(node => node.textContent === text)) {
      this.notes.hidden = false;
      const node = element('li', { class: 'gk-warning' });
      setText(node, text);
      this.notes.append(node);
    }
  }
}

function bundleOf(model: IRenderMime.IMimeModel): Bundle {
  return { data: model.data, metadata: model.metadata };
}

function sizeOf(parts: readonly Part[]): number {
  return parts.reduce(
    (sum, { data }) =>
      sum + (typeof data === 'string' ? data.length : JSON.stringify(data ?? null).length),
    0
  );
}
