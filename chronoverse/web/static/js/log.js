// What the page holds of a job's log: windows of lines by number, the most recently used ones, whatever its size.

import { keep, sameOpen, SHOWN } from "./kept.js";
import { get } from "./session.js";
import { Ranges } from "./ranges.js";

//: Lines of a window, and so of one request.
export const WINDOW = 200;
//: Windows held: at 200 characters a line about 10 MB.
const WINDOWS = 64;
//: Characters held in all windows together.
const CHARACTERS = 16_000_000;
//: Requests for windows under way at once.
const REQUESTS = 2;
//: Milliseconds for which a window must have been in view before it is asked for, so that a drag asks for few.
const SETTLE_MS = 40;
//: Milliseconds after which a failed request is made again.
const RETRY_MS = 1500;

export class Log {
  first = 1;
  last = 0;
  #path;
  #changed;
  #windows = new Map();
  #characters = 0;
  #hidden = new Ranges();
  #gaps = [];
  #folds = new Map();
  #pieces = new Map();
  #wanted = [];
  #asked = new Set();
  #timer = 0;
  #epoch = 0;

  /** `path` is the job's route; `changed` is called after anything in here is different. */
  constructor(path, changed) {
    this.#path = path;
    this.#changed = changed;
  }

  // Rows: every number has one, but those that are hidden.

  get count() {
    return this.last - this.#hidden.below(this.last + 1);
  }

  numberAt(row) {
    return this.#hidden.outside(row);
  }

  /** The row of a number; of a hidden one, the row it is hidden behind. */
  rowOf(number) {
    const above = number - 1 - this.#hidden.below(number);
    return Math.max(0, this.#hidden.has(number) ? above - 1 : above);
  }

  /** What is in a row: `{number, line}`, `{number, gap}`, or `{number}` while it is on its way. */
  itemAt(row) {
    const number = this.numberAt(row);
    const gap = this.#gapAt(number);
    if (gap) return { number, gap };
    const line = this.get(number);
    if (!line) return { number };
    const pieces = this.#pieces.get(number);
    return { number, line: pieces ? this.#joined(line, pieces) : line, folded: this.#folds.has(number) };
  }

  /** The line of that number if it is held. */
  get(number) {
    return this.#windows.get(Math.floor((number - 1) / WINDOW))?.lines[(number - 1) % WINDOW];
  }

  // What comes in.

  /** What the service says of the job: how far its log reaches. */
  reach(first, last) {
    this.last = Math.max(this.last, last);
    if (first > this.first && first > 1) {
      this.first = first;
      this.gap(1, first - 1, "trimmed");
    }
    this.#changed();
  }

  /** A line from the live stream. One that is known already is no news. */
  append(line) {
    const number = line.sequence_num;
    if (number > this.last + 1) this.gap(this.last + 1, number - 1, "missing");
    this.last = Math.max(this.last, number);
    const window = this.#window(Math.floor((number - 1) / WINDOW));
    this.#put(window, number, keep(line));
    this.#join(window);
    this.#evict();
    this.#changed();
  }

  /** Numbers that cannot be had. */
  gap(from, to, reason) {
    this.last = Math.max(this.last, to);
    const touching = this.#gaps.filter((gap) => gap.from <= to + 1 && from <= gap.to + 1 && gap.reason === reason);
    this.#gaps = this.#gaps.filter((gap) => !touching.includes(gap));
    const gap = {
      from: Math.min(from, ...touching.map((each) => each.from)),
      to: Math.max(to, ...touching.map((each) => each.to)),
      reason,
    };
    this.#gaps.push(gap);
    this.#gaps.sort((a, b) => a.from - b.from);
    if (touching.some((each) => each.from > gap.from)) this.#rehide();
    else if (gap.to > gap.from) this.#hidden.add(gap.from + 1, gap.to);
    this.#changed();
  }

  /** What these lines said is not to be shown any more: what is held of them goes, and is asked for again. */
  redact(from, to) {
    this.#epoch += 1;
    for (const { index, characters } of this.#windows.values()) {
      if (index < Math.floor((from - 1) / WINDOW) || index > Math.floor((to - 1) / WINDOW)) continue;
      this.#windows.delete(index);
      this.#characters -= characters;
    }
    this.#changed();
  }

  #gapAt(number) {
    let low = 0;
    let high = this.#gaps.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#gaps[middle].from <= number) low = middle + 1;
      else high = middle;
    }
    const gap = this.#gaps[low - 1];
    return gap && number <= gap.to ? gap : null;
  }

  // Windows.

