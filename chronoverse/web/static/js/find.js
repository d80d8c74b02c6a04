// The search box: what is looked for, which match is the current one, and how many there are.

import { $, say } from "./dom.js";
import { count } from "./format.js";
import { WINDOW } from "./log.js";
import { findOne, query, Scan } from "./scan.js";
import { get } from "./session.js";
import { asRead, inUnits } from "./text.js";

//: Milliseconds of no typing after which the search begins.
const TYPED_MS = 200;

const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

export class Find {
  scan = null;
  current = 0;
  #path;
  #log;
  #on;
  #what = { q: "", regex: false, stream: "" };
  #local = null;
  #timer = 0;
  #looking = false;
  #looked = new Set();
  #stop = new AbortController();

  /** `on` has `changed()` for new matches, `jump(number)` for a new current one, `top()` for where the reader is. */
  constructor(path, log, on) {
    this.#path = path;
    this.#log = log;
    this.#on = on;
    $("q").addEventListener("input", () => this.#typed());
    $("find").addEventListener("submit", (event) => event.preventDefault());
    $("q").addEventListener("keydown", (event) => this.#key(event));
    $("regex").addEventListener("click", () => {
      toggle($("regex"));
      this.#begin();
    });
    $("next").addEventListener("click", () => this.step(1));
    $("previous").addEventListener("click", () => this.step(-1));
  }

  get what() {
    return this.#what;
  }

  get active() {
    return this.#what.q !== "";
  }

  focus() {
    $("q").focus();
    $("q").select();
  }

  close() {
    $("q").value = "";
    this.#begin();
  }

  /** Looks in one stream only from now on, or in both. */
  set stream(stream) {
    this.#what = { ...this.#what, stream };
    if (this.active) this.#begin();
  }

  /** The log has grown. */
  grown() {
    this.scan?.more();
  }

  /** Lines do not say any more what they said: they are looked through again. */
  again() {
    if (!this.active) return;
    this.scan?.stop();
    this.#looked.clear();
    this.scan = new Scan(this.#path, this.#what, () => this.#log.last, () => this.#found());
    this.#found();
  }

  /** Where a line matches, in UTF-16 units. */
  marks(line) {
    if (!this.active || (this.#what.stream && line.stream !== this.#what.stream)) return [];
    if (this.#local) return asRead(line.message, this.#local);
    const places = this.scan.highlights.get(line.sequence_num);
    if (!places && line.sequence_num > this.scan.place) this.#ahead(Math.floor((line.sequence_num - 1) / WINDOW));
    return places ? inUnits(line.message, places) : [];
  }

  /** Where an expression matches is for the service to say: it is asked about a window the scan has not come to. */
  async #ahead(index) {
    const { scan } = this;
    if (this.#looking || this.#looked.has(index)) return;
    this.#looking = true;
    this.#looked.add(index);
    const range = query(this.#what, { offset: index * WINDOW, limit: WINDOW });
    try {
      const { body } = await get(`${this.#path}/logs/search?${range}`, this.#stop.signal);
      for (const line of body.logs) scan.highlights.set(line.sequence_num, line.highlights);
    } catch {
      // The scan comes there in time.
    }
    this.#looking = false;
    this.#on.changed();
  }

  #key(event) {
    if (event.key === "Enter") {
      event.preventDefault();
      if (this.#timer || $("q").value !== this.#what.q) this.#begin();
      else this.step(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape") {
      event.preventDefault();
      this.close();
      $("log").focus();
    }
  }

  #typed() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#begin(), TYPED_MS);
  }

  #begin() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#stop.abort();
    this.#stop = new AbortController();
    this.scan?.stop();
    this.scan = null;
    this.current = 0;
    this.#looked.clear();
    this.#what = { ...this.#what, q: $("q").value, regex: $("regex").ariaPressed === "true" };
    this.#local = this.active && !this.#what.regex ? new RegExp(escaped(this.#what.q), "giu") : null;
    if (this.active) {
      this.scan = new Scan(this.#path, this.#what, () => this.#log.last, () => this.#found());
      this.#directed(this.#on.top() - 1, "asc");
    }
    this.#found();
  }

  #found() {
    this.#tell();
    this.#on.changed();
  }

  /** To the next match, or the previous one; past the last it goes on from the first. */
  async step(direction) {
    if (!this.active || !this.scan) return;
    const { numbers, place, done } = this.scan;
    const from = this.current || this.#on.top();
    const at = this.scan.rowOf(from) + (direction > 0 && numbers[this.scan.rowOf(from)] === from ? 1 : 0);
    const known = direction > 0 ? numbers[at] : from <= place + 1 ? numbers[at - 1] : undefined;
    if (known !== undefined) return this.#go(known);
    if (done) return numbers.length ? this.#go(numbers.at(direction > 0 ? 0 : -1)) : undefined;
    await this.#directed(from, direction > 0 ? "asc" : "desc");
  }

  /** Asks for the nearest match; the scan may be far from there. */
  async #directed(from, order) {
    const signal = this.#stop.signal;
    try {
      const beyond = order === "asc" ? 0 : this.#log.last + 1;
      const found =
        (await findOne(this.#path, this.#what, Math.max(0, from), order, signal)) ??
        (await findOne(this.#path, this.#what, beyond, order, signal));
      if (!found || signal.aborted) return;
      this.scan?.highlights.set(found.sequence_num, found.highlights ?? []);
      this.#go(found.sequence_num);
    } catch {
      // A refused expression is told by the scan; anything else the reader tries again.
    }
  }

  #go(number) {
    this.current = number;
    this.#tell();
    this.#on.jump(number);
  }

  /** "3 of 1,240", with a "+" while there may be more; why not, where the expression is refused. */
  #tell() {
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
      return say(scan.error.message);
    }
    const all = count(scan.count) + (scan.done ? "" : "+");
    const at = scan.numbers[scan.rowOf(this.current)] === this.current ? scan.rowOf(this.current) + 1 : 0;
    const far = scan.done || !this.#log.last ? "" : ` · ${Math.floor((100 * scan.place) / this.#log.last)}%`;
    output.textContent = scan.count ? (at ? `${count(at)} of ${all}${far}` : `${all}${far}`) : scan.done ? "no match" : `…${far}`;
    if (scan.done) say(scan.count === 1 ? "1 match" : `${count(scan.count)} matches`);
  }
}

/** Presses a button, or lets it go; returns which. */
export function toggle(button, pressed = button.ariaPressed !== "true") {
  button.ariaPressed = String(pressed);
  return pressed;
}
