/**
 * What a file of the outputs looks like: a page, picture, film or table in a frame, with a line
 * that says whom it talks to; or a text. Only a text is shown in JupyterLab's own process.
 */

import type { ArtifactClient, Place, ReadFile } from './artifacts.js';
import { ServerError, messageOf } from './client.js';
import { decode } from './differences.js';
import { button, element, replace, setText, warning } from './dom.js';
import { formatBytes } from './format.js';
import { Notes } from './notes.js';
import { PageFrame } from './page_frame.js';
import type { Talk } from './page_network.js';

/** How a page is made of a file; of the others, the text is shown. */
export interface How {
  readonly type: string;
  /** Bundles for a page. */
  readonly scripts: readonly string[];
  readonly isText: boolean;
  /** What the person may do in it (``PageSource.use``). */
  readonly use: 'page' | 'document' | null;
}

/** Files of a picture, a sound or a film. */
const MEDIA = { type: 'picture', scripts: ['picture'], isText: false, use: 'page' } as const;
const PICTURE = { ...MEDIA, use: null };

const PAGES: readonly (readonly [RegExp, How])[] = [
  [/^html?$/, { type: 'html', use: 'page', scripts: [], isText: true }],
  [
    /^[jt]sx$/,
    { type: 'jsx', use: 'page', scripts: ['libraries', 'tailwind', 'jsx'], isText: true }
  ],
  [/^ipynb$/, { type: 'notebook', use: 'document', scripts: ['katex', 'notebook'], isText: true }],
  [
    /^(md|markdown)$/,
    { type: 'markdown', use: 'document', scripts: ['katex', 'markdown'], isText: true }
  ],
  [/^(mermaid|mmd)$/, { type: 'mermaid', use: 'document', scripts: ['mermaid'], isText: true }],
  [
    /^(v[gl](\.json)?|vega|vegalite)$/,
    { type: 'chart', use: 'page', scripts: ['vega', 'chart'], isText: true }
  ],
  [/^pdf$/, { type: 'pdf', use: 'document', scripts: ['pdf'], isText: false }],
  [
    /^(csv|parquet|tsv|xlsx)$/,
    { type: 'table', use: 'document', scripts: ['table'], isText: false }
  ],
  [/^(avif|bmp|gif|ico|jpe?g|png|svg|webp)$/, PICTURE],
  [/^(flac|m4a|mp3|mp4|og[agv]|wav|webm)$/, MEDIA]
];

const MAX_NOTES = 20;
const MAX_TEXT = 500_000;

/** How a page is made of a file, by its name: what it contains is for its page to find out. */
export function howToShow(path: string): How | null {
  const ending = (/\.(v[gl]\.json|[a-z0-9]+)$/i.exec(path)?.[1] ?? '').toLowerCase();
  return PAGES.find(([pattern]) => pattern.test(ending))?.[1] ?? null;
}

/** The line above a page that talks to a server: to whom, how much, and a button that stops it. */
export class TalkView {
  readonly node = element('div', { class: 'gk-talk', attributes: { role: 'group' } });
  private readonly text = element('span');
  /** "Stop", or "Allow again": one element, so it keeps the focus. */
  private readonly button: HTMLButtonElement;
  /** What a screen reader is told: that a page talks, and to whom, not each byte. */
  private readonly said = element('span', {
    class: 'gk-said',
    attributes: { role: 'status' }
  });

  private isStopped = false;

  constructor(stop: () => void, allow: () => void) {
    this.button = button('Stop', () => (this.isStopped ? allow : stop)());
    this.node.setAttribute('aria-label', 'Network of the page');
    this.node.append(this.text, this.button, this.said);
    this.clear();
  }

  clear(): void {
    this.node.hidden = true;
    setText(this.text, '');
    setText(this.said, '');
    this.button.hidden = false;
  }

  /** The page is over. What it has done stays to be read, and there is nothing to stop. */
  end(): void {
    this.button.hidden = true;
  }

  update(talk: Talk): void {
    this.node.hidden = false;
    this.isStopped = talk.stopped;
    setText(this.text, describeTalk(talk));
    setText(this.said, whomOf(talk));
    setText(this.button, talk.stopped ? 'Allow again' : 'Stop');
  }
}

function whomOf({ hosts, open, stopped }: Talk): string {
  const whom = hosts.join(', ');
  if (stopped) {
    return `You stopped this page; it talked to ${whom}`;
  }
  return open > 0 ? `This page talks to ${whom}` : `This page talked to ${whom}`;
}

export function describeTalk(talk: Talk): string {
  const { requests, sent, received } = talk;
  const count = `${requests} request${requests === 1 ? '' : 's'}`;
  return `${whomOf(talk)}: ${count}, ${formatBytes(sent)} sent, ${formatBytes(received)} received`;
}

export interface PreviewActions {
  confirmLink(url: string): void;
  isDark(): boolean;
}

export class Preview {
  readonly node = element('div', { class: 'gk-preview' });
  private readonly notes = new Notes('Messages of the page', MAX_NOTES);
  private readonly content = element('div', { class: 'gk-preview-content' });
  private readonly talk = new TalkView(
    () => this.frame?.network.stop(),
    () => this.frame?.network.allow()
  );
  private frame: PageFrame | null = null;
  private turn = 0;

