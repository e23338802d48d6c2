/** A drawing, as a picture: its scripts do not run. What takes long to draw keeps the frame busy. */

import { add, addDocumentStyle, register } from './renderer.js';

register<ArrayBuffer>(async (source, { name, dark, root }) => {
  addDocumentStyle(dark);
  const image = add(root, 'img');
  image.alt = name;
  image.src = URL.createObjectURL(new Blob([source], { type: 'image/svg+xml' }));
  await image.decode();
});
