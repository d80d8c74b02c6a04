// The ruler next to the scroll bar: marks across the whole log, and the line number while the bar is dragged.

import { $ } from "./dom.js";
import { count } from "./format.js";
import { ROW } from "./viewport.js";

/** `kinds` are pairs of a path's class and a function that returns the numbers to mark. */
export function makeRuler(log, kinds, jump) {
  const [ruler, pane, place] = [$("ruler"), $("log"), $("place")];
  let [timer, placeTimer] = [0, 0];

  /** From 0 to 1. */
  const share = (number) => log.rowOf(number) / Math.max(log.count, pane.clientHeight / ROW);

  ruler.addEventListener("click", ({ offsetY }) => {
    const all = kinds.flatMap(([, numbers]) => numbers());
    const far = (number) => Math.abs(share(number) * pane.clientHeight - offsetY);
    const nearest = all.reduce((best, number) => (far(number) < far(best) ? number : best), all[0]);
    if (all.length && far(nearest) <= 5) jump(nearest);
  });

  function draw() {
    timer = 0;
    ruler.style.right = `${pane.offsetWidth - pane.clientWidth}px`;
    for (const [name, numbers] of kinds) {
      const marks = new Set(numbers().map((number) => Math.floor(share(number) * 1000)));
      ruler.querySelector(`.${name}`).setAttribute("d", [...marks].map((y) => `M0 ${y}h1`).join(""));
    }
  }

  /** Briefly shows which line is at the top. */
  function showPlace(number) {
    place.textContent = `line ${count(number)} of ${count(log.last)}`;
    place.hidden = false;
    place.style.top = `${Math.max(4, Math.min(pane.clientHeight - 34, share(number) * pane.clientHeight - 15))}px`;
    clearTimeout(placeTimer);
    placeTimer = setTimeout(() => (place.hidden = true), 1500);
  }

  return { changed: () => (timer ||= setTimeout(draw, 200)), draw, showPlace };
}
