import mermaid from 'mermaid';

import { addDocumentStyle, register } from './renderer.js';

register<string>(async (source, { dark, root }) => {
  addDocumentStyle(dark);
  mermaid.initialize({
    startOnLoad: false,
    securityLevel: 'strict',
    theme: dark ? 'dark' : 'default',
    htmlLabels: false,
    suppressErrorRendering: true
  });
  const { svg } = await mermaid.render('diagram', source);
  root.innerHTML = svg;
});
