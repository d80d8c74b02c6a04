// The two things that are done to a document here: finding an element and making one. Text only ever becomes text.

export const $ = (id) => document.getElementById(id);

/** An element with a class and children: elements, or strings, which become text. */
export function make(name, className, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Tells a screen reader, at most once a second and only what is newest. */
export function say(text) {
  saying = text;
  if (timer) return;
  $("said").textContent = saying;
  timer = setTimeout(() => {
    timer = 0;
    if ($("said").textContent !== saying) say(saying);
  }, 1000);
}
let saying = "";
let timer = 0;

/** Shows or changes one line of explanation in the page's middle; null takes it away. */
export function notice(text) {
  $("notice").hidden = text === null;
  if (text !== null && $("notice").textContent !== text) $("notice").textContent = text;
}
