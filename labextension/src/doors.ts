/** Closes the ways of a kernel, and of its files, into the page that are none of its outputs. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { OutputArea } from '@jupyterlab/outputarea';

import { refuseTrust } from './page_document.js';
import { type Asks, labelQuestions } from './questions.js';
import { originOfKernel } from './specs.js';

export const doors: JupyterFrontEndPlugin<void> = {
  id: 'gvisor-kernel:doors',
  description: 'Names the sandbox that asks a question, and gives no HTML file scripts.',
  autoStart: true,
  activate: (app: JupyterFrontEnd) => {
    labelQuestions(OutputArea.prototype as unknown as Asks, name => {
      const { specs } = app.serviceManager.kernelspecs;
      return originOfKernel(specs, name) === 'local'
        ? null
        : (specs?.kernelspecs[name]?.display_name ?? name);
    });
    refuseTrust(app);
  }
};
