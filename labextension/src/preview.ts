/** What a file of the outputs looks like: a page in its frame, a picture, a text, or its size. */

import type { ArtifactClient, Place, ReadFile } from './artifacts.js';
import { ServerError, messageOf } from './client.js';
import { decode } from './differences.js';
import { element, replace, setText } from './dom.js';
import { indentJson } from './json_text.js';
import { PageFrame } from './page_frame.js';
import { MOST_PIXELS, isTooLarge } from './picture_sizes.js';
import { pictureUrl } from './pictures.js';
import { TalkView } from './talk.js';

export type Kind = 'page' | 'picture' | 'sound' | 'text' | 'none';

interface How {
  readonly kind: Kind;
  readonly type: string;
  /** Bundles for a page. */
  readonly scripts: readonly string[];
  readonly isText: boolean;
}

const PAGES: Readonly<Record<string, readonly [string, readonly string[], boolean]>> = {
  csv: ['table', ['table'], false],
  htm: ['html', [], true],
  html: ['html', [], true],
  ipynb: ['notebook', ['notebook'], true],
  jsx: ['jsx', ['libraries', 'tailwind', 'jsx'], true],
  markdown: ['markdown', ['markdown'], true],
  md: ['markdown', ['markdown'], true],
  mermaid: ['mermaid', ['mermaid'], true],
  mmd: ['mermaid', ['mermaid'], true],
  parquet: ['table', ['table'], false],
  pdf: ['pdf', ['pdf'], false],
  svg: ['picture', ['picture'], false],
  tsv: ['table', ['table'], false],
  tsx: ['jsx', ['libraries', 'tailwind', 'jsx'], true],
  xlsx: ['table', ['table'], false]
};

const PICTURES: Readonly<Record<string, string>> = {
  avif: 'image/avif',
  bmp: 'image/bmp',
  gif: 'image/gif',
  ico: 'image/x-icon',
  jpeg: 'image/jpeg',
  jpg: 'image/jpeg',
  png: 'image/png',
  webp: 'image/webp'
};

const SOUNDS: Readonly<Record<string, string>> = {
  flac: 'audio/flac',
  mp3: 'audio/mpeg',
  mp4: 'video/mp4',
  ogg: 'audio/ogg',
  wav: 'audio/wav',
  webm: 'video/webm'
};

const MAX_TEXT = 500_000;

/** How a file is shown, by its name: what it contains is for its page to find out. */
export function howToShow(path: string): How {
  const ending = (/\.([a-z0-9]+)$/i.exec(path)?.[1] ?? '').toLowerCase();
  const page = PAGES[ending];
  if (page !== undefined && Object.hasOwn(PAGES, ending)) {
    const [type, scripts, isText] = page;
    return { kind: 'page', type, scripts, isText };
  }
  const [kind, type] =
    Object.hasOwn(PICTURES, ending) && PICTURES[ending] !== undefined
      ? (['picture', PICTURES[ending]] as const)
      : Object.hasOwn(SOUNDS, ending) && SOUNDS[ending] !== undefined
        ? (['sound', SOUNDS[ending]] as const)
        : (['text', 'text/plain'] as const);
  return { kind, type, scripts: [], isText: false };
}

export interface PreviewActions {
  confirmLink(url: string): void;
  isDark(): boolean;
}

export class Preview {
  readonly node = element('div', { class: 'gk-preview' });
  private readonly notes = element('ul', {
    class: 'gk-notes',
    attributes: { 'aria-live': 'polite', 'aria-label': 'Messages of the page' }
  });
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
    this.notes.hidden = true;
    this.node.append(this.talk.node, this.notes, this.content);
  }

  clear(): void {
    this.turn += 1;
    this.frame?.dispose();
    this.frame = null;
    this.talk.clear();
    replace(this.notes);
    this.notes.hidden = true;
    replace(this.content);
  }

  async show(place: Place): Promise<void> {
    this.clear();
    const { turn } = this;
    replace(this.content, element('p', {}, 'Reading.'));
    let nodes: readonly Node[];
    try {
      const how = howToShow(place.path);
      const [file, scripts] = await Promise.all([
        this.client.read(place),
        Promise.all(how.scripts.map(name => this.client.script(name)))
      ]);
      if (turn !== this.turn) {
        return; // another file was chosen meanwhile
      }
      nodes = [this.make(how, place.path, file, scripts)];
    } catch (error) {
      if (turn !== this.turn) {
        return;
      }
      const large = error instanceof ServerError && error.status === 413;
      const why = large ? `${error.message} That is too large to be shown; download it.` : null;
      nodes = [element('p', { class: 'gk-warning' }, why ?? messageOf(error))];
    }
    replace(this.content, ...nodes);
  }

  private make(how: How, path: string, file: ReadFile, scripts: readonly string[]): Node {
    const name = path.split('/').at(-1) ?? path;
    switch (how.kind) {
      case 'page':
        return this.makePage(how, name, file, scripts);
      case 'picture':
        if (isTooLarge(file.bytes)) {
          return element(
            'p',
            {},
            `This is no picture that is shown here, or has more than ${MOST_PIXELS / 1e6} million pixels; download it.`
          );
        }
        return element('img', { attributes: { src: pictureUrl(how.type, file.bytes), alt: name } });
      case 'sound': {
        const tag = how.type.startsWith('video/') ? 'video' : 'audio';
        return element(tag, {
          attributes: { src: pictureUrl(how.type, file.bytes), controls: '', 'aria-label': name }
        });
      }
      default: {
        const text = decode(file.bytes);
        return text === null
          ? element('p', {}, 'This file is no text, and no type that is shown here.')
          : makeText(name, prettify(path, text));
      }
    }
  }

  private makePage(how: How, name: string, file: ReadFile, scripts: readonly string[]): Node {
    const frame = new PageFrame(
      this.client,
      { type: how.type, name, file, isText: how.isText, scripts },
      {
        error: (message, place) => {
          this.note(place === '' ? message : `${place}: ${message}`);
        },
        link: url => {
          this.actions.confirmLink(url);
        },
        blocked: url => {
          this.note(`Not loaded, as pages from sandboxes have no network: ${url}`);
        },
        shown: () => undefined,
        ended: reason => {
          this.talk.end();
          this.note(reason);
        },
        talk: talk => {
          this.talk.update(talk);
        }
      },
      this.actions.isDark()
    );
    this.frame = frame;
    return frame.node;
  }

  /** A page may say the same thing a thousand times. */
  private note(text: string): void {
    const present = [...this.notes.children];
    if (present.length >= 20 || present.some(node => node.textContent === text)) {
      return;
    }
    this.notes.hidden = false;
    const node = element('li', { class: 'gk-warning' });
    setText(node, text);
    this.notes.append(node);
  }
}

function makeText(name: string, text: string): Node {
  const pre = element(
    'pre',
    { attributes: { tabindex: '0', role: 'region', 'aria-label': name } },
    text.slice(0, MAX_TEXT)
  );
  return text.length <= MAX_TEXT
    ? pre
    : element('div', {}, element('p', {}, 'Only the beginning is shown; download the file.'), pre);
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
