/** Notebooks, to be read: cells and outputs as they were saved. Nothing of them runs. */

import { showHtml, showMarkdown } from './markup.js';
import { add, addDocumentStyle, addStyle, register } from './renderer.js';
import { addTerminal } from './terminal.js';

const MAX_CELLS = 2000;
/** Outputs that are shown of a cell: JupyterLab shows fewer. */
const MAX_OUTPUTS = 200;
const PICTURES = ['image/png', 'image/jpeg', 'image/gif', 'image/webp'];

register<string>((source, { dark, root }) => {
  addDocumentStyle(dark);
  addStyle('.prompt { opacity: 0.7; font: 12px monospace } .cell { margin-bottom: 12px }');
  const cells = list(fields(JSON.parse(source)).cells);
  for (const cell of cells.slice(0, MAX_CELLS).map(fields)) {
    const node = add(root, 'div');
    node.className = 'cell';
    if (cell.cell_type === 'markdown') {
      showMarkdown(text(cell.source), node);
    } else {
      const count = cell.execution_count;
      add(node, 'div', `[${typeof count === 'number' ? count : ' '}]`).className = 'prompt';
      add(node, 'pre', text(cell.source));
      const outputs = list(cell.outputs);
      for (const output of outputs.slice(0, MAX_OUTPUTS).map(fields)) {
        showOutput(output, node);
      }
      if (outputs.length > MAX_OUTPUTS) {
        add(node, 'p', `${MAX_OUTPUTS} of ${outputs.length} outputs`).className = 'note';
      }
    }
  }
  if (cells.length > MAX_CELLS) {
    add(root, 'p', `${MAX_CELLS} of ${cells.length} cells`).className = 'note';
  }
});

function showOutput(output: Readonly<Record<string, unknown>>, node: Element): void {
  const data = fields(output.data);
  const picture = PICTURES.find(type => type in data);
  if (picture !== undefined) {
    const image = add(node, 'img');
    image.src = `data:${picture};base64,${text(data[picture])}`;
    image.alt = text(data['text/plain']);
  } else if ('text/html' in data) {
    showHtml(text(data['text/html']), node);
  } else if ('text/markdown' in data) {
    showMarkdown(text(data['text/markdown']), node);
  } else {
    const trace = list(output.traceback).map(text).join('\n');
    addTerminal(node, text(output.text) || trace || text(data['text/plain']));
  }
}

function fields(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}

function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

function text(value: unknown): string {
  if (Array.isArray(value)) {
    return value.map(text).join('');
  }
  return typeof value === 'string' ? value : '';
}
