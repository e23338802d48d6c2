/** Notebooks, to be read: cells and outputs as they were saved. Nothing of them runs. */

import { textOf } from '../src/output_parts.js';
import { type Fields, recordOf } from '../src/widget_store.js';
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
  const cells = list(recordOf(JSON.parse(source)).cells);
  for (const cell of cells.slice(0, MAX_CELLS).map(recordOf)) {
    const node = add(root, 'div');
    node.className = 'cell';
    if (cell.cell_type === 'markdown') {
      showMarkdown(textOf(cell.source), node);
    } else {
      const count = cell.execution_count;
      add(node, 'div', `[${typeof count === 'number' ? count : ' '}]`).className = 'prompt';
      add(node, 'pre', textOf(cell.source));
      const outputs = list(cell.outputs);
      for (const output of outputs.slice(0, MAX_OUTPUTS).map(recordOf)) {
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

function showOutput(output: Fields, node: Element): void {
  const data = recordOf(output.data);
  const picture = PICTURES.find(type => type in data);
  if (picture !== undefined) {
    const image = add(node, 'img');
    image.src = `data:${picture};base64,${textOf(data[picture])}`;
    image.alt = textOf(data['text/plain']);
  } else if ('text/html' in data) {
    showHtml(textOf(data['text/html']), node);
  } else if ('text/markdown' in data) {
    showMarkdown(textOf(data['text/markdown']), node);
  } else {
    const trace = list(output.traceback).map(textOf).join('\n');
    addTerminal(node, textOf(output.text) || trace || textOf(data['text/plain']));
  }
}

function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}
