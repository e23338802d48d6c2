/**
 * Files that a sandbox may have made, as documents of JupyterLab: in the frame of pages, whoever
 * opens them. No file says where it comes from; it may have been copied out of the outputs.
 */

import type { ILayoutRestorer, JupyterFrontEnd } from '@jupyterlab/application';
import { WidgetTracker } from '@jupyterlab/apputils';
import { ABCWidgetFactory, type DocumentRegistry, DocumentWidget } from '@jupyterlab/docregistry';
import type { Contents } from '@jupyterlab/services';
import type { IDisposable } from '@lumino/disposable';
import { Widget } from '@lumino/widgets';

import { setText } from './dom.js';
import type { Preview } from './preview.js';
import { shieldIcon } from './widgets.js';

export const PAGE_FACTORY = 'Page Without Network';
/** Types of files that JupyterLab would interpret, or decode, in its own page or the browser's viewer.
 *  Vega and Mermaid load what they name with the person's rights, and from the network. */
const TYPES = [
  ...['html', 'svg', 'png', 'gif', 'jpeg', 'bmp', 'ico', 'webp'],
  ...['vega3', 'vega4', 'vega5', 'vega-lite1', 'vega-lite2', 'vega-lite3', 'vega-lite4'],
  ...['vega-lite5', 'mermaid', 'PDF']
];
/** Viewers of JupyterLab for them: none is opened, also when a person chooses it. They load what a
 *  file names, run its scripts as the person's if it is "trusted", or decode it in the page. */
const VIEWERS = /^(html viewer|image|vega|mermaid)/i;

/** Where a document is below the server's root; null if it is elsewhere. */
export function findPath(contents: Contents.IManager, path: string): string | null {
  return ['', 'RTC'].includes(contents.driveName(path)) ? contents.localPath(path) : null;
}

class PageContent extends Widget {
  private readonly onFileChanged = (_: unknown, { newValue }: Contents.IChangedArgs): void => {
    if (newValue?.path === this.context.path) {
      this.load();
    }
  };

  constructor(
    private readonly preview: Preview,
    private readonly contents: Contents.IManager,
    private readonly context: DocumentRegistry.Context
  ) {
    super();
    this.addClass('gk-panel');
    this.node.append(preview.node);
    this.load();
    contents.fileChanged.connect(this.onFileChanged);
  }

  override dispose(): void {
    this.contents.fileChanged.disconnect(this.onFileChanged);
    this.preview.clear();
    super.dispose();
  }

  private load(): void {
    const path = findPath(this.contents, this.context.path);
    if (path === null) {
      setText(this.node, 'This file is not on the Jupyter server, so it is not shown as a page.');
    } else {
      void this.preview.show({ path });
    }
  }
}

class PageFactory extends ABCWidgetFactory<DocumentWidget> {
  constructor(
    private readonly makePreview: () => Preview,
    private readonly contents: Contents.IManager
  ) {
    super({
      name: PAGE_FACTORY,
      label: PAGE_FACTORY,
      modelName: 'base64',
      fileTypes: TYPES,
      defaultFor: TYPES,
      readOnly: true
    });
  }

  protected override createNewWidget(context: DocumentRegistry.Context): DocumentWidget {
    const content = new PageContent(this.makePreview(), this.contents, context);
    const widget = new DocumentWidget({ content, context });
    widget.title.icon = shieldIcon;
    return widget;
  }
}

/** Opens these files in frames, unless a person chooses an editor. */
export function openInFrames(
  app: JupyterFrontEnd,
  restorer: ILayoutRestorer | null,
  makePreview: () => Preview
): void {
  const { docRegistry } = app;
  const factory = new PageFactory(makePreview, app.serviceManager.contents);
  const add = (): IDisposable =>
    docRegistry.addWidgetFactory(factory as unknown as DocumentRegistry.WidgetFactory);
  const tracker = new WidgetTracker<DocumentWidget>({ namespace: 'gvisor-kernel-page' });
  factory.widgetCreated.connect((_, widget) => {
    widget.context.pathChanged.connect(() => void tracker.save(widget));
    void tracker.add(widget);
  });
  void restorer?.restore(tracker, {
    command: 'docmanager:open',
    args: widget => ({ path: widget.context.path, factory: PAGE_FACTORY }),
    name: widget => widget.context.path
  });
  const find = docRegistry.getWidgetFactory.bind(docRegistry);
  docRegistry.getWidgetFactory = name => find(VIEWERS.test(name) ? PAGE_FACTORY : name);
  let added = add();
  docRegistry.changed.connect((_, { type, name, change }) => {
    // Others claim these types, too; whoever comes last is the default.
    if (type === 'widgetFactory' && change === 'added' && name !== PAGE_FACTORY.toLowerCase()) {
      added.dispose();
      added = add();
    }
  });
}
