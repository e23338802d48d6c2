/** The first rows of tables: csv, tsv, parquet and xlsx. */

import { unzipSync, zipSync } from 'fflate';
import { parquetMetadataAsync, parquetReadObjects } from 'hyparquet';
import { compressors } from 'hyparquet-compressors';
import Papa from 'papaparse';
import readSheets, { type Sheet } from 'read-excel-file/universal';

import { add, addDocumentStyle, register } from './renderer.js';

const MAX_ROWS = 1000;
const MAX_COLUMNS = 200;
const MAX_SHEETS = 20;
const MAX_CELL = 1000;
/** Bytes of the XML in a workbook: some 20 MB of a file. */
const MAX_XML = 250_000_000;

interface Table {
  readonly title: string;
  readonly head: readonly string[];
  readonly rows: readonly (readonly unknown[])[];
  /** How many rows there are in all; null if more, and not counted. */
  readonly count: number | null;
}

register<ArrayBuffer>(async (source, { name, dark, root }) => {
  addDocumentStyle(dark);
  const tables = await readTables(name, source);
  for (const table of tables.slice(0, MAX_SHEETS)) {
    show(table, root);
  }
  if (tables.length > MAX_SHEETS) {
    add(root, 'p', `${MAX_SHEETS} of ${tables.length} sheets`).className = 'note';
  }
});

/**
 * Reads the tables of a file, whose name says what it is.
 *
 * @throws Error for what is no such file
 */
async function readTables(name: string, source: ArrayBuffer): Promise<readonly Table[]> {
  if (/\.parquet$/i.test(name)) {
    const metadata = await parquetMetadataAsync(source);
    const count = Number(metadata.num_rows);
    const rows: Record<string, unknown>[] = await parquetReadObjects({
      file: source,
      metadata,
      compressors,
      rowStart: 0,
      rowEnd: Math.min(count, MAX_ROWS)
    });
    const head = Object.keys(rows[0] ?? {});
    return [{ title: '', head, rows: rows.map(row => head.map(key => row[key])), count }];
  }
  if (/\.xlsx$/i.test(name)) {
    const sheets = await readWorkbook(source, MAX_ROWS + 1);
    return sheets.map(({ sheet, data }) => ({
      title: sheet,
      head: (data[0] ?? []).map(format),
      rows: data.slice(1),
      count: data.length > MAX_ROWS ? null : Math.max(data.length - 1, 0)
    }));
  }
  return [readText(decode(source))];
}

/** The text in UTF-8 or UTF-16; in the encoding of older spreadsheets if it is neither. */
function decode(source: ArrayBuffer): string {
  const [first, second] = new Uint8Array(source, 0, Math.min(source.byteLength, 2));
  if (first === 0xff && second === 0xfe) {
    return new TextDecoder('utf-16le').decode(source);
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(source);
  } catch {
    return new TextDecoder('windows-1252').decode(source);
  }
}

function readText(text: string): Table {
  const { data, meta } = Papa.parse<string[]>(text, {
    preview: MAX_ROWS + 2,
    skipEmptyLines: true
  });
  const rows = data.slice(1, MAX_ROWS + 1);
  const more = meta.truncated || data.length > MAX_ROWS + 1;
  return { title: '', head: data[0] ?? [], rows, count: more ? null : rows.length };
}

/**
 * The first rows of the sheets of an .xlsx. The library would unpack a large file in a worker, which
 * the frame has not, and would read all rows. So the file is unpacked here, its sheets are cut
 * after the rows that are shown, and the library reads what is left, which is packed without
 * compression: that it unpacks without a worker.
 *
 * @throws Error for what is no workbook, or has too much in it
 */
async function readWorkbook(source: ArrayBuffer, maxRows: number): Promise<Sheet[]> {
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

function show(table: Table, root: Element): void {
  if (table.title) {
    add(root, 'h2', table.title);
  }
  const shown = Math.min(table.rows.length, MAX_ROWS);
  const columns = Math.min(table.head.length, MAX_COLUMNS);
  const first = table.count === null ? `The first ${shown}` : `${shown} of ${table.count}`;
  const rest = table.head.length > columns ? `, ${columns} of ${table.head.length} columns` : '';
  add(root, 'p', `${first} rows${rest}`).className = 'note';
  const node = add(root, 'table');
  const head = add(add(node, 'thead'), 'tr');
  table.head.slice(0, columns).forEach(title => {
    add(head, 'th', title).scope = 'col';
  });
  const body = add(node, 'tbody');
  for (const row of table.rows.slice(0, shown)) {
    const line = add(body, 'tr');
    for (const cell of row.slice(0, columns)) {
      add(line, 'td', format(cell));
    }
  }
}

function format(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return value.slice(0, MAX_CELL);
    case 'number':
    case 'boolean':
    case 'bigint':
      return value.toString();
    case 'object': {
      if (value === null) {
        return '';
      }
      const text = value instanceof Date ? formatDate(value) : JSON.stringify(value, writeLarge);
      return text.slice(0, MAX_CELL);
    }
    default:
      return '';
  }
}

/** A day without a time is kept as its midnight. */
function formatDate(date: Date): string {
  return Number.isNaN(date.getTime())
    ? 'no date'
    : date.toISOString().replace('T00:00:00.000Z', '').replace('.000Z', 'Z');
}

function writeLarge(_: string, value: unknown): unknown {
  if (typeof value !== 'bigint') {
    return value;
  }
  return Number.isSafeInteger(Number(value)) ? Number(value) : value.toString();
}
