/**
 * Pictures that a map asks for: a frame has no network, but the kernel that has sent the map may have
 * been given a route, by which the server reads them (``src/framed_view.ts``).
 */

import type { Tools } from './renderer.js';

/** From now on a picture that gets an address is asked for, until it is said of its host that there
 *  is no route; then it is as without this, and the browser refuses it. */
export function askForTiles({ call }: Tools): void {
  const own = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, 'src');
  const without = new Set<string>();
  const set = (image: HTMLImageElement, url: string): void => own?.set?.call(image, url);
  const ask = async (image: HTMLImageElement, url: string, host: string): Promise<void> => {
    try {
      const bytes = (await call('library', { url, kind: 'tile' })) as ArrayBuffer;
      const address = URL.createObjectURL(new Blob([bytes]));
      const done = (): void => {
        URL.revokeObjectURL(address);
      };
      image.addEventListener('load', done, { once: true });
      image.addEventListener('error', done, { once: true });
      set(image, address);
    } catch {
      without.add(host);
      set(image, url);
    }
  };
  Object.defineProperty(HTMLImageElement.prototype, 'src', {
    ...own,
    set(this: HTMLImageElement, value: unknown) {
      const url = String(value);
      const { protocol, host } = URL.canParse(url) ? new URL(url) : { protocol: '', host: '' };
      if (/^https?:$/.test(protocol) && !without.has(host)) {
        void ask(this, url, host);
      } else {
        set(this, url);
      }
    }
  });
}
