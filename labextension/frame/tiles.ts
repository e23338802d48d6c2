/**
 * Pictures that a map asks for: a frame has no network, but the kernel that has sent the map may have
 * been given a route, by which the server reads them (``src/framed_view.ts``).
 */

import type { Tools } from './renderer.js';

/** From now on a picture that gets an address is asked for. Where there is none, it is as without
 *  this, and the browser refuses it. */
export function askForTiles({ call }: Tools): void {
  const own = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, 'src');
  const ask = async (image: HTMLImageElement, url: string): Promise<void> => {
    let address = url;
    try {
      const picture = (await call('library', { url, kind: 'tile' })) as ArrayBuffer;
      address = URL.createObjectURL(new Blob([picture]));
    } catch {
      // the extension remembers hosts without a route
    }
    image.addEventListener('load', () => URL.revokeObjectURL(address), { once: true });
    own?.set?.call(image, address);
  };
  Object.defineProperty(HTMLImageElement.prototype, 'src', {
    ...own,
    set(this: HTMLImageElement, value: unknown) {
      const url = String(value);
      if (/^https?:\/\//i.test(url)) {
        void ask(this, url);
      } else {
        own?.set?.call(this, url);
      }
    }
  });
}