  /** Says which rows are in view; what is missing of them and around them is fetched, the nearest first. */
  need(top, bottom) {
    const rows = [top, bottom, Math.floor((top + bottom) / 2), top - WINDOW / 2, bottom + WINDOW / 2];
    const indexes = new Set();
    for (const row of rows) {
      if (row < 0 || row >= this.count) continue;
      const number = this.numberAt(row);
      indexes.add(Math.floor((number - 1) / WINDOW));
      for (const piece of this.#pieces.get(number)?.slice(0, 2) ?? []) indexes.add(Math.floor((piece - 1) / WINDOW));
    }
    for (const index of indexes) this.#touch(index);
    const wanted = [...indexes].filter((index) => !this.#complete(index));
    const same = wanted.length === this.#wanted.length && wanted.every((index, i) => index === this.#wanted[i]);
    if (same && this.#timer) return;
    this.#wanted = wanted;
    clearTimeout(this.#timer);
    this.#timer = wanted.length ? setTimeout(() => this.#pump(), this.#windows.size ? SETTLE_MS : 0) : 0;
  }

  #pump() {
    this.#timer = 0;
    for (const index of this.#wanted) {
      if (this.#asked.size >= REQUESTS) return;
      if (!this.#asked.has(index) && !this.#complete(index)) this.#fetch(index);
    }
  }

  async #fetch(index) {
    this.#asked.add(index);
    try {
      const [known, epoch, end] = [this.last, this.#epoch, (index + 1) * WINDOW];
      // A page of long lines ends before its limit, because it is bounded in bytes.
      for (let start = index * WINDOW; start < end; ) {
        const { body } = await get(`${this.#path}/logs?offset=${start}&limit=${end - start}`);
        if (epoch !== this.#epoch) break;
        const reached = body.cursor ? body.logs.at(-1)?.sequence_num ?? start : known;
        this.#fill(index, start, body.logs, reached);
        if (!body.cursor || reached === start) break;
        start = reached;
      }
      this.#asked.delete(index);
      this.#pump();
    } catch (error) {
      this.#asked.delete(index);
      // A log that is gone for good is not asked for again; the live end says so.
      if (error.status !== 404) this.#timer ||= setTimeout(() => this.#pump(), RETRY_MS);
    }
  }

  /** Puts in what a request for the lines after `start` brought: up to `reached` everything that did not come is a gap. */
  #fill(index, start, logs, reached) {
    const end = (index + 1) * WINDOW;
    const window = this.#window(index);
    let expected = start + 1;
    const lacking = (to) => {
      if (expected <= to) this.gap(expected, to, expected < this.first ? "trimmed" : "missing");
    };
    for (const line of logs) {
      if (expected > end) break;
      lacking(line.sequence_num - 1);
      if (line.sequence_num <= end) this.#put(window, line.sequence_num, keep(line));
      expected = line.sequence_num + 1;
    }
    lacking(Math.min(reached, end));
    this.#join(window);
    this.#evict();
    this.#changed();
  }

  #window(index) {
    const window = this.#windows.get(index) ?? { index, lines: new Array(WINDOW), joined: 0, incoming: {}, open: {}, characters: 0 };
    this.#windows.delete(index);
    this.#windows.set(index, window);
    return window;
  }

  #touch(index) {
    if (this.#windows.has(index)) this.#window(index);
  }

  #put(window, number, line) {
    const slot = (number - 1) % WINDOW;
    if (window.lines[slot]) return;
    window.lines[slot] = line;
    window.characters += line.message.length;
    this.#characters += line.message.length;
  }

  #known(window, slot) {
    return window.lines[slot] !== undefined || this.#gapAt(window.index * WINDOW + slot + 1) !== null;
  }

  #complete(index) {
    const window = this.#windows.get(index);
    const slots = Math.min(WINDOW, this.last - index * WINDOW);
    if (!window) return slots <= 0;
    for (let slot = 0; slot < slots; slot += 1) if (!this.#known(window, slot)) return false;
    return true;
  }

  #evict() {
    for (const [index, window] of this.#windows) {
      if (this.#windows.size <= WINDOWS && this.#characters <= CHARACTERS) return;
      if (this.#windows.size <= 4) return;
      this.#windows.delete(index);
      this.#characters -= window.characters;
    }
  }

  // Long lines: the pieces of one that are held next to each other get one row.

  /** Goes on through a window's lines from what the one before has left open, and then through those behind it. */
  #join(window) {
    const before = this.#windows.get(window.index - 1);
    if (before?.joined === WINDOW && !sameOpen(before.open, window.incoming)) {
      window.incoming = { ...before.open };
      window.joined = 0;
    }
    if (window.joined === 0) window.open = { ...window.incoming };
    while (window.joined < WINDOW && this.#known(window, window.joined)) {
      const line = window.lines[window.joined];
      window.joined += 1;
      if (!line) continue;
      const head = window.open[line.stream];
      if (head !== undefined) this.#attach(head, line.sequence_num);
      window.open[line.stream] = line.partial ? head ?? line.sequence_num : undefined;
    }
    const after = this.#windows.get(window.index + 1);
    if (window.joined === WINDOW && after && !sameOpen(window.open, after.incoming)) this.#join(after);
  }

  #attach(head, piece) {
    const pieces = this.#pieces.get(head) ?? [];
    if (pieces.includes(piece)) return;
    pieces.push(piece);
    this.#pieces.set(head, pieces);
    // It may have been taken for a head itself while the real one was not known.
    const own = this.#pieces.get(piece);
    if (own) {
      this.#pieces.delete(piece);
      for (const each of own) this.#attach(head, each);
    }
    this.#hidden.add(piece, piece);
  }

  #joined(line, pieces) {
    let { message } = line;
    let next = 0;
    for (; next < pieces.length && message.length < SHOWN; next += 1) {
      const piece = this.get(pieces[next]);
      if (!piece) break;
      message += piece.message;
    }
    const more = line.more || message.length > SHOWN || next < pieces.length;
    return { ...line, message: message.slice(0, SHOWN), more, pieces: pieces.length + 1 };
  }

  // Folds.

  /** Hides what follows number `start` up to `end`, or shows it again. */
  fold(start, end) {
    this.#folds.set(start, end);
    this.#hidden.add(start + 1, end);
    this.#changed();
  }

  unfold(start) {
    if (this.#folds.delete(start)) this.#rehide();
    this.#changed();
  }

  isFolded(start) {
    return this.#folds.has(start);
  }

  /** Opens whatever fold `number` is in. */
  reveal(number) {
    for (const [start, end] of this.#folds) if (start < number && number <= end) this.unfold(start);
  }

  #rehide() {
    this.#hidden.clear();
    for (const gap of this.#gaps) if (gap.to > gap.from) this.#hidden.add(gap.from + 1, gap.to);
    for (const pieces of this.#pieces.values()) for (const piece of pieces) this.#hidden.add(piece, piece);
    for (const [start, end] of this.#folds) this.#hidden.add(start + 1, end);
  }
}
