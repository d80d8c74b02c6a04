// The ruler next to the scroll bar: marks across the whole log, and the line number while the bar is dragged.

import { $ } from "./dom.js";
import { count } from "./format.js";
import { ROW } from "./viewport.js";

export class Ruler {
  #log;
  #kinds;
  #timer = 0;
  #placeTimer = 0;

  /** `kinds` are pairs of a path's class and a function that returns the numbers to mark. */
  constructor(log, kinds, jump) {
    this.#log = log;
    this.#kinds = kinds;
    $("ruler").addEventListener("click", ({ offsetY }) => {
      const all = kinds.flatMap(([, numbers]) => numbers());
      const far = (number) => Math.abs(this.#share(number) * $("log").clientHeight - offsetY);
      const nearest = all.reduce((best, number) => (far(number) < far(best) ? number : best), all[0]);
      if (all.length && far(nearest) <= 5) jump(nearest);
    });
  }

  /** Schedules a redraw of the marks. */
  changed() {
    this.#timer ||= setTimeout(() => this.draw(), 200);
  }

  /** The relative position of a line, from 0 to 1. */
  #share(number) {
    return this.#log.rowOf(number) / Math.max(this.#log.count, $("log").clientHeight / ROW);
  }

  draw() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    $("ruler").style.right = `${$("log").offsetWidth - $("log").clientWidth}px`;
    for (const [name, numbers] of this.#kinds) {
      const marks = new Set(numbers().map((number) => Math.floor(this.#share(number) * 1000)));
      $("ruler").querySelector(`.${name}`).setAttribute("d", [...marks].map((y) => `M0 ${y}h1`).join(""));
    }
  }

  /** Briefly shows which line is at the top. */
  showPlace(number) {
    const place = $("place");
    place.textContent = `line ${count(number)} of ${count(this.#log.last)}`;
    place.hidden = false;
    place.style.top = `${Math.max(4, Math.min($("log").clientHeight - 34, this.#share(number) * $("log").clientHeight - 15))}px`;
    clearTimeout(this.#placeTimer);
    this.#placeTimer = setTimeout(() => (place.hidden = true), 1500);
  }
}
