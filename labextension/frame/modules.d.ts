/** The worker of pdf.js, which runs in the frame's own thread. */
declare module 'pdfjs-dist/build/pdf.worker.mjs';
/** A style sheet as text, with all that it imports. */
declare module '*.css' {
  const text: string;
  export default text;
}
