/** Closes the ways of a kernel, and of its files, into the page that are none of its outputs. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { OutputArea } from '@jupyterlab/outputarea';

import { refuseTrustInViewer } from './page_document.js';
import { type Asks, Questions } from './questions.js';
import { isOurs } from './specs.js';

export const doors: JupyterFrontEndPlugin<void> = {
  id: 'gvisor-kernel:doors',
  description: 'Names the sandbox that asks a question, and gives no HTML file scripts.',
  autoStart: true,
  activate: (app: JupyterFrontEnd) => {
    const { kernels, kernelspecs } = app.serviceManager;
    const questions = new Questions(name => {
      const spec = kernelspecs.specs?.kernelspecs[name];
      return spec !== undefined && !isOurs(kernelspecs.specs, name)
        ? null
        : (spec?.display_name ?? name);
    });
    questions.follow(kernels);
    questions.label(OutputArea.prototype as unknown as Asks);
    refuseTrustInViewer(app);
  }
};
