// The search box: what it searches for, the current match, and how many matches there are.

import { $, announce } from "./dom.js";
import { count } from "./format.js";
import { WINDOW } from "./log.js";
import { findOne, query, Scan } from "./scan.js";
import { get } from "./session.js";
import { findVisible, toUtf16Spans } from "./text.js";

//: Milliseconds without typing after which the search begins.
const TYPING_MS = 200;

const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

export class Find {
  scan = null;
  current = 0;
  #path;
  #log;
  #on;
  #criteria = { q: "", regex: false, stream: "" };
  #local = null;
  #timer = 0;
  #fetching = false;
  #fetchedWindows = new Set();
  #stop = new AbortController();

  /** `on` has `changed()` for new matches, `jump(number)` for a new current match, and `top()`, the first line in view. */
  constructor(path, log, on) {
    this.#path = path;
    this.#log = log;
    this.#on = on;
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
    this.scan?.stop();
    this.#fetchedWindows.clear();
    this.scan = new Scan(this.#path, this.#criteria, () => this.#log.last, () => this.#changed());
    this.#changed();
  }

  /** The spans of a line that match, in UTF-16 units. */
  marks(line) {
    if (!this.active || (this.#criteria.stream && line.stream !== this.#criteria.stream)) return [];
    if (this.#local) return findVisible(line.message, this.#local);
    const spans = this.scan.highlights.get(line.sequence_num);
    if (!spans && line.sequence_num > this.scan.position) this.#fetchWindow(Math.floor((line.sequence_num - 1) / WINDOW));
    return spans ? toUtf16Spans(line.message, spans) : [];
  }

  /** Asks the service which spans match in a window that the scan has not reached. Only it can evaluate expressions. */
  async #fetchWindow(index) {
    const { scan } = this;
    if (this.#fetching || this.#fetchedWindows.has(index)) return;
    this.#fetching = true;
    this.#fetchedWindows.add(index);
    const range = query(this.#criteria, { offset: index * WINDOW, limit: WINDOW });
    try {
      const { body } = await get(`${this.#path}/logs/search?${range}`, this.#stop.signal);
      for (const line of body.logs) scan.highlights.set(line.sequence_num, line.highlights);
    } catch {
      // The scan will reach the window later.
    }
    this.#fetching = false;
    this.#on.changed();
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
    this.#stop.abort();
    this.#stop = new AbortController();
    this.scan?.stop();
    this.scan = null;
    this.current = 0;
    this.#fetchedWindows.clear();
    this.#criteria = { ...this.#criteria, q: $("q").value, regex: $("regex").ariaPressed === "true" };
    this.#local = this.active && !this.#criteria.regex ? new RegExp(escaped(this.#criteria.q), "giu") : null;
    if (this.active) {
      this.scan = new Scan(this.#path, this.#criteria, () => this.#log.last, () => this.#changed());
      if (jumps) this.#findNearest(this.#on.top() - 1, "asc");
    }
    const { q, regex } = this.#criteria;
    const search = q ? `?${query({ q, regex }, {})}` : "";
    if (location.search !== search) history.replaceState(history.state, "", location.pathname + search + location.hash);
    this.#changed();
  }

  #changed() {
    this.#showCount();
    this.#on.changed();
  }

  /** Jumps to the next match, or to the previous one. After the last it goes on from the first. */
  async step(direction) {
    if (!this.active || !this.scan) return;
    const { numbers, position, done } = this.scan;
    const from = this.current || this.#on.top();
    const at = this.scan.rowOf(from) + (direction > 0 && numbers[this.scan.rowOf(from)] === from ? 1 : 0);
    const known = direction > 0 ? numbers[at] : from <= position + 1 ? numbers[at - 1] : undefined;
    if (known !== undefined) return this.#jumpTo(known);
    if (done) return numbers.length ? this.#jumpTo(numbers.at(direction > 0 ? 0 : -1)) : undefined;
    await this.#findNearest(from, direction > 0 ? "asc" : "desc");
  }

  /** Asks the service for the nearest match, which the scan may not have reached. */
  async #findNearest(from, order) {
    const signal = this.#stop.signal;
    try {
      const beyond = order === "asc" ? 0 : this.#log.last + 1;
      const found =
        (await findOne(this.#path, this.#criteria, Math.max(0, from), order, signal)) ??
        (await findOne(this.#path, this.#criteria, beyond, order, signal));
      if (!found || signal.aborted) return;
      this.scan?.highlights.set(found.sequence_num, found.highlights ?? []);
      this.#jumpTo(found.sequence_num);
    } catch {
      // The scan reports an expression that is refused. After other errors the reader may try again.
    }
  }

  #jumpTo(number) {
    this.current = number;
    this.#showCount();
    this.#on.jump(number);
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
    const all = count(scan.count) + (scan.done ? "" : "+");
    const at = scan.numbers[scan.rowOf(this.current)] === this.current ? scan.rowOf(this.current) + 1 : 0;
    const far = scan.done || !this.#log.last ? "" : ` · ${Math.floor((100 * scan.position) / this.#log.last)}%`;
    output.textContent = scan.count ? (at ? `${count(at)} of ${all}${far}` : `${all}${far}`) : scan.done ? "no match" : `…${far}`;
    if (scan.done) announce(scan.count === 1 ? "1 match" : `${count(scan.count)} matches`);
  }
}

/** Sets a button to pressed or not, by default to the other state. Returns the new state. */
export function toggle(button, pressed = button.ariaPressed !== "true") {
  button.ariaPressed = String(pressed);
  return pressed;
}
