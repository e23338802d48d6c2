/** The worker of pdf.js, which runs in the frame's own thread. */
declare module 'pdfjs-dist/build/pdf.worker.mjs';

/** A style sheet, as text (``build.mjs``). */
declare module '*.css' {
  const text: string;
  export default text;
}

declare module 'jquery' {
  const jquery: unknown;
  export default jquery;
}

declare module '*.png' {
  const url: string;
  export default url;
}

declare module 'leaflet' {
  export class Icon {
    static readonly Default: { readonly prototype: { readonly options: object } };
    constructor(options: object);
    readonly options: object;
  }
  export const Marker: { mergeOptions(options: object): void };
  export const CircleMarker: new (place: readonly number[], options: object) => object;
  export const FeatureGroup: new (layers?: readonly object[]) => object;
}

declare module 'katex/contrib/auto-render' {
  export default function render(element: HTMLElement, options: object): void;
}
