// The time strip above the log: the output over time, the pauses that were longer than in every good run, and what is in view.

import { $, announce, make } from "./dom.js";
import { span } from "./format.js";
import { bandsOf, lineAt, marksPath, outputPath, pauseAt, pausesOf, pauseText, placeText, secondsOf, slowPath, WIDTH } from "./timeline.js";

//: Minimum duration in seconds of a job with a strip.
export const SHORT = 10;

/** `jump(number)` goes to a line. `view()` returns the numbers of the first and the last line in view. */
export function makeStrip(jump, view) {
  const [strip, slider, moment] = [$("strip"), $("at"), $("moment")];
  const part = (selector) => strip.querySelector(selector);
  const track = part(".track");
  let points = [];
  let pauses = [];
  let total = 0;
  let marks = [[], []];
  let timer = 0;
  let frame = 0;
  let later = 0;

  slider.addEventListener("pointermove", ({ offsetX }) => say(Math.max(0, Math.min(1, offsetX / slider.clientWidth)) * total));
  slider.addEventListener("pointerleave", hush);
  slider.addEventListener("focus", () => slider.matches(":focus-visible") && say(slider.valueAsNumber));
  slider.addEventListener("blur", hush);
  slider.addEventListener("input", () => goTo(slider.valueAsNumber));
  // After a click, keys go to the log.
  slider.addEventListener("click", () => $("log").focus({ focusVisible: false }));
  slider.addEventListener("keydown", ({ key }) => (key === "Enter" ? $("log").focus() : key === "Escape" && hush()));

  /** Shows a profile, or nothing if it has no strip. */
  function show({ strip: given = [], slower = [], pauses: all = [] }) {
    points = given;
    total = points.at(-1)?.[0] ?? 0;
    pauses = total ? pausesOf({ strip: points, slower, pauses: all }) : [];
    const isShown = total >= SHORT;
    strip.hidden = !isShown;
    strip.classList.toggle("empty", !isShown);
    if (!isShown) return hush();
    $("total").textContent = span(1000 * total);
    slider.max = total;
    part(".output").setAttribute("d", outputPath(points));
    part(".slow").setAttribute("d", slowPath(pauses, total));
    drawMarks();
    return moved();
  }

  /** Reserves space for the strip of a job or lines that took `ms`, so that nothing moves when the profile arrives. */
  function reserve(ms) {
    if (ms >= 1000 * SHORT) strip.hidden = false;
  }

  /** Marks the steps and the errors, five times a second at most: a live job can print an error in each line. */
  function mark(steps, errors) {
    marks = [steps, errors];
    later ||= setTimeout(drawMarks, 200);
  }

  function drawMarks() {
    later = 0;
    if (!total) return;
    const [steps, errors] = marks;
    part(".fault").setAttribute("d", marksPath(points, errors));
    const items = bandsOf(points, steps).map(({ title, ms, from, to }) => {
      const item = make("li", to - from < 6 ? "thin" : "", make("b", "", title), ms >= 0 ? ` ${span(ms)}` : "");
      Object.assign(item.style, { left: `${from}%`, width: `${to - from}%` });
      return item;
    });
    track.querySelector("ol").replaceChildren(...items);
  }

  function moved() {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      if (strip.hidden || !total) return;
      const [from, to] = view().map((number) => secondsOf(points, number));
      part(".shown").setAttribute("x", (from / total) * WIDTH);
      part(".shown").setAttribute("width", ((to - from) / total) * WIDTH);
      if (document.activeElement !== slider) setValue(from);
    });
  }

  /** Goes from a line to the next or previous pause that was slower than usual, wrapping around at the ends. */
  function step(number, direction) {
    const slow = pauses.filter(({ isSlower }) => isSlower);
    if (direction < 0) slow.reverse();
    const next = slow.find((each) => (each.number - number) * direction > 0) ?? slow[0];
    if (!next) return;
    goTo(next.from);
    announce(pauseText(next));
  }

  /** The pause within 8 pixels. */
  const pauseNear = (seconds) => pauseAt(pauses, seconds, (8 / track.clientWidth) * total);

  function textOf(seconds) {
    const pause = pauseNear(seconds);
    return pause ? pauseText(pause) : placeText(points, seconds);
  }

  function goTo(seconds) {
    setValue(seconds);
    say(seconds);
    // Touch screens cannot hover.
    if (document.activeElement !== slider) timer = setTimeout(hush, 4000);
    jump(pauseNear(seconds)?.number ?? lineAt(points, seconds));
  }

  const setValue = (seconds) => Object.assign(slider, { value: seconds, ariaValueText: textOf(seconds) });

  function say(seconds) {
    if (!total) return;
    clearTimeout(timer);
    moment.textContent = textOf(seconds);
    moment.hidden = false;
    const left = track.offsetLeft - strip.offsetLeft + (seconds / total) * track.clientWidth - moment.offsetWidth / 2;
    moment.style.left = `${Math.max(4, Math.min(strip.clientWidth - moment.offsetWidth - 4, left))}px`;
  }

  function hush() {
    clearTimeout(timer);
    moment.hidden = true;
  }

  return { show, reserve, mark, moved, step };
}
