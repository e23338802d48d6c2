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
  const ask = async (image: HTMLImageElement, url: string, host: string): Promise<void> => {
    let address = url;
    try {
      const picture = (await call('library', { url, kind: 'tile' })) as ArrayBuffer;
      address = URL.createObjectURL(new Blob([picture]));
    } catch {
      without.add(host);
    }
    image.addEventListener(
      'load',
      () => {
        URL.revokeObjectURL(address);
      },
      { once: true }
    );
    own?.set?.call(image, address);
  };
  Object.defineProperty(HTMLImageElement.prototype, 'src', {
    ...own,
    set(this: HTMLImageElement, value: unknown) {
      const url = String(value);
      const host = /^https?:\/\/([^/?#]+)/i.exec(url)?.[1] ?? '';
      if (host === '' || without.has(host)) {
        own?.set?.call(this, url);
      } else {
        void ask(this, url, host);
      }
    }
  });
}
