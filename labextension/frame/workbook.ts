/**
 * The first rows of the sheets of an .xlsx. The library would unpack a large file in a worker, which
 * the frame has not, and would read all rows. So the file is unpacked here, its sheets are cut
 * after the rows that are shown, and the library reads what is left, which is packed without
 * compression: that it unpacks without a worker.
 */

import { unzipSync, zipSync } from 'fflate';
import readSheets, { type Sheet } from 'read-excel-file/universal';

/** Bytes of the XML in a workbook: some 20 MB of a file. */
const MAX_XML = 250_000_000;

/** @throws Error for what is no workbook, or has too much in it */
export async function readWorkbook(source: ArrayBuffer, maxRows: number): Promise<Sheet[]> {
  let size = 0;
  const parts = unzipSync(new Uint8Array(source), {
    filter: ({ name, originalSize }) => {
      const isRead = /\.(xml|rels)$/i.test(name);
      size += isRead ? originalSize : 0;
      if (size > MAX_XML) {
        throw new Error(`This workbook has more than ${MAX_XML / 1e6} MB of XML; download it.`);
      }
      return isRead;
    }
  });
  for (const [name, bytes] of Object.entries(parts)) {
    if (/\/worksheets\/[^/]+\.xml$/i.test(name)) {
      parts[name] = cutRows(bytes, maxRows);
    }
  }
  return await readSheets(zipSync(parts, { level: 0 }).slice().buffer);
}

/** Return a sheet that ends after so many of its rows. */
function cutRows(bytes: Uint8Array<ArrayBuffer>, maxRows: number): Uint8Array<ArrayBuffer> {
  const xml = new TextDecoder().decode(bytes);
  const row = /<(\w{1,100}:)?row[\s>/]/g;
  for (let count = 0; ; count++) {
    const found = row.exec(xml);
    if (found === null) {
      return bytes;
    }
    if (count === maxRows) {
      const space = found[1] ?? '';
      const end = `</${space}sheetData></${space}worksheet>`;
      return new TextEncoder().encode(xml.slice(0, found.index) + end);
    }
  }
}
