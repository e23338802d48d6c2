/** The panel "Outputs": files of a kernel's outputs folder as they appear, and a preview of one. */

import type { ArtifactClient } from './artifacts.js';
import { messageOf } from './client.js';
import type { Outputs } from './contract.js';
import { button, element, replace, setText } from './dom.js';
import { formatBytes, formatSeconds } from './format.js';
import { Preview, type PreviewActions } from './preview.js';

export interface OutputsActions extends PreviewActions {
  /** Shows the file in the file browser; null where its folder is not below the server's root. */
  reveal: ((path: string) => void) | null;
}

export class OutputsView {
  readonly node = element('div', { class: 'gk-outputs' });
  private readonly summary = element('p', { attributes: { role: 'status' } });
  private readonly list = element('ul', {
    class: 'gk-list',
    attributes: { 'aria-label': 'Files' }
  });
  private readonly preview: Preview;
  private readonly heading = element('h2');
  private readonly tools = element('div', { class: 'gk-buttons' });
  private shown = '';
  private chosen = '';

  constructor(
    private readonly client: ArtifactClient,
    private readonly kernelId: string,
    private readonly actions: OutputsActions
  ) {
    this.preview = new Preview(client, actions);
    this.heading.hidden = true;
    this.tools.hidden = true;
    this.node.append(
      element('div', { class: 'gk-outputs-files' }, this.summary, this.list),
      element(
        'section',
        { class: 'gk-outputs-file', attributes: { 'aria-label': 'Preview' } },
        this.heading,
        this.tools,
        this.preview.node
      )
    );
  }

  async refresh(): Promise<void> {
    try {
      this.update(await this.client.list(this.kernelId), Date.now() / 1000);
    } catch (error) {
      setText(this.summary, messageOf(error));
      throw error; // the poll backs off
    }
  }

  /** ``now``: the time of day in seconds, as those of files. */
  update(outputs: Outputs, now: number): void {
    const { files, more } = outputs;
    setText(
      this.summary,
      files.length === 0
        ? 'There are no files. Code in the kernel writes them to outputs/.'
        : more
          ? `The newest ${files.length} files; there are more.`
          : ''
    );
    const key = JSON.stringify(files);
    if (key !== this.shown) {
      this.shown = key;
      const focused = document.activeElement?.getAttribute('data-path') ?? null;
      replace(this.list, ...files.map(file => this.makeRow(file)));
      this.markChosen();
      if (focused !== null) {
        this.list.querySelector<HTMLElement>(`[data-path="${CSS.escape(focused)}"]`)?.focus();
      }
    }
    files.forEach((file, index) => {
      const age = this.list.children[index]?.querySelector('.gk-age');
      if (age) {
        setText(age, describeAge(now - file.modified));
      }
    });
  }

  /** Shows a file: the person, or the kernel, has chosen it. */
  async show(path: string): Promise<void> {
    const place = { kernel_id: this.kernelId, path };
    this.heading.hidden = false;
    setText(this.heading, path);
    this.tools.hidden = false;
    const { reveal } = this.actions;
    const link = element(
      'a',
      {
        class: 'gk-button',
        attributes: { href: this.client.download(place), download: path.split('/').at(-1) ?? '' }
      },
      'Download'
    );
    replace(
      this.tools,
      button('Show again', () => void this.preview.show(place)),
      link,
      reveal === null ? null : button('Reveal in the file browser', () => reveal(path))
    );
    this.chosen = path;
    this.markChosen();
    await this.preview.show(place);
  }

  dispose(): void {
    this.preview.clear();
  }

  private makeRow(file: Outputs['files'][number]): HTMLElement {
    const node = button(file.path, () => void this.show(file.path));
    node.className = 'gk-path';
    node.setAttribute('data-path', file.path);
    return element(
      'li',
      { class: 'gk-output' },
      node,
      element('span', { class: 'gk-size' }, formatBytes(file.size)),
      element('span', { class: 'gk-age' })
    );
  }

  private markChosen(): void {
    for (const node of this.list.querySelectorAll('button')) {
      node.setAttribute('aria-current', String(node.getAttribute('data-path') === this.chosen));
    }
  }
}

export function describeAge(seconds: number): string {
  return seconds < 2 ? 'now' : `${formatSeconds(seconds)} ago`;
}
