/** PDF: its pages as pictures. Scripts in the file are not run; nothing is loaded from elsewhere. */

import * as pdf from 'pdfjs-dist';
import * as worker from 'pdfjs-dist/build/pdf.worker.mjs';

import { add, addDocumentStyle, register } from './renderer.js';

const MAX_PAGES = 500;
const MAX_PIXELS = 16_000_000;

register<ArrayBuffer>(async (source, { dark, root, reportError }) => {
  addDocumentStyle(dark);
  // In this thread: a worker would be another realm.
  (globalThis as { pdfjsWorker?: unknown }).pdfjsWorker = worker;
  const document = await pdf.getDocument({
    data: new Uint8Array(source),
    enableXfa: false,
    isEvalSupported: false,
    useWasm: false,
    useWorkerFetch: false,
    disableFontFace: false
  }).promise;
  const count = Math.min(document.numPages, MAX_PAGES);
  add(root, 'p', `${document.numPages} page${document.numPages === 1 ? '' : 's'}`).className =
    'note';
  const shown = new IntersectionObserver(
    entries => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting) {
          shown.unobserve(target);
          draw(Number((target as HTMLElement).dataset.page)).catch((error: unknown) =>
            reportError(error instanceof Error ? error.message : String(error))
          );
        }
      }
    },
    { rootMargin: '500px' }
  );
  const canvases: HTMLCanvasElement[] = [];
  const first = (await document.getPage(1)).getViewport({ scale: 1 });
  for (let number = 1; number <= count; number++) {
    const canvas = add(root, 'canvas');
    canvas.dataset.page = String(number);
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', `Page ${number}`);
    canvas.style.cssText = `display: block; margin: 0 auto 12px; background: white;
      width: ${first.width}px; height: ${first.height}px`;
    canvases.push(canvas);
    shown.observe(canvas);
  }

  async function draw(number: number): Promise<void> {
    const canvas = canvases[number - 1];
    if (canvas === undefined) {
      return;
    }
    const page = await document.getPage(number);
    const size = page.getViewport({ scale: 1 });
    const scale = Math.min(2, Math.sqrt(MAX_PIXELS / (size.width * size.height)));
    const viewport = page.getViewport({ scale });
    canvas.width = viewport.width;
    canvas.height = viewport.height;
    canvas.style.width = `${size.width}px`;
    canvas.style.height = 'auto';
    await page.render({ canvas, viewport }).promise;
    canvas.dataset.drawn = 'true';
  }
});
