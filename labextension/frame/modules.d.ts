/** The worker of pdf.js, which runs in the frame's own thread. */
declare module 'pdfjs-dist/build/pdf.worker.mjs';
