// Beside the scroll bar: a ruler of the whole log with marks, and the line's number while the bar is dragged.

import { $ } from "./dom.js";
import { count } from "./format.js";
import { ROW } from "./viewport.js";

//: Milliseconds between two drawings while marks are added.
const DRAW_MS = 200;
//: Milliseconds after the last large move until the number goes away.
const PLACE_MS = 1500;
//: Pixels of a mark's height, and around a click in which a mark is looked for.
const MARK = 2;
const NEAR = 5;

export class Ruler {
  #log;
  #kinds;
  #timer = 0;
  #placeTimer = 0;

  /** `kinds` are pairs of a colour, as a custom property of the style sheet, and a function that gives the numbers to mark. */
  constructor(log, kinds, jump) {
    this.#log = log;
    this.#kinds = kinds;
    new ResizeObserver(() => this.draw()).observe($("log"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    $("ruler").addEventListener("click", ({ offsetY }) => {
      const all = kinds.flatMap(([, numbers]) => numbers());
      const far = (number) => Math.abs(this.#y(number) - offsetY);
      const nearest = all.reduce((best, number) => (far(number) < far(best) ? number : best), all[0]);
      if (all.length && far(nearest) <= NEAR) jump(nearest);
    });
  }

  /** Draws the marks soon. */
  changed() {
    this.#timer ||= setTimeout(() => this.draw(), DRAW_MS);
  }

  #y(number) {
    const height = $("log").clientHeight;
    return (this.#log.rowOf(number) / Math.max(this.#log.count, height / ROW)) * height;
  }

  draw() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const [log, canvas] = [$("log"), $("ruler")];
    const all = this.#kinds.map(([colour, numbers]) => [colour, numbers()]);
    canvas.hidden = all.every(([, numbers]) => !numbers.length);
    if (canvas.hidden) return;
    canvas.style.right = `${log.offsetWidth - log.clientWidth}px`;
    canvas.height = log.clientHeight;
    canvas.width = canvas.clientWidth;
    const context = canvas.getContext("2d");
    for (const [colour, numbers] of all) {
      canvas.style.color = `var(${colour})`;
      context.fillStyle = getComputedStyle(canvas).color;
      let drawn = -1;
      for (const number of numbers) {
        const y = Math.min(Math.floor(this.#y(number)), canvas.height - MARK);
        if (y !== drawn) context.fillRect(0, y, canvas.width, MARK);
        drawn = y;
      }
    }
  }

  /** Shows for a moment which line is at the top. */
  showPlace(number) {
    const place = $("place");
    place.textContent = `line ${count(number)} of ${count(this.#log.last)}`;
    place.hidden = false;
    place.style.top = `${Math.max(4, Math.min($("log").clientHeight - 34, this.#y(number) - 15))}px`;
    clearTimeout(this.#placeTimer);
    this.#placeTimer = setTimeout(() => (place.hidden = true), PLACE_MS);
  }
}
