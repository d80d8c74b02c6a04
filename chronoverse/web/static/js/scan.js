// Finds all lines that match, are new, or belong to one stream, by paging through the service's results.

import { againstLabels } from "./addresses.js";
import { countBefore } from "./ranges.js";
import { get, persist, Refused } from "./session.js";
import { truncate } from "./text.js";

const PAGE = 1000;
//: Matches after which a scan pauses until the reader continues it or scrolls near the last match.
const PAUSE_AFTER = 20_000;

/** The parameters of a request for lines by `criteria`: `{q, regex, stream}` or `{new: true, stream}`; each optional. */
export function query(criteria, more) {
  const parameters = { ...more };
  if (criteria.q) parameters.q = criteria.q;
  if (criteria.q && criteria.regex) parameters.regex = "true";
  if (criteria.stream) parameters.stream = criteria.stream;
  // The run to compare with, if the address names one; otherwise the labels of the runs.
  const against = criteria.new && new URLSearchParams(location.search).get("against");
  if (against) parameters.against = against;
  return new URLSearchParams([...Object.entries(parameters), ...(criteria.new && !against ? againstLabels() : [])]);
}

export const route = (criteria) => (criteria.new ? "/logs/new" : criteria.q ? "/logs/search" : "/logs");

/** The returned lines that the optional `criteria.accepts(line)`. */
export const accepted = (criteria, lines) => (criteria.accepts ? lines.filter((line) => criteria.accepts(line)) : lines);

/** The first match strictly after `number` in that order. Null if there is none. */
export async function findOne(path, criteria, number, order, signal) {
  let position = number;
  for (let limit = 1; ; ) {
    const { body, position: reached } = await get(`${path}${route(criteria)}?${query(criteria, { offset: position, order, limit })}`, signal);
    const [line] = accepted(criteria, body.logs);
    if (line) return line;
    if (!body.cursor) return null;
    position = reached;
    // If one line is rejected, many can be.
    if (body.logs.length) limit = 100;
  }
}

export class Scan {
  /** The sorted numbers of the matches. The log has been scanned up to `position`. */
  numbers = [];
  position = 0;
  done = false;
  error = null;
  highlights = new Map();
  comparedWith = [];
  #path;
  #criteria;
  #last;
  #changed;
  #pages = [];
  #cache = new Map();
  #pauseAt = PAUSE_AFTER;
  #busy = false;
  #stop = new AbortController();
  #fetching = new Set();

  constructor(path, criteria, last, changed) {
    this.#path = path;
    this.#criteria = criteria;
    this.#last = last;
    this.#changed = changed;
    this.#run();
  }

  stop() {
    this.#stop.abort();
  }

  /** Continues after the log has grown. */
  resume() {
    if (!this.#busy && (!this.done || this.position < this.#last())) this.#run();
  }

  /** Adds a line of the live stream if it directly follows the scanned lines. True if `matches(line)`. */
  added(line, matches) {
    if (!this.done || this.#busy || line.sequence_num !== this.position + 1) return false;
    this.position += 1;
    const { stream } = this.#criteria;
    if ((stream && line.stream !== stream) || !matches(line)) return false;
    const start = this.numbers.push(line.sequence_num) - 1;
    if (!(this.#pages.at(-1)?.count < PAGE)) this.#pages.push({ start, offset: line.sequence_num - 1, count: 0 });
    const page = this.#pages.length - 1;
    this.#store(page, [...(this.#cache.get(page) ?? []), line]);
    // If other lines of the page are not cached, fetch it all later.
    if (this.#cache.get(page).length <= this.#pages[page].count) this.#cache.delete(page);
    this.#pages[page].count += 1;
    return true;
  }

  get isRefused() {
    return this.error instanceof Refused && [400, 409].includes(this.error.status);
  }

  get paused() {
    return !this.done && this.numbers.length >= this.#pauseAt;
  }

  goOn() {
    this.#pauseAt = this.numbers.length + PAUSE_AFTER;
    this.resume();
  }

  async #run() {
    this.#busy = true;
    const { signal } = this.#stop;
    const failed = (error) => ((this.error = error), this.#changed());
    while (!signal.aborted && !this.paused) {
      try {
        await persist(() => this.#scanPage(), { signal, failed });
      } catch (error) {
        return signal.aborted || failed(error);
      }
      this.error = null;
      this.#changed();
      if (this.done) break;
    }
    this.#busy = false;
    if (this.done && this.position < this.#last()) setTimeout(() => this.resume(), 500);
  }

  async #scanPage() {
    const offset = this.position;
    const { body, position } = await this.#get(offset);
    this.comparedWith = body.compared_with ?? [];
    const start = this.numbers.length;
    const found = accepted(this.#criteria, body.logs);
    for (const line of found) {
      this.numbers.push(line.sequence_num);
      if (line.highlights) this.highlights.set(line.sequence_num, line.highlights);
    }
    if (found.length) {
      this.#pages.push({ start, offset, count: found.length });
      this.#store(this.#pages.length - 1, found);
    }
    this.position = Math.max(position, offset);
    this.done = body.cursor === null;
  }

  #get(offset) {
    return get(`${this.#path}${route(this.#criteria)}?${query(this.#criteria, { offset, limit: PAGE })}`, this.#stop.signal);
  }

  #store(index, lines) {
    this.#cache.delete(index);
    this.#cache.set(index, lines.map(truncate));
    for (const oldest of this.#cache.keys()) {
      if (this.#cache.size <= 24) break;
      this.#cache.delete(oldest);
    }
  }

  // A scan is also a source of rows for the viewport.

  get count() {
    return this.numbers.length;
  }

  numberAt(row) {
    return this.numbers[row];
  }

  /** The row of a number, or of the next match after it. */
  rowOf(number) {
    return countBefore(this.numbers.length, (each) => this.numbers[each] < number);
  }

  #pageOf(row) {
    return countBefore(this.#pages.length, (each) => this.#pages[each].start <= row) - 1;
  }

  itemAt(row) {
    const page = this.#pageOf(row);
    return { number: this.numbers[row], line: this.#cache.get(page)?.[row - this.#pages[page].start] };
  }

  /** Fetches the pages of the rows in view, and continues the scan near the last match. */
  load(top, bottom) {
    if (bottom >= this.numbers.length - PAGE && this.paused) this.goOn();
    if (!this.numbers.length) return;
    for (let page = this.#pageOf(top); page <= this.#pageOf(bottom); page += 1) {
      if (!this.#cache.has(page) && !this.#fetching.has(page)) this.#fetchPage(page);
    }
  }

  async #fetchPage(page) {
    this.#fetching.add(page);
    try {
      const { body } = await this.#get(this.#pages[page].offset);
      this.#store(page, accepted(this.#criteria, body.logs).slice(0, this.#pages[page].count));
      this.#changed();
    } catch {
      // Requested again the next time it is drawn.
    } finally {
      this.#fetching.delete(page);
    }
  }
}
