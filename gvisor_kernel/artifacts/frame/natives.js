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

const natives = freeze({
  __proto__: null,
  // Nodes
  nodeType: read(Node, 'nodeType'),
  firstChild: read(Node, 'firstChild'),
  nextSibling: read(Node, 'nextSibling'),
  parentNode: read(Node, 'parentNode'),
  appendChild: method(Node, 'appendChild'),
  insertBefore: method(Node, 'insertBefore'),
  removeChild: method(Node, 'removeChild'),
  localName: read(Element, 'localName'),
  namespace: read(Element, 'namespaceURI'),
  attributes: read(Element, 'attributes'),
  getAttribute: method(Element, 'getAttribute'),
  setAttribute: method(Element, 'setAttribute'),
  hasAttribute: method(Element, 'hasAttribute'),
  removeAttribute: method(Element, 'removeAttribute'),
  getAttributeNS: method(Element, 'getAttributeNS'),
  removeAttributeNS: method(Element, 'removeAttributeNS'),
  querySelector: method(Element, 'querySelector'),
  querySelectorAll: method(Element, 'querySelectorAll'),
  attachShadow: method(Element, 'attachShadow'),
  scrollIntoView: method(Element, 'scrollIntoView'),
  getById: method(Document, 'getElementById'),
  getByName: method(Document, 'getElementsByName'),
  elementFromPoint: method(Document, 'elementFromPoint'),
  activeElement: read(Document, 'activeElement'),
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
  listen: method(EventTarget, 'addEventListener'),
  dispatch: method(EventTarget, 'dispatchEvent'),
  type: read(Event, 'type'),
  target: read(Event, 'target'),
  cancelable: read(Event, 'cancelable'),
  path: method(Event, 'composedPath'),
  prevent: method(Event, 'preventDefault'),
  stop: method(Event, 'stopImmediatePropagation'),
  key: read(KeyboardEvent, 'key'),
  pasted: read(ClipboardEvent, 'clipboardData'),
  dropped: read(DragEvent, 'dataTransfer'),
  typesOf: read(DataTransfer, 'types'),
  data: read(MessageEvent, 'data'),
  source: read(MessageEvent, 'source'),
  postMessage: method(MessagePort, 'postMessage'),
  recordType: read(MutationRecord, 'type'),
  recordTarget: read(MutationRecord, 'target'),
  recordName: read(MutationRecord, 'attributeName'),
  addedNodes: read(MutationRecord, 'addedNodes'),
  observe: method(MutationObserver, 'observe'),
  // Values
  get: method(WeakMap, 'get'),
  set: method(WeakMap, 'set'),
  getCall: method(Map, 'get'),
  setCall: method(Map, 'set'),
  deleteCall: method(Map, 'delete'),
  then: method(Promise, 'then'),
  slice: method(String, 'slice'),
  startsWith: method(String, 'startsWith'),
  exec: method(RegExp, 'exec'),
  decode: method(TextDecoder, 'decode'),
  parse: JSON.parse,
  stringify: JSON.stringify,
  decodeURIComponent,
  evaluate: eval, // called by another name it evaluates in the global scope
  Promise,
  Error,
  TypeError,
  TextDecoder,
  Function,
  MouseEvent,
  PointerEvent
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
