/** The panel "Outputs": files of a kernel's outputs folder as they appear, and a preview of one. */

import type { ArtifactClient } from './artifacts.js';
import { messageOf } from './client.js';
import type { Outputs } from './contract.js';
import { button, element, icon, iconButton, replace, setText, skeleton } from './dom.js';
import { count, formatBytes, formatSeconds } from './format.js';
import { Preview, type PreviewActions } from './preview.js';
import { Thumbnails } from './thumbnails.js';

export interface OutputsActions extends PreviewActions {
  /** Shows the file in the file browser; null where its folder is not below the server's root. */
  reveal: ((path: string) => void) | null;
  /** Draws the icon that JupyterLab has for such a file. */
  icon(path: string): HTMLElement;
}

export class OutputsView {
  readonly node = element('div', { class: 'gk-outputs' });
  private readonly summary = element('p', { attributes: { role: 'status' } });
  private readonly list = element('tbody');
  private readonly table = element(
    'table',
    { attributes: { 'aria-label': 'Files' } },
    element('thead', element('tr', ...['Name', 'Modified', 'File size'].map(makeHeading))),
    this.list
  );
  private readonly waiting = skeleton();
  private readonly preview: Preview;
  private readonly thumbnails: Thumbnails;
  private readonly heading = element('h2');
  private readonly tools = element('div', { class: 'gk-toolbar jp-Toolbar' });
  private shown = '';
  private chosen = '';

  constructor(
    private readonly client: ArtifactClient,
    private readonly kernelId: string,
    private readonly actions: OutputsActions
  ) {
    this.preview = new Preview(client, actions);
    this.thumbnails = new Thumbnails(client, kernelId);
    this.heading.hidden = true;
    this.tools.hidden = true;
    this.table.hidden = true;
    this.node.append(
      element(
        'div',
        { class: 'gk-outputs-files gk-table' },
        this.summary,
        this.waiting,
        this.table
      ),
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
      this.waiting.hidden = true;
      setText(this.summary, messageOf(error));
      throw error; // the poll backs off
    }
  }

  /** ``now``: the time of day in seconds, as those of files. */
  update(outputs: Outputs, now: number): void {
    const { files, more } = outputs;
    this.waiting.hidden = true;
    this.table.hidden = files.length === 0;
    setText(
      this.summary,
      files.length === 0
        ? 'There are no files. Code in the kernel writes them to outputs/.'
        : more
          ? `The newest ${count(files.length, 'file')}; there are more.`
          : ''
    );
    const key = JSON.stringify(files);
    if (key !== this.shown) {
      this.shown = key;
      const focused = document.activeElement?.getAttribute('data-path') ?? null;
      const marks = files.map(file => [file, this.actions.icon(file.path)] as const);
      replace(this.list, ...marks.map(([file, mark]) => this.makeRow(file, mark)));
      this.thumbnails.show(marks);
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
        class: 'gk-tool jp-ToolbarButtonComponent',
        attributes: {
          href: this.client.download(place),
          download: path.split('/').at(-1) ?? '',
          title: 'Download',
          'aria-label': 'Download'
        }
      },
      icon('download')
    );
    replace(
      this.tools,
      iconButton('refresh', 'Show again', () => void this.preview.show(place)),
      link,
      reveal === null
        ? null
        : iconButton('folder', 'Reveal in the file browser', () => reveal(path))
    );
    this.chosen = path;
    this.markChosen();
    await this.preview.show(place);
  }

  dispose(): void {
    this.preview.clear();
  }

  private makeRow(file: Outputs['files'][number], mark: HTMLElement): HTMLElement {
    const node = button(file.path, () => void this.show(file.path), { class: 'gk-path' });
    node.setAttribute('data-path', file.path);
    return element(
      'tr',
      { class: 'gk-output' },
      element('td', mark, node),
      element('td', { class: 'gk-age' }),
      element('td', { class: 'gk-size' }, formatBytes(file.size))
    );
  }

  private markChosen(): void {
    for (const node of this.list.querySelectorAll('button')) {
      const isChosen = node.getAttribute('data-path') === this.chosen;
      node.setAttribute('aria-current', String(isChosen));
      node.closest('tr')?.classList.toggle('gk-chosen', isChosen);
    }
  }
}

function makeHeading(name: string): HTMLElement {
  return element('th', { attributes: { scope: 'col' } }, name);
}

export function describeAge(seconds: number): string {
  return seconds < 2 ? 'now' : `${formatSeconds(seconds)} ago`;
}
