// What the other scripts use of the browser once the page's code may run: taken before it does.
//
// The page can replace any function of its realm, and a getter that it has replaced is handed what is
// looked at: the port to JupyterLab, or a policy. So whatever is called later is one of these, by
// `natives.name(object, …)`; no regular expression is tested, no list walked by `for … of` or spread.
const { apply } = Reflect;
const { defineProperty: define, freeze, getOwnPropertyDescriptor: describe } = Object;
const unbound = Function.prototype.bind.bind(Function.prototype.call);
const getter = (type, name) => describe(type.prototype, name).get;
const setter = (type, name) => describe(type.prototype, name).set;
const method = (type, name) => unbound(type.prototype[name]);
const read = (type, name) => unbound(getter(type, name));
const write = (type, name) => unbound(setter(type, name));

// Return the methods of these names, and what reads the properties.
function take(type, names) {
  const taken = { __proto__: null };
  for (const name of names.split(' ')) {
    const { get, value } = describe(type.prototype, name);
    taken[name] = unbound(get ?? value);
  }
  return taken;
}

const natives = freeze({
  __proto__: null,
  // Nodes
  ...take(Node, 'nodeType firstChild nextSibling parentNode appendChild insertBefore removeChild'),
  ...take(Element, 'localName attributes getAttribute setAttribute hasAttribute removeAttribute'),
  ...take(Element, 'getAttributeNS removeAttributeNS querySelector querySelectorAll'),
  ...take(Element, 'attachShadow scrollIntoView'),
  ...take(Document, 'elementFromPoint activeElement'),
  namespace: read(Element, 'namespaceURI'),
  getById: method(Document, 'getElementById'),
  getByName: method(Document, 'getElementsByName'),
  focus: freeze([HTMLElement, SVGElement, MathMLElement].map(type => method(type, 'focus'))),
  setSource: write(HTMLMediaElement, 'src'),
  setImageSource: write(HTMLImageElement, 'src'),
  setSourceSource: write(HTMLSourceElement, 'src'),
  template: read(HTMLTemplateElement, 'content'),
  countNodes: read(NodeList, 'length'),
  countAttributes: read(NamedNodeMap, 'length'),
  attributeName: read(Attr, 'name'),
  attributeValue: read(Attr, 'value'),
  // Events
  ...take(Event, 'type target cancelable'),
  ...take(KeyboardEvent, 'key'),
  ...take(MessageEvent, 'data source'),
  ...take(MessagePort, 'postMessage'),
  ...take(MutationRecord, 'addedNodes'),
  ...take(MutationObserver, 'observe'),
  listen: method(EventTarget, 'addEventListener'),
  dispatch: method(EventTarget, 'dispatchEvent'),
  path: method(Event, 'composedPath'),
  prevent: method(Event, 'preventDefault'),
  stop: method(Event, 'stopImmediatePropagation'),
  pasted: read(ClipboardEvent, 'clipboardData'),
  dropped: read(DragEvent, 'dataTransfer'),
  typesOf: read(DataTransfer, 'types'),
  recordType: read(MutationRecord, 'type'),
  recordTarget: read(MutationRecord, 'target'),
  recordName: read(MutationRecord, 'attributeName'),
  // Values
  ...take(WeakMap, 'get set'),
  ...take(Promise, 'then'),
  ...take(String, 'slice startsWith'),
  ...take(RegExp, 'exec'),
  ...take(TextDecoder, 'decode'),
  getCall: method(Map, 'get'),
  setCall: method(Map, 'set'),
  deleteCall: method(Map, 'delete'),
  parse: JSON.parse,
  stringify: JSON.stringify,
  decodeURIComponent,
  evaluate: eval, // called by another name it evaluates in the global scope
  ...{ Promise, Error, TypeError, TextDecoder, Function, MouseEvent, PointerEvent }
});
const test = (pattern, text) => natives.exec(pattern, text) !== null;
const isElement = node => {
  try {
    return natives.nodeType(node) === ELEMENT;
  } catch {
    return false; // a window, or none of this browser's objects
  }
};
const ELEMENT = 1;
const HTML = 'http://www.w3.org/1999/xhtml';
const MATHML = 'http://www.w3.org/1998/Math/MathML';
const XLINK = 'http://www.w3.org/1999/xlink';

// Give an element the focus, if it takes it.
function focusOn(element) {
  for (let place = 0; place < natives.focus.length; place++) {
    try {
      natives.focus[place](element);
    } catch {
      // it is of another kind
    }
  }
}
