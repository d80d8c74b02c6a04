// Finds, makes and changes elements. Text always becomes text nodes, never markup.

import { ago } from "./format.js";

export const $ = (id) => document.getElementById(id);

/** A new element with a class, or with properties and `data`, and children: elements, or strings, which become text. */
export function make(name, properties = "", ...children) {
  const { data, ...others } = typeof properties === "string" ? { className: properties } : properties;
  const element = Object.assign(document.createElement(name), others);
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
}

export function button(clicked, ...children) {
  const element = make("button", { type: "button" }, ...children);
  element.addEventListener("click", clicked);
  return element;
}

export function opener(box, properties, ...children) {
  box.popover = "auto";
  return make("button", { type: "button", popoverTargetElement: box, ...properties }, ...children);
}

/** Replaces an element's children, keeping the focus. True if they have changed. */
export function fill(element, children) {
  if (children.length === element.children.length && children.every((each, i) => each === element.children[i])) return false;
  const focused = document.activeElement;
  element.replaceChildren(...children);
  if (element.contains(focused)) focused.focus({ preventScroll: true });
  return true;
}

export const link = (href, ...children) => make("a", { href }, ...children);

/** How long ago a time was, with the exact time as a title. Empty for an invalid time. */
export function timeElement(iso) {
  const text = ago(iso);
  return make("time", text ? { dateTime: iso, title: new Date(iso).toLocaleString() } : "", text);
}

let waiting = [];
let timer = 0;

/** Announces `text` to screen readers, at most one text per second. Only the newest three pending texts are kept. */
export function announce(text) {
  if (text !== waiting.at(-1)) waiting = [...waiting.slice(-2), text];
  if (!timer) readNext();
}

function readNext() {
  timer = waiting.length ? setTimeout(readNext, 1000) : 0;
  if (timer) $("said").textContent = waiting.shift();
}

/** Shows one line of explanation, a text or an element, in the middle of the page. Null hides it. */
export function notice(text) {
  $("notice").hidden = text === null;
  if (text !== null && $("notice").textContent !== (text.textContent ?? text)) $("notice").replaceChildren(text);
}

/** Sets the pressed state of a button, by default to the opposite. Returns the new state. */
export function toggle(button, pressed = button.ariaPressed !== "true") {
  button.ariaPressed = String(pressed);
  return pressed;
}
