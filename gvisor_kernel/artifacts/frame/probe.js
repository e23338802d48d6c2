// Tries what a page must not reach, in a frame of a page's kind, before there is a page: a request
// and a navigation, both to the server that JupyterLab comes from. shell.js says what became of them.
'use strict';
const target = new URL('frame/probe', document.baseURI);
// The shell counts the loads of this frame: this document's must come before it is left.
const loaded = new Promise(resolve => addEventListener('load', () => setTimeout(resolve)));
fetch(target, { mode: 'no-cors', cache: 'no-store', credentials: 'omit' }).then(
  () => true,
  () => false
).then(async request => {
  parent.postMessage({ request }, '*');
  await loaded;
  location.replace(target);
});
