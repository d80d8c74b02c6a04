// The matches of a scan, and the reader's place among them: the current, next and previous match.

import { $, announce, button } from "./dom.js";
import { count } from "./format.js";
import { WINDOW } from "./log.js";
import { accepted, findOne, query, route, makeScan } from "./scan.js";
import { get, persist } from "./session.js";

export class Matches {
  /** The scan, or null while there is no search. */
  scan = null;
  criteria;
  #path;
  #log;
  #on;
  #said = "";
  #fetching = false;
  #fetchedWindows = new Set();
  #stop = new AbortController();
  #more = button(() => (this.scan.goOn(), this.changed()), "Continue");

  /**
   * `on` has `changed()`, `jump(number)`, `top()` for the first line in view, `current()` for the last line that the
   * reader jumped to, or 0, and `intend()`. This returns a function: whether the reader has wanted nothing else since.
   * A subclass's `show()` displays the number of matches. The buttons with the ids `previous` and `next` step.
   */
  constructor(path, log, on, criteria, previous, next) {
    this.#path = path;
    this.#log = log;
    this.#on = on;
    this.criteria = { stream: "", ...criteria };
    $(previous).addEventListener("click", () => this.step(-1));
    $(next).addEventListener("click", () => this.step(1));
    Object.assign(this.#more, { className: "further", hidden: true, title: "Find more" });
    $(next).after(this.#more);
  }

  get numbers() {
    return this.scan?.numbers ?? [];
  }

  set stream(stream) {
    this.criteria = { ...this.criteria, stream };
    if (this.scan) this.look(false);
  }

  look(jumps) {
    this.#end();
    this.#begin();
    if (jumps) this.#findNearest(this.#on.top() - 1, "asc");
    this.changed();
  }

  drop() {
    this.#end();
    this.changed();
  }

  /** Starts the scan again, because lines were redacted. The current line stays. */
  restart() {
    if (!this.scan) return;
    this.#begin();
    this.changed();
  }

  #begin() {
    this.scan?.stop();
    this.#fetchedWindows.clear();
    this.scan = makeScan(this.#path, this.criteria, () => this.#log.last, () => this.changed());
  }

  #end() {
    this.#stop.abort();
    this.#stop = new AbortController();
    this.scan?.stop();
    this.scan = null;
    this.#said = "";
  }

  changed() {
    this.#more.hidden = !this.scan?.paused;
    if (this.scan?.paused) this.say(`Paused after ${count(this.scan.count)}`);
    this.show();
    this.#on.changed();
  }

  say(text) {
    if (text !== this.#said) announce(text);
    this.#said = text;
  }

  /** Requests the matches in a line's window that the scan has not reached. */
  async fetchAround(number) {
    const { scan } = this;
    const { signal } = this.#stop;
    const index = Math.floor((number - 1) / WINDOW);
    if (this.#fetching || this.#fetchedWindows.has(index)) return;
    this.#fetching = true;
    this.#fetchedWindows.add(index);
    const range = query(this.criteria, { offset: index * WINDOW, limit: WINDOW });
    // The scan reports refusals.
    const answer = await persist(() => get(`${this.#path}${route(this.criteria)}?${range}`, signal), { signal }).catch(() => null);
    for (const line of accepted(this.criteria, answer?.body.logs ?? [])) scan.highlights.set(line.sequence_num, line.highlights ?? []);
    this.#fetching = false;
    this.changed();
  }

  /** Jumps to the next or previous match, wrapping around. With `criteria.hunks`, consecutive matches are one stop. */
  async step(direction) {
    if (!this.scan) return;
    const { numbers, position, done } = this.scan;
    const from = this.#on.current() || this.#on.top() - Math.max(0, direction);
    const isInside = (at) => this.criteria.hunks && numbers[at] === numbers[at - 1] + 1;
    const start = (at) => {
      while (isInside(at)) at -= 1;
      return at;
    };
    let at = this.scan.rowOf(from);
    if (direction > 0 && numbers[at] === from) at += 1;
    if (direction > 0) while (isInside(at)) at += 1;
    const known = direction > 0 ? numbers[at] : from <= position + 1 ? numbers[start(at - 1)] : undefined;
    if (known !== undefined) return this.#on.jump(known);
    if (done) return numbers.length ? this.#on.jump(numbers[direction > 0 ? 0 : start(numbers.length - 1)]) : undefined;
    // The service finds the nearest match, which is in another hunk unless it is adjacent to the previous ones.
    let edge = from;
    const isElsewhere = ({ sequence_num: number }) => number - edge !== direction || ((edge = number), false);
    await this.#findNearest(from, direction > 0 ? "asc" : "desc", this.criteria.hunks && isElsewhere);
  }

  /** Jumps to the nearest match, which the scan may not have reached, unless the reader goes elsewhere in the meantime. */
  async #findNearest(from, order, accepts = null) {
    const signal = this.#stop.signal;
    const isWanted = this.#on.intend();
    const beyond = order === "asc" ? 0 : this.#log.last + 1;
    const criteria = accepts ? { ...this.criteria, accepts } : this.criteria;
    const nearest = async () =>
      (await findOne(this.#path, criteria, Math.max(0, from), order, signal)) ??
      (await findOne(this.#path, this.criteria, beyond, order, signal));
    // The scan reports refusals.
    const found = await persist(nearest, { signal }).catch(() => null);
    if (!found || signal.aborted || !isWanted()) return;
    this.scan?.highlights.set(found.sequence_num, found.highlights ?? []);
    this.#on.jump(found.sequence_num);
  }

  /** The number of matches; the current match, as "3 of 1,240"; and the scan's progress until it is done. */
  get progress() {
    const { scan } = this;
    const all = count(scan.count) + (scan.done ? "" : "+");
    const row = scan.rowOf(this.#on.current());
    const at = scan.numbers[row] === this.#on.current() ? row + 1 : 0;
    const share = `${Math.floor((100 * scan.position) / this.#log.last)}%`;
    const far = scan.done || !this.#log.last ? "" : ` · ${scan.paused ? "paused at " : ""}${share}`;
    return { all, found: at ? `${count(at)} of ${all}` : all, far };
  }
}
