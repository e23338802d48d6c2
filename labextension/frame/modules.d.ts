/** The worker of pdf.js, which runs in the frame's own thread. */
declare module 'pdfjs-dist/build/pdf.worker.mjs';

/** A style sheet, as text (``build.mjs``). */
declare module '*.css' {
  const text: string;
  export default text;
}

declare module '*.png' {
  const url: string;
  export default url;
}

declare module 'katex/contrib/auto-render' {
  export default function render(element: HTMLElement, options: object): void;
}