  constructor(
    private readonly client: ArtifactClient,
    private readonly actions: PreviewActions
  ) {
    this.node.append(this.talk.node, this.notes.node, this.content);
  }

  clear(): void {
    this.turn += 1;
    this.frame?.dispose();
    this.frame = null;
    this.talk.clear();
    this.notes.clear();
    replace(this.content);
  }

  async show(place: Place): Promise<void> {
    await this.present(place.path, () => this.client.read(place));
  }

  /** Shows what was read already. Its page, if it becomes one, can ask for nothing. */
  async showBytes(name: string, bytes: ArrayBuffer): Promise<void> {
    await this.present(name, () => Promise.resolve({ bytes, type: '', ticket: '' }));
  }

  private async present(path: string, read: () => Promise<ReadFile>): Promise<void> {
    this.clear();
    const { turn } = this;
    replace(this.content, element('p', 'Reading.'));
    let nodes: readonly Node[];
    try {
      const how = howToShow(path);
      const [file, scripts] = await Promise.all([
        read(),
        Promise.all((how?.scripts ?? []).map(name => this.client.script(name)))
      ]);
      if (turn !== this.turn) {
        return; // another file was chosen meanwhile
      }
      nodes = [this.make(how, path, file, scripts, () => void this.present(path, read))];
    } catch (error) {
      if (turn !== this.turn) {
        return;
      }
      const large = error instanceof ServerError && error.status === 413;
      const why = large ? `${error.message} That is too large to be shown; download it.` : null;
      nodes = [warning(why ?? messageOf(error))];
    }
    replace(this.content, ...nodes);
  }

  private make(
    how: How | null,
    path: string,
    file: ReadFile,
    scripts: readonly string[],
    again: () => void
  ): Node {
    const name = path.split('/').at(-1) ?? path;
    if (how === null) {
      const text = decode(file.bytes);
      return text === null
        ? element('p', 'This file is no text, and no type that is shown here.')
        : makeText(name, prettify(path, text));
    }
    const isDark = this.actions.isDark();
    const shown = how.type === 'html' && isDark ? darken(file) : file;
    const { type, isText, use } = how;
    const frame = new PageFrame(
      this.client,
      { type, name, file: shown, isText, use, scripts },
      {
        error: (message, place) => this.notes.add(place === '' ? message : `${place}: ${message}`),
        link: url => this.actions.confirmLink(url),
        blocked: url =>
          this.notes.add(`Not loaded, as pages from sandboxes have no network: ${url}`),
        ended: (reason, isRefused) => {
          this.talk.end();
          this.notes.add(reason, isRefused ? undefined : again);
        },
        talk: talk => this.talk.update(talk)
      },
      isDark
    );
    this.frame = frame;
    return frame.node;
  }
}

const STYLED = /<style|<link|<script[^>]*src|style\s*=|class\s*=|bgcolor|<font|\.style\b/i;
const DARK = '<style>:where(html) { background: #111; color: #e3e3e3 }</style>';

/** A plain page has the colours of the dark theme; one with a style of its own is as it was made. */
function darken(file: ReadFile): ReadFile {
  const text = new TextDecoder().decode(file.bytes);
  return STYLED.test(text)
    ? file
    : { ...file, bytes: new TextEncoder().encode(text + DARK).buffer };
}

function makeText(name: string, text: string): Node {
  const pre = element(
    'pre',
    { attributes: { tabindex: '0', role: 'region', 'aria-label': name } },
    text.slice(0, MAX_TEXT)
  );
  return text.length <= MAX_TEXT
    ? pre
    : element('div', element('p', 'Only the beginning is shown; download the file.'), pre);
}

function prettify(path: string, text: string): string {
  if (!/\.json$/i.test(path) || text.length > MAX_TEXT) {
    return text;
  }
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  return indentJson(text, MAX_TEXT);
}

const STEP = '  ';
/** Deeper levels are not indented more: a file may have a hundred thousand. */
const MAX_INDENT = 20;
const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+/g;

/**
 * Return JSON as a person reads it, up to about ``limit`` characters: with lines and spaces between
 * its tokens, which stay what they are in the file.
 *
 * Written from its parsed value it would be another text: large numbers lose digits, and of keys that
 * are there twice one is gone.
 */
export function indentJson(text: string, limit: number): string {
  let out = '';
  let depth = 0;
  let isEmpty = false;
  const newLine = (): void => {
    out += `\n${STEP.repeat(Math.min(depth, MAX_INDENT))}`;
  };
  for (const [token] of text.matchAll(TOKEN)) {
    if (out.length > limit) {
      break;
    }
    const closes = token === '}' || token === ']';
    depth -= closes ? 1 : 0;
    // An empty list or object stays on its line.
    if (closes ? !isEmpty : isEmpty) {
      newLine();
    }
    isEmpty = token === '{' || token === '[';
    depth += isEmpty ? 1 : 0;
    out += token === ':' ? ': ' : token;
    if (token === ',') {
      newLine();
    }
  }
  return out;
}
