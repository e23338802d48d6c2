/** Raises the wall as soon as the page loads, and tells it which kernels need none. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { showErrorMessage } from '@jupyterlab/apputils';
import { PageConfig } from '@jupyterlab/coreutils';
import { type IRenderMime, IRenderMimeRegistry } from '@jupyterlab/rendermime';

import { followKernels } from './origin.js';
import { page } from './plan.js';
import { originOfKernel } from './specs.js';
import { raiseWall } from './wall.js';

/** Before any plugin: a restored notebook makes its models when it likes. Where the extension is
 *  disabled, its code is loaded all the same, and no plugin of it would draw what is behind. */
const stands = PageConfig.Extension.isDisabled('gvisor-kernel:wall') || raiseWall();

/**
 * Sanitized HTML may have buttons that run any command of JupyterLab, with any arguments; those in
 * the text of a stranger's notebook, too. One that covers the notebook needs one click.
 */
function refuseCommands(sanitizer: IRenderMime.ISanitizer): void {
  const it = sanitizer as { setAllowCommandLinker?: (allow: boolean) => void };
  it.setAllowCommandLinker?.(false);
  it.setAllowCommandLinker = () => undefined; // the settings would allow it again
}

/** JupyterLab makes a link of ``javascript://`` in a text, too. */
function refuseScriptLinks(event: MouseEvent): void {
  const link = event.composedPath().find(it => it instanceof HTMLAnchorElement);
  if (link?.protocol === 'javascript:' && link.closest('.jp-RenderedText') !== null) {
    event.preventDefault();
  }
}

export const wall: JupyterFrontEndPlugin<void> = {
  id: 'gvisor-kernel:wall',
  description: 'Keeps what sandboxes print, and saved outputs, from acting in the page.',
  autoStart: true,
  optional: [IRenderMimeRegistry],
  activate: (app: JupyterFrontEnd, rendermime: IRenderMimeRegistry | null) => {
    const { kernels, kernelspecs } = app.serviceManager;
    followKernels(kernels, name => originOfKernel(kernelspecs.specs, name));
    if (rendermime !== null) {
      page.isShown = type => rendermime.mimeTypes.includes(type);
      refuseCommands(rendermime.sanitizer); // of all of the page
    }
    for (const kind of ['click', 'auxclick'] as const) {
      document.addEventListener(kind, refuseScriptLinks, true);
    }
    if (!stands) {
      void app.restored.then(() =>
        showErrorMessage(
          'Outputs of sandboxes are not kept from this page',
          `The extension gvisor-kernel does not know the outputs of ${app.name} ${app.version}: what a sandbox prints may act as you here. Open no stranger's notebook, and update gvisor-kernel.`
        )
      );
    }
  }
};
