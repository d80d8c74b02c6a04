// The time strip above the log: the output over time, the pauses that were longer than in every good run, and what is in view.

import { $, announce, make } from "./dom.js";
import { span } from "./format.js";
import { bandsOf, lineAt, marksPath, outputPath, pauseAt, pausesOf, pauseText, placeText, secondsOf, slowPath, WIDTH } from "./timeline.js";

//: Minimum duration in seconds of a job with a strip, unless something was slower.
const SHORT = 10;

export class Strip {
  #points = [];
  #pauses = [];
  #total = 0;
  #jump;
  #view;
  #marks = [[], []];
  #timer = 0;
  #frame = 0;

  /** `jump(number)` goes to a line. `view()` returns the numbers of the first and the last line in view. */
  constructor(jump, view) {
    this.#jump = jump;
    this.#view = view;
    const slider = $("at");
    slider.addEventListener("pointermove", ({ offsetX }) => this.#say(Math.max(0, Math.min(1, offsetX / slider.clientWidth)) * this.#total));
    slider.addEventListener("pointerleave", () => this.#hush());
    slider.addEventListener("focus", () => slider.matches(":focus-visible") && this.#say(slider.valueAsNumber));
    slider.addEventListener("blur", () => this.#hush());
    slider.addEventListener("input", () => this.#goTo(slider.valueAsNumber));
    // After a click, keys go to the log.
    slider.addEventListener("click", () => $("log").focus({ focusVisible: false }));
    slider.addEventListener("keydown", ({ key }) => (key === "Enter" ? $("log").focus() : key === "Escape" && this.#hush()));
  }

  /** Shows a profile, or nothing if it has no strip. */
  show({ strip = [], slower = [], pauses = [] }) {
    this.#points = strip;
    this.#total = strip.at(-1)?.[0] ?? 0;
    this.#pauses = this.#total ? pausesOf({ strip, slower, pauses }) : [];
    const isShown = this.#total >= SHORT || (this.#total > 0 && slower.length > 0);
    $("strip").hidden = !isShown;
    $("strip").classList.toggle("empty", !isShown);
    if (!isShown) return this.#hush();
    $("total").textContent = span(1000 * this.#total);
    $("at").max = this.#total;
    $("strip").querySelector(".output").setAttribute("d", outputPath(strip));
    $("strip").querySelector(".slow").setAttribute("d", slowPath(this.#pauses, this.#total));
    this.mark(...this.#marks);
    return this.moved();
  }

  /** Reserves space for the strip of a job that took `ms`, so that nothing moves when its profile arrives. */
  reserve(ms) {
    if ($("strip").classList.contains("empty")) $("strip").hidden = !(ms >= 1000 * SHORT);
  }

  /** Shows the steps as bands, and the lines with these numbers as errors. */
  mark(steps, errors) {
    this.#marks = [steps, errors];
    if (!this.#total) return;
    $("strip").querySelector(".fault").setAttribute("d", marksPath(this.#points, errors));
    const items = bandsOf(this.#points, steps).map(({ title, ms, from, to }) => {
      const item = make("li", to - from < 6 ? "thin" : "", make("b", "", title), ms >= 0 ? ` ${span(ms)}` : "");
      Object.assign(item.style, { left: `${from}%`, width: `${to - from}%` });
      return item;
    });
    this.#track.querySelector("ol").replaceChildren(...items);
  }

  get #track() {
    return $("strip").querySelector(".track");
  }

  /** To be called when other lines have come into view. */
  moved() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if ($("strip").hidden || !this.#total) return;
      const [from, to] = this.#view().map((number) => secondsOf(this.#points, number));
      const shown = $("strip").querySelector(".shown");
      shown.setAttribute("x", (from / this.#total) * WIDTH);
      shown.setAttribute("width", ((to - from) / this.#total) * WIDTH);
      if (document.activeElement !== $("at")) this.#setValue(from);
    });
  }

  /** Goes from a line to the next or previous pause that was slower than usual, wrapping around at the ends. */
  step(number, direction) {
    const slow = this.#pauses.filter(({ isSlower }) => isSlower);
    if (direction < 0) slow.reverse();
    const next = slow.find((each) => (each.number - number) * direction > 0) ?? slow[0];
    if (!next) return;
    this.#goTo(next.from);
    announce(pauseText(next));
  }

  /** The pause within 8 pixels. */
  #pauseAt(seconds) {
    return pauseAt(this.#pauses, seconds, (8 / this.#track.clientWidth) * this.#total);
  }

  #goTo(seconds) {
    this.#setValue(seconds);
    this.#say(seconds);
    // Touch screens cannot hover.
    if (document.activeElement !== $("at")) this.#timer = setTimeout(() => this.#hush(), 4000);
    this.#jump(this.#pauseAt(seconds)?.number ?? lineAt(this.#points, seconds));
  }

  #setValue(seconds) {
    $("at").value = seconds;
    $("at").ariaValueText = this.#textOf(seconds);
  }

  #textOf(seconds) {
    const pause = this.#pauseAt(seconds);
    return pause ? pauseText(pause) : placeText(this.#points, seconds);
  }

  /** Describes a place, below the strip. */
  #say(seconds) {
    if (!this.#total) return;
    clearTimeout(this.#timer);
    const [moment, width, track] = [$("moment"), $("strip").clientWidth, this.#track];
    moment.textContent = this.#textOf(seconds);
    moment.hidden = false;
    const left = track.offsetLeft - $("strip").offsetLeft + (seconds / this.#total) * track.clientWidth - moment.offsetWidth / 2;
    moment.style.left = `${Math.max(4, Math.min(width - moment.offsetWidth - 4, left))}px`;
  }

  #hush() {
    clearTimeout(this.#timer);
    $("moment").hidden = true;
  }
}
