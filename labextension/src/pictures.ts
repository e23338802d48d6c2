/** Addresses of pictures that come from a sandbox. */

/**
 * An address for an image element. A person may open the picture in a tab of its own, where SVG
 * could run scripts: a ``data:`` address has no origin there, a ``blob:`` one has JupyterLab's.
 */
export function pictureUrl(type: string, bytes: ArrayBuffer): string {
  let binary = '';
  for (const byte of new Uint8Array(bytes)) {
    binary += String.fromCharCode(byte);
  }
  return `data:${type};base64,${btoa(binary)}`;
}
