// Walking a whole log on the server's side: which lines match, or are of one stream, and how many.

import { keep } from "./kept.js";
import { get, Refused } from "./session.js";

//: Lines asked for at once.
const PAGE = 1000;
//: Matches after which a scan pauses until somebody wants more; nobody reads on from match to match so far.
const ENOUGH = 20_000;
//: Pages of lines held for the list of matches; the others are asked for again.
const PAGES = 24;
//: Milliseconds between two looks at what a running job has added, and after a failed request.
const AGAIN_MS = 500;

/** Parameters of a request that asks for `what`: `{q, regex, stream}`, each of them optional. */
export function query(what, more) {
  const said = { ...more };
  if (what.q) said.q = what.q;
  if (what.q && what.regex) said.regex = "true";
  if (what.stream) said.stream = what.stream;
  return new URLSearchParams(said);
}

export const route = (what) => (what.q ? "/logs/search" : "/logs");

/** The first match strictly after `number` in that order, or null: `{number, place}` where `place` is how far it looked. */
export async function findOne(path, what, number, order, signal) {
  let place = number;
  for (;;) {
    const { body, place: reached } = await get(`${path}${route(what)}?${query(what, { offset: place, order, limit: 1 })}`, signal);
    if (body.logs.length) return body.logs[0];
    if (!body.cursor) return null;
    place = reached;
  }
}

export class Scan {
  /** Numbers of the matches in order, and how far the log has been looked through for them. */
  numbers = [];
  place = 0;
  done = false;
  error = null;
  highlights = new Map();
  #path;
  #what;
  #last;
  #changed;
  #pages = [];
  #held = new Map();
  #enough = ENOUGH;
  #busy = false;
  #stop = new AbortController();
  #asked = new Set();

  /** `last()` is the log's last number by now; `changed()` is called after anything in here is different. */
  constructor(path, what, last, changed) {
    this.#path = path;
    this.#what = what;
    this.#last = last;
    this.#changed = changed;
    this.#run();
  }

  stop() {
    this.#stop.abort();
  }

  /** Goes on when the log has grown, or behind what was enough so far. */
  more() {
    if (!this.#busy && (!this.done || this.place < this.#last())) this.#run();
  }

  async #run() {
    this.#busy = true;
    while (!this.#stop.signal.aborted && this.numbers.length < this.#enough) {
      try {
        await this.#once();
        this.error = null;
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        this.error = error;
        this.#changed();
        if (error instanceof Refused && error.status === 400) return;
        await new Promise((done) => setTimeout(done, AGAIN_MS * 4));
        continue;
      }
      this.#changed();
      if (this.done) break;
    }
    this.#busy = false;
    if (this.done && this.place < this.#last()) setTimeout(() => this.more(), AGAIN_MS);
  }

  async #once() {
    const offset = this.place;
    const { body, place } = await this.#get(offset);
    const start = this.numbers.length;
    for (const line of body.logs) {
      this.numbers.push(line.sequence_num);
      if (line.highlights) this.highlights.set(line.sequence_num, line.highlights);
    }
    if (body.logs.length) {
      this.#pages.push({ start, offset, count: body.logs.length });
      this.#hold(this.#pages.length - 1, body.logs);
    }
    this.place = Math.max(place, offset);
    this.done = body.cursor === null;
  }

  #get(offset) {
    return get(`${this.#path}${route(this.#what)}?${query(this.#what, { offset, limit: PAGE })}`, this.#stop.signal);
  }

  #hold(index, lines) {
    this.#held.delete(index);
    this.#held.set(index, lines.map(keep));
    for (const oldest of this.#held.keys()) {
      if (this.#held.size <= PAGES) break;
      this.#held.delete(oldest);
    }
  }

  // As a list of rows.

  get count() {
    return this.numbers.length;
  }

  numberAt(row) {
    return this.numbers[row];
  }

  /** The row of a number, or of the nearest match after it. */
  rowOf(number) {
    let low = 0;
    let high = this.numbers.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.numbers[middle] < number) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #pageOf(row) {
    let low = 0;
    let high = this.#pages.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#pages[middle].start <= row) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  itemAt(row) {
    const page = this.#pageOf(row);
    return { number: this.numbers[row], line: this.#held.get(page)?.[row - this.#pages[page].start] };
  }

  /** Says which rows are in view. */
  need(top, bottom) {
    if (bottom >= this.numbers.length - PAGE && !this.done && this.numbers.length >= this.#enough) {
      this.#enough = this.numbers.length + ENOUGH;
      this.more();
    }
    if (!this.numbers.length) return;
    for (let page = this.#pageOf(top); page <= this.#pageOf(bottom); page += 1) {
      if (!this.#held.has(page) && !this.#asked.has(page)) this.#again(page);
    }
  }

  async #again(page) {
    this.#asked.add(page);
    try {
      const { body } = await this.#get(this.#pages[page].offset);
      this.#hold(page, body.logs.slice(0, this.#pages[page].count));
      this.#changed();
    } catch {
      // It is asked for again when it is next drawn.
    } finally {
      this.#asked.delete(page);
    }
  }
}
