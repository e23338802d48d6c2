// Tries what a page must not reach, in a frame of a page's kind, before there is a page: a request
// and a navigation, both to the server that JupyterLab comes from. shell.js says what became of them.
'use strict';
const target = new URL('frame/probe', document.baseURI);
fetch(target, { mode: 'no-cors', cache: 'no-store', credentials: 'omit' }).then(
  () => true,
  () => false
).then(request => {
  parent.postMessage({ request }, '*');
  location.replace(target);
});
