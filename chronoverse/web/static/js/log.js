// The part of a job's log that is in memory: the most recently used windows of lines.

import { Backoff, isTransient } from "../client/request.js";
import { markup } from "./markup.js";
import { get } from "./session.js";
import { countBefore, Ranges } from "./ranges.js";
import { MAX_SHOWN, plain, truncate } from "./text.js";
import { hideRetry, showRetry } from "./trouble.js";

//: Lines per window, and so per request.
export const WINDOW = 200;
//: Milliseconds that moving rows must be stable before they are requested, so that dragging the bar sends few requests.
const SETTLE_MS = 40;

//: A progress bar's row has a percentage, a bar, or a count of a total; and the parts that change from one state to the next.
const BAR = /\d\s?%|[█▉▊▋▌▍▎▏]|\[[=#>. -]{4,}\]/;
const CHANGING = /\d+(?:[.,]\d+)?\s?(?:%|(?:[kKMGT]i?B?|B)(?:\/s)?\b|it\/s|m?s\b)|\d+(?::\d\d)+|\d[\d.,]*\s?\/\s?\d[\d.,]*|[=#>.█▉▊▋▌▍▎▏ -]{2,}|\s+/g;

/** What all states of a progress bar have in common. Null for any other line. */
const barOf = (message) => (message.length < 500 && BAR.test(message) ? plain(message).replace(CHANGING, " ").replace(/ +/g, " ") : null);

const sameOpenLines = (a, b) => a.stdout === b.stdout && a.stderr === b.stderr;

export class Log {
  first = 1;
  last = 0;
  #path;
  #changed;
  #windows = new Map();
  #characters = 0;
  #hidden = new Ranges();
  #gaps = [];
  #ends = new Set();
  /** Whether any loaded line had the markup of a group; the folds, by their first lines; the known later parts of long lines. */
  hasGroups = false;
  folds = new Map();
  parts = new Map();
  //: Hidden states of progress bars: maps the number of the last state to that of the first.
  #bars = new Map();
  #opened = new Ranges();
  #missing = [];
  #fetching = new Set();
  #timer = 0;
  #loadedAt = 0;
  #epoch = 0;
  #away = false;
  #backoff = Object.assign(new Backoff(), { retryMs: 150 });
  #load;
  loaded = new Promise((done) => (this.#load = done));

  constructor(path, changed) {
    this.#path = path;
    this.#changed = changed;
  }

  // Each number has a row, unless it is hidden.
  get count() {
    return this.last - this.#hidden.below(this.last + 1);
  }

  numberAt(row) {
    return this.#hidden.outside(row);
  }

  /** The row of a number; for a hidden number, the row that represents it. */
  rowOf(number) {
    const above = number - 1 - this.#hidden.below(number);
    return Math.max(0, this.#hidden.has(number) ? above - 1 : above);
  }

  /** A row's content: `{number, line}`, `{number, gap}`, or `{number}` while it is loading. `parts`: the numbers of a line's other parts. */
  itemAt(row) {
    const number = this.numberAt(row);
    const gap = this.#gapAt(number);
    if (gap) return { number, gap };
    const line = this.get(number);
    if (!line) return { number };
    const parts = this.parts.get(number);
    const updates = this.#bars.has(number) ? number - this.#bars.get(number) : 0;
    return { number, line: parts ? this.#joined(line, parts) : line, parts, folded: this.folds.has(number), updates };
  }

  get(number) {
    return this.#windows.get(Math.floor((number - 1) / WINDOW))?.lines[(number - 1) % WINDOW];
  }

  setExtent(first, last) {
    this.last = Math.max(this.last, last);
    if (first > this.first && first > 1) {
      this.first = first;
      this.gap(1, first - 1, "trimmed");
    }
    this.#changed();
  }

  /** Adds a line from the live stream, unless it is already there. */
  append(line) {
    const number = line.sequence_num;
    if (number > this.last + 1) this.gap(this.last + 1, number - 1, "missing");
    this.last = Math.max(this.last, number);
    const window = this.#window(Math.floor((number - 1) / WINDOW));
    this.#put(window, number, truncate(line));
    this.#joinParts(window);
    this.#evict();
    this.#changed();
    this.#load();
  }

  gap(from, to, reason) {
    this.last = Math.max(this.last, to);
    const touching = this.#gaps.filter((gap) => gap.from <= to + 1 && from <= gap.to + 1 && gap.reason === reason);
    const [first, last] = [Math.min(from, ...touching.map((each) => each.from)), Math.max(to, ...touching.map((each) => each.to))];
    this.#gaps = this.#gaps.filter((gap) => gap.from < first || gap.to > last);
    this.#gaps.push({ from: first, to: last, reason });
    this.#gaps.sort((a, b) => a.from - b.from);
    if (last > first) this.#hidden.add(first + 1, last);
    this.#changed();
  }

  /** Drops redacted lines, which are then requested again. */
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
    const gap = this.#gaps[countBefore(this.#gaps.length, (each) => this.#gaps[each].from <= number) - 1];
    return gap && number <= gap.to ? gap : null;
  }

  /** Fetches the missing lines in view and around it, nearest first. */
  load(top, bottom) {
    const rows = [top, bottom, Math.floor((top + bottom) / 2), top - WINDOW / 2, bottom + WINDOW / 2];
    const indexes = new Set();
    for (const row of rows) {
      if (row < 0 || row >= this.count) continue;
      const number = this.numberAt(row);
      indexes.add(Math.floor((number - 1) / WINDOW));
      for (const part of this.parts.get(number)?.slice(0, 2) ?? []) indexes.add(Math.floor((part - 1) / WINDOW));
    }
    for (const index of indexes) if (this.#windows.has(index)) this.#window(index);
    const missing = [...indexes].filter((index) => !this.#complete(index));
    const same = missing.length === this.#missing.length && missing.every((index, i) => index === this.#missing[i]);
    const isMoving = performance.now() - this.#loadedAt < SETTLE_MS;
    this.#loadedAt = performance.now();
    if (same && this.#timer) return;
    this.#missing = missing;
    clearTimeout(this.#timer);
    this.#timer = missing.length ? setTimeout(() => this.#fetchMissing(), this.#windows.size && isMoving ? SETTLE_MS : 0) : 0;
  }

  /** Fetches the beginning, which shows whether the log has groups. */
  async fetchHead() {
    const index = Math.floor((this.first - 1) / WINDOW);
    if (this.last && !this.#complete(index) && !this.#fetching.has(index)) await this.#fetch(index);
  }

  #fetchMissing() {
    this.#timer = 0;
    for (const index of this.#missing) {
      if (this.#fetching.size >= 2) return;
      if (!this.#fetching.has(index) && !this.#complete(index)) this.#fetch(index);
    }
  }

  async #fetch(index) {
    this.#fetching.add(index);
    const late = setTimeout(() => this.#isAway(0, null), 900);
    try {
      const [known, epoch, end] = [this.last, this.#epoch, (index + 1) * WINDOW];
      // A page of long lines can end before its limit, because pages are bounded in bytes.
      for (let start = index * WINDOW; start < end; ) {
        const { body } = await get(`${this.#path}/logs?offset=${start}&limit=${end - start}`);
        if (epoch !== this.#epoch) break;
        const reached = body.cursor ? body.logs.at(-1)?.sequence_num ?? start : known;
        this.#fill(index, start, body.logs, reached);
        this.#load();
        if (!body.cursor || reached === start) break;
        start = reached;
      }
      if (this.#away) hideRetry();
      this.#away = false;
      this.#backoff.succeeded();
      this.#fetching.delete(index);
      this.#fetchMissing();
    } catch (error) {
      this.#fetching.delete(index);
      // A deleted log is not requested again. The stream reports the deletion.
      if (error.status === 404) return;
      this.#backoff.failed();
      const ms = this.#backoff.delay(error);
      this.#timer ||= setTimeout(() => this.#fetchMissing(), ms);
      // A busy service will answer a later request.
      if (isTransient(error) && error.status !== 429) this.#isAway(ms, error);
    } finally {
      clearTimeout(late);
    }
  }

  #isAway(ms, error) {
    this.#away = true;
    showRetry(ms, error, () => this.#fetchMissing());
  }

  /** Adds the response to a request for the lines after `start`. Absent numbers up to `reached` become a gap. */
  #fill(index, start, logs, reached) {
    const end = (index + 1) * WINDOW;
    const window = this.#window(index);
    let expected = start + 1;
    const addGap = (to) => {
      while (expected <= to) {
        // The stream has given the reason of some gaps.
        const end = this.#gapAt(expected)?.to ?? Math.min(to, (this.#gaps.find(({ from }) => from > expected)?.from ?? Infinity) - 1);
        if (!this.#gapAt(expected)) this.gap(expected, end, expected < this.first ? "trimmed" : "missing");
        expected = end + 1;
      }
    };
    for (const line of logs) {
      if (expected > end) break;
      addGap(line.sequence_num - 1);
      if (line.sequence_num <= end) this.#put(window, line.sequence_num, truncate(line));
      expected = line.sequence_num + 1;
    }
    addGap(Math.min(reached, end));
    this.#joinParts(window);
    this.#evict();
    this.#changed();
  }

  #window(index) {
    const window = this.#windows.get(index) ?? { index, lines: new Array(WINDOW), joined: 0, incoming: {}, open: {}, characters: 0 };
    this.#windows.delete(index);
    this.#windows.set(index, window);
    return window;
  }

  #put(window, number, line) {
    const slot = (number - 1) % WINDOW;
    if (window.lines[slot]) return;
    window.lines[slot] = line;
    window.characters += line.message.length;
    this.#characters += line.message.length;
    line.bar = line.partial ? null : barOf(line.message);
    if (line.bar !== null) {
      this.#hideState(number - 1, number);
      this.#hideState(number, number + 1);
    }
    const found = markup(line.message);
    if (found?.of) this.hasGroups = true;
    // The end marker of a group has no row. Text after the markup is shown.
    if (found?.kind !== "end" || line.message.length > found.skip || line.partial || this.#ends.has(number)) return;
    this.#ends.add(number);
    this.#hidden.add(number, number);
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

  /** Drops the least recently used windows. At 200 characters a line, 64 windows take about 10 MB. */
  #evict() {
    for (const [index, window] of this.#windows) {
      if (this.#windows.size <= (this.#characters <= 16_000_000 ? 64 : 4)) return;
      this.#windows.delete(index);
      this.#characters -= window.characters;
    }
  }

  // Long lines. The consecutive parts of a line share one row.

  /** Joins the parts in a window, then in the following windows. The previous window can end with unfinished lines. */
  #joinParts(window) {
    const before = this.#windows.get(window.index - 1);
    if (before?.joined === WINDOW && !sameOpenLines(before.open, window.incoming)) {
      window.incoming = { ...before.open };
      window.joined = 0;
    }
    if (window.joined === 0) window.open = { ...window.incoming };
    while (window.joined < WINDOW && this.#known(window, window.joined)) {
      const line = window.lines[window.joined];
      window.joined += 1;
      if (!line) {
        // The rest of an unfinished line may be in the gap.
        window.open = {};
        continue;
      }
      const head = window.open[line.stream];
      if (head !== undefined) this.#attach(head, line.sequence_num);
      window.open[line.stream] = line.partial ? head ?? line.sequence_num : undefined;
    }
    const after = this.#windows.get(window.index + 1);
    if (window.joined === WINDOW && after && !sameOpenLines(window.open, after.incoming)) this.#joinParts(after);
  }

  #attach(head, part) {
    const parts = this.parts.get(head) ?? [];
    if (parts.includes(part)) return;
    parts.push(part);
    this.parts.set(head, parts);
    // The part may have been taken for a first part while the real one was not in memory.
    const ownParts = this.parts.get(part);
    if (ownParts) {
      this.parts.delete(part);
      for (const each of ownParts) this.#attach(head, each);
    }
    this.#hidden.add(part, part);
  }

  #joined(line, parts) {
    let { message } = line;
    let next = 0;
    for (; next < parts.length && message.length < MAX_SHOWN; next += 1) {
      const part = this.get(parts[next]);
      if (!part) break;
      message += part.message;
    }
    const more = line.more || message.length > MAX_SHOWN || next < parts.length;
    return { ...line, message: message.slice(0, MAX_SHOWN), more, parts: parts.length + 1 };
  }

  /** Hides a row if the next one is a later state of the same progress bar. */
  #hideState(number, next) {
    const [line, after] = [this.get(number), this.get(next)];
    if (!line || !after || line.bar !== after.bar || line.stream !== after.stream || this.#opened.has(number)) return;
    const end = (this.#hidden.has(next) && [...this.#bars.keys()].find((each) => this.#bars.get(each) === next)) || next;
    this.#bars.set(end, this.#bars.get(number) ?? number);
    this.#bars.delete(number);
    this.#hidden.add(number, number);
  }

  showStates(last) {
    this.#opened.add(this.#bars.get(last), last - 1);
    this.#bars.delete(last);
    this.#rehide();
    this.#changed();
  }

  fold(start, end) {
    this.folds.set(start, end);
    this.#hidden.add(start + 1, end);
    this.#changed();
  }

  /** Folds these groups, given as pairs of `start` and `end`, and unfolds all others. */
  foldAll(groups) {
    this.folds = new Map(groups);
    this.#rehide();
    this.#changed();
  }

  unfold(start) {
    if (this.folds.delete(start)) this.#rehide();
    this.#changed();
  }

  reveal(number) {
    for (const [last, start] of this.#bars) if (start <= number && number < last) this.showStates(last);
    for (const [start, end] of this.folds) if (start < number && number <= end) this.unfold(start);
  }

  #rehide() {
    this.#hidden.clear();
    for (const gap of this.#gaps) if (gap.to > gap.from) this.#hidden.add(gap.from + 1, gap.to);
    for (const parts of this.parts.values()) for (const part of parts) this.#hidden.add(part, part);
    for (const number of this.#ends) this.#hidden.add(number, number);
    for (const [last, start] of this.#bars) this.#hidden.add(start, last - 1);
    for (const [start, end] of this.folds) this.#hidden.add(start + 1, end);
  }
}
