// A minimal browser with only what the page's modules use, for testing their logic in Node.js. Import before them.

import { ok } from "node:assert/strict";

class Classes extends Set {
  contains = this.has;

  toggle(name, isOn = !this.has(name)) {
    return isOn ? this.add(name) : this.delete(name);
  }
}

class Element extends EventTarget {
  constructor(name) {
    super();
    this.name = name;
    this.hidden = true;
    this.dataset = {};
    this.style = { setProperty() {} };
    this.classList = new Classes();
    this.children = [];
  }

  /** Always returns the same element for a selector. Nothing has the focus. */
  querySelector(selector) {
    if (selector.includes(":focus")) return null;
    this.parts ??= new Map();
    if (!this.parts.has(selector)) this.parts.set(selector, new Element(selector));
    return this.parts.get(selector);
  }

  isEqualNode({ className, textContent }) {
    return this.className === className && this.textContent === textContent;
  }

  querySelectorAll = () => [];
  setAttribute(name, value) {
    this[name] = value;
  }

  after() {}
  click() {
    this.dispatchEvent(new Event("click"));
  }

  focus() {}
  select() {}
  showModal() {}
  contains = () => false;

  append(...children) {
    this.children.push(...children);
  }

  replaceChildren(...children) {
    this.children = children;
  }

  insertBefore(child, before) {
    child.remove();
    this.children.splice(before ? this.children.indexOf(before) : this.children.length, 0, child);
    child.parent = this;
  }

  remove() {
    if (this.parent) this.parent.children = this.parent.children.filter((each) => each !== this);
  }

  get nextSibling() {
    return this.parent.children[this.parent.children.indexOf(this) + 1];
  }

  get textContent() {
    return this.children.map((each) => each.textContent ?? each).join("");
  }

  set textContent(text) {
    this.children = [text];
  }

  get firstChild() {
    return this.children[0];
  }

  get childNodes() {
    return this.children;
  }

  get parentElement() {
    return (this.parent ??= new Element("div"));
  }

  /** The links inside the element. */
  get links() {
    return this.children.flatMap((each) => (each.name === "a" ? [each] : (each.links ?? [])));
  }
}

const elements = new Map();
const stored = new Map();

globalThis.document = {
  documentElement: Object.assign(new Element("html"), {
    dataset: { exits: JSON.stringify({ 127: "Command not found", 137: "Killed, most likely out of memory" }) },
  }),
  body: new Element("body"),
  hidden: false,
  addEventListener() {},
  removeEventListener() {},
  querySelectorAll: () => [],
  querySelector: (selector) => document.getElementById(selector),
  createElement: (name) => new Element(name),
  createElementNS: (_, name) => new Element(name),
  createTextNode: (text) => text,
  getElementById(id) {
    if (!elements.has(id)) elements.set(id, new Element("div"));
    return elements.get(id);
  },
};
globalThis.location = new URL("http://127.0.0.1/ui/workflows/w/jobs/j");
globalThis.sessionStorage = {
  getItem: (key) => stored.get(key) ?? null,
  setItem: (key, value) => stored.set(key, value),
  removeItem: (key) => stored.delete(key),
};
globalThis.localStorage = globalThis.sessionStorage;
globalThis.history = { state: null, replaceState: (_, __, address) => (location.href = new URL(address, location).href) };
globalThis.ResizeObserver = class {
  observe() {}
};
// Accepts addresses relative to the page, as in browsers.
globalThis.Request = class extends Request {
  constructor(address, options) {
    super(new URL(address, location), options);
  }
};
// Node.js's own keeps the process alive.
globalThis.BroadcastChannel = class {
  postMessage() {}
};

export const events = new EventTarget();
globalThis.addEventListener = events.addEventListener.bind(events);
export const $ = (id) => document.getElementById(id);
/** Replaces the page's element with this id with a new one, without listeners. */
export const renew = (id) => elements.delete(id);

export async function until(isSo) {
  for (let tries = 0; !isSo(); tries += 1) {
    ok(tries < 2000, String(isSo));
    await new Promise((done) => setTimeout(done, 5));
  }
}
