import { showMarkdown } from './markup.js';
import { addDocumentStyle, register } from './renderer.js';

register<string>((source, { dark, root }) => {
  addDocumentStyle(dark);
  showMarkdown(source, root);
});
