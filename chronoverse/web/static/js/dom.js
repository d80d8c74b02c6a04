// Finds, makes and changes elements. Text always becomes text nodes, never markup.

import { ago } from "./format.js";

export const $ = (id) => document.getElementById(id);

/** A new element with a class and children: elements, or strings, which become text. */
export function make(name, className, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

export function button(clicked, ...children) {
  const element = make("button", "", ...children);
  element.type = "button";
  element.addEventListener("click", clicked);
  return element;
}

/** Replaces an element's children, keeping the focus. True if they have changed. */
export function fill(element, children) {
  if (children.length === element.children.length && children.every((each, i) => each === element.children[i])) return false;
  const focused = document.activeElement;
  element.replaceChildren(...children);
  if (element.contains(focused)) focused.focus({ preventScroll: true });
  return true;
}

export function link(href, ...children) {
  const element = make("a", "", ...children);
  element.href = href;
  return element;
}

/** How long ago a time was, with the exact time as a title. Empty for an invalid time. */
export function timeElement(iso) {
  const element = make("time", "", ago(iso));
  if (element.textContent) Object.assign(element, { dateTime: iso, title: new Date(iso).toLocaleString() });
  return element;
}

/** Announces `text` to screen readers, at most one text per second. Only the newest three pending texts are kept. */
export function announce(text) {
  if (text === waiting.at(-1)) return;
  waiting.push(text);
  if (waiting.length > 3) waiting.shift();
  if (!timer) readNext();
}
function readNext() {
  timer = waiting.length ? setTimeout(readNext, 1000) : 0;
  if (timer) $("said").textContent = waiting.shift();
}
const waiting = [];
let timer = 0;

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
