// The search box: what it searches for, and how many matches there are.

import { $, announce } from "./dom.js";
import { count } from "./format.js";
import { Matches } from "./matches.js";
import { toQuery } from "./share.js";
import { findVisible, toUtf16Spans } from "./text.js";

//: Milliseconds without typing after which the search begins.
const TYPING_MS = 200;

const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

export class Find {
  #matches;
  #on;
  #criteria = { q: "", regex: false, stream: "" };
  #local = null;
  #timer = 0;

  /** `on` is as for `Matches`. */
  constructor(path, log, on) {
    this.#on = on;
    this.#matches = new Matches(path, log, {
      ...on,
      changed: () => this.#changed(),
      jump: (number) => {
        this.#showCount();
        on.jump(number);
      },
    });
    $("q").addEventListener("input", () => this.#typed());
    $("find").addEventListener("submit", (event) => event.preventDefault());
    $("q").addEventListener("keydown", (event) => this.#key(event));
    $("regex").addEventListener("click", () => {
      toggle($("regex"));
      this.begin();
    });
    $("next").addEventListener("click", () => this.step(1));
    $("previous").addEventListener("click", () => this.step(-1));
  }

  get scan() {
    return this.#matches.scan;
  }

  get criteria() {
    return this.#criteria;
  }

  get active() {
    return this.#criteria.q !== "";
  }

  focus() {
    $("q").focus();
    $("q").select();
  }

  close() {
    $("q").value = "";
    this.begin();
  }

  /** Searches only one stream from now on, or both. */
  set stream(stream) {
    this.#criteria = { ...this.#criteria, stream };
    if (this.active) this.begin();
  }

  /** To be called when the log has grown. */
  logGrew() {
    this.scan?.resume();
  }

  /** Searches again, because lines were redacted. */
  restart() {
    if (!this.active) return;
    this.#matches.restart();
    this.#changed();
  }

  /** The spans of a line that match, in UTF-16 units. */
  marks(line) {
    if (!this.active || (this.#criteria.stream && line.stream !== this.#criteria.stream)) return [];
    if (this.#local) return findVisible(line.message, this.#local);
    const spans = this.scan.highlights.get(line.sequence_num);
    if (!spans && line.sequence_num > this.scan.position) this.#matches.fetchAround(line.sequence_num);
    return spans ? toUtf16Spans(line.message, spans) : [];
  }

  /** Takes the search from the page's address. True if it has one. `begin` begins it. */
  fromAddress() {
    const parameters = new URLSearchParams(location.search);
    $("q").value = parameters.get("q") ?? "";
    toggle($("regex"), parameters.get("regex") === "true");
    return $("q").value !== "";
  }

  #key(event) {
    if (event.key === "Enter") {
      event.preventDefault();
      if (this.#timer || $("q").value !== this.#criteria.q) this.begin();
      else this.step(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape") {
      event.preventDefault();
      this.close();
      $("log").focus();
    }
  }

  #typed() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.begin(), TYPING_MS);
  }

  /** Searches for what is in the box, and puts it into the address. It jumps to the next match from the top, unless `jumps` is false. */
  begin({ jumps = true } = {}) {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#matches.end();
    this.#criteria = { ...this.#criteria, q: $("q").value, regex: $("regex").ariaPressed === "true" };
    const { q, regex } = this.#criteria;
    this.#local = q && !regex ? new RegExp(escaped(q), "giu") : null;
    if (q) this.#matches.begin(this.#criteria, jumps);
    toQuery({ q, regex: q && regex ? "true" : "" });
    this.#changed();
  }

  #changed() {
    this.#showCount();
    this.#on.changed();
  }

  /** Jumps to the next match, or to the previous one. */
  step(direction) {
    return this.#matches.step(direction);
  }

  /** Shows "3 of 1,240", with a "+" while there may be more; or that the expression is refused. */
  #showCount() {
    const { scan } = this;
    const output = $("count");
    $("find").classList.toggle("active", this.active);
    output.classList.toggle("bad", Boolean(scan?.error));
    if (!scan) {
      output.textContent = "";
      return;
    }
    output.title = "";
    if (scan.error?.status === 400) {
      output.textContent = "not an expression";
      output.title = scan.error.message;
      return announce(scan.error.message);
    }
    const { found, far } = this.#matches.progress;
    output.textContent = scan.count ? found + far : scan.done ? "no match" : `…${far}`;
    if (scan.done) announce(scan.count === 1 ? "1 match" : `${count(scan.count)} matches`);
  }
}

/** Sets a button to pressed or not, by default to the other state. Returns the new state. */
export function toggle(button, pressed = button.ariaPressed !== "true") {
  button.ariaPressed = String(pressed);
  return pressed;
}
