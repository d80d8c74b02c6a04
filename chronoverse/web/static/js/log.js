// The part of a job's log that the page holds: the most recently used windows of lines.

import { Backoff, isTransient } from "../client/request.js";
import { markup } from "./markup.js";
import { truncate, sameOpenLines, MAX_SHOWN } from "./line.js";
import { get } from "./session.js";
import { countBefore, Ranges } from "./ranges.js";
import { plain } from "./text.js";
import { hideRetry, showRetry } from "./trouble.js";

//: Lines of a window, and so of one request.
export const WINDOW = 200;
//: Windows that are held. With 200 characters a line they have about 10 MB.
const MAX_WINDOWS = 64;
//: Characters that all windows together may have.
const MAX_CHARACTERS = 16_000_000;
//: Requests for windows at the same time.
const MAX_REQUESTS = 2;
//: Milliseconds that the rows in view must stay the same before theirs are requested, unless they were the same before that.
//: So a jump requests at once, and dragging the scroll bar requests only a few.
const SETTLE_MS = 40;
//: Milliseconds after which a failed request is repeated the first time. Each further failure doubles them.
const RETRY_MS = 150;
//: Milliseconds after which the page says that it still waits for lines.
const LATE_MS = 900;

//: A row of a progress bar: it has a share, a bar, or one count of another. What changes from one state to the next.
const BAR = /\d\s?%|[█▉▊▋▌▍▎▏]|\[[=#>. -]{4,}\]/;
const CHANGING = /\d+(?:[.,]\d+)?\s?(?:%|(?:[kKMGT]i?B?|B)(?:\/s)?\b|it\/s|m?s\b)|\d+(?::\d\d)+|\d[\d.,]*\s?\/\s?\d[\d.,]*|[=#>.█▉▊▋▌▍▎▏ -]{2,}|\s+/g;

/** What states of one progress bar have in common. Null for any other line. */
const barOf = (message) => (message.length < 500 && BAR.test(message) ? plain(message).replace(CHANGING, " ").replace(/ +/g, " ") : null);

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
  #ends = new Set();
  /** Whether a line that was held has the markup of a group. */
  hasGroups = false;
  //: The states of progress bars that are hidden: of each last row, the first number.
  #bars = new Map();
  #opened = new Ranges();
  #parts = new Map();
  #missing = [];
  #fetching = new Set();
  #timer = 0;
  #loadedAt = 0;
  #epoch = 0;
  #away = false;
  #backoff = Object.assign(new Backoff(), { retryMs: RETRY_MS });
  #load;
  /** Resolves after the first lines have arrived. */
  loaded = new Promise((done) => (this.#load = done));

  /** `path` is the job's route. `changed` is called after every change. */
  constructor(path, changed) {
    this.#path = path;
    this.#changed = changed;
  }

  // Rows. Every number has a row, but for hidden ones.

  get count() {
    return this.last - this.#hidden.below(this.last + 1);
  }

  numberAt(row) {
    return this.#hidden.outside(row);
  }

  /** The row of a number. For a hidden number it is the row that stands for it. */
  rowOf(number) {
    const above = number - 1 - this.#hidden.below(number);
    return Math.max(0, this.#hidden.has(number) ? above - 1 : above);
  }

  /** What is in a row: `{number, line}`, `{number, gap}`, or `{number}` while it is being loaded. */
  itemAt(row) {
    const number = this.numberAt(row);
    const gap = this.#gapAt(number);
    if (gap) return { number, gap };
    const line = this.get(number);
    if (!line) return { number };
    const parts = this.#parts.get(number);
    const updates = this.#bars.has(number) ? number - this.#bars.get(number) : 0;
    return { number, line: parts ? this.#joined(line, parts) : line, folded: this.#folds.has(number), updates };
  }

  /** The numbers of the parts after the first of a long line, as far as they are known. */
  partsOf(number) {
    return this.#parts.get(number) ?? [];
  }

  /** The line with that number, if it is held. */
  get(number) {
    return this.#windows.get(Math.floor((number - 1) / WINDOW))?.lines[(number - 1) % WINDOW];
  }

  // Additions and changes.

  /** Sets the first and the last number of the log, as the service reports them. */
  setExtent(first, last) {
    this.last = Math.max(this.last, last);
    if (first > this.first && first > 1) {
      this.first = first;
      this.gap(1, first - 1, "trimmed");
    }
    this.#changed();
  }

  /** Adds a line from the live stream. A line that is held already is ignored. */
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

  /** Adds a gap: numbers that cannot be had. */
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

  /** Drops these lines, which were redacted. They are requested again. */
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

  // Windows.

  /** Fetches what is missing of the rows in view and around them, the nearest first. */
  load(top, bottom) {
    const rows = [top, bottom, Math.floor((top + bottom) / 2), top - WINDOW / 2, bottom + WINDOW / 2];
    const indexes = new Set();
    for (const row of rows) {
      if (row < 0 || row >= this.count) continue;
      const number = this.numberAt(row);
      indexes.add(Math.floor((number - 1) / WINDOW));
      for (const part of this.#parts.get(number)?.slice(0, 2) ?? []) indexes.add(Math.floor((part - 1) / WINDOW));
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

  /** Fetches the beginning, which says whether the log has groups. */
  async fetchHead() {
    if (this.last && !this.#complete(0) && !this.#fetching.has(0)) await this.#fetch(0);
  }

  #fetchMissing() {
    this.#timer = 0;
    for (const index of this.#missing) {
      if (this.#fetching.size >= MAX_REQUESTS) return;
      if (!this.#fetching.has(index) && !this.#complete(index)) this.#fetch(index);
    }
  }

  async #fetch(index) {
    this.#fetching.add(index);
    const late = setTimeout(() => this.#isAway(0, null), LATE_MS);
    try {
      const [known, epoch, end] = [this.last, this.#epoch, (index + 1) * WINDOW];
      // A page of long lines may end before its limit, because pages are bounded in bytes.
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
      // A deleted log is not requested again. The stream reports that.
      if (error.status === 404) return;
      this.#backoff.failed();
      const ms = this.#backoff.delay(error);
      this.#timer ||= setTimeout(() => this.#fetchMissing(), ms);
      // A service that is only busy answers the next request.
      if (isTransient(error) && error.status !== 429) this.#isAway(ms, error);
    } finally {
      clearTimeout(late);
    }
  }

  /** Says that lines that are needed do not come. */
  #isAway(ms, error) {
    this.#away = true;
    showRetry(ms, error, () => this.#fetchMissing());
  }

  /** Adds the answer to a request for the lines after `start`. Numbers up to `reached` that it does not have are a gap. */
  #fill(index, start, logs, reached) {
    const end = (index + 1) * WINDOW;
    const window = this.#window(index);
    let expected = start + 1;
    const addGap = (to) => {
      if (expected <= to) this.gap(expected, to, expected < this.first ? "trimmed" : "missing");
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
    // The end of a group has no row. Text after its markup is shown.
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

  #evict() {
    for (const [index, window] of this.#windows) {
      if (this.#windows.size <= MAX_WINDOWS && this.#characters <= MAX_CHARACTERS) return;
      if (this.#windows.size <= 4) return;
      this.#windows.delete(index);
      this.#characters -= window.characters;
    }
  }

  // Long lines. The parts of a line that are held next to each other get one row.

  /** Joins parts in a window, and then in the windows after it. The window before may have left long lines open. */
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
      if (!line) continue;
      const head = window.open[line.stream];
      if (head !== undefined) this.#attach(head, line.sequence_num);
      window.open[line.stream] = line.partial ? head ?? line.sequence_num : undefined;
    }
    const after = this.#windows.get(window.index + 1);
    if (window.joined === WINDOW && after && !sameOpenLines(window.open, after.incoming)) this.#joinParts(after);
  }

  #attach(head, part) {
    const parts = this.#parts.get(head) ?? [];
    if (parts.includes(part)) return;
    parts.push(part);
    this.#parts.set(head, parts);
    // The part may have counted as a head of its own while the real head was not held.
    const ownParts = this.#parts.get(part);
    if (ownParts) {
      this.#parts.delete(part);
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

  // Progress bars.

  /** Hides a row if the next one is a later state of the same progress bar. */
  #hideState(number, next) {
    const [line, after] = [this.get(number), this.get(next)];
    if (!line || !after || line.bar !== after.bar || line.stream !== after.stream || this.#opened.has(number)) return;
    const end = (this.#hidden.has(next) && [...this.#bars.keys()].find((each) => this.#bars.get(each) === next)) || next;
    this.#bars.set(end, this.#bars.get(number) ?? number);
    this.#bars.delete(number);
    this.#hidden.add(number, number);
  }

  /** Shows all states of the progress bar whose last one has that number. */
  showStates(last) {
    this.#opened.add(this.#bars.get(last), last - 1);
    this.#bars.delete(last);
    this.#rehide();
    this.#changed();
  }

  // Folds.

  /** Hides the numbers after `start` up to `end`. */
  fold(start, end) {
    this.#folds.set(start, end);
    this.#hidden.add(start + 1, end);
    this.#changed();
  }

  /** Folds these groups, pairs of `start` and `end`, or unfolds all if there are none. */
  foldAll(groups) {
    this.#folds = new Map(groups);
    this.#rehide();
    this.#changed();
  }

  get hasFolds() {
    return this.#folds.size > 0;
  }

  unfold(start) {
    if (this.#folds.delete(start)) this.#rehide();
    this.#changed();
  }

  isFolded(start) {
    return this.#folds.has(start);
  }

  /** Opens the folds and the progress bar that `number` is in. */
  reveal(number) {
    for (const [last, start] of this.#bars) if (start <= number && number < last) this.showStates(last);
    for (const [start, end] of this.#folds) if (start < number && number <= end) this.unfold(start);
  }

  #rehide() {
    this.#hidden.clear();
    for (const gap of this.#gaps) if (gap.to > gap.from) this.#hidden.add(gap.from + 1, gap.to);
    for (const parts of this.#parts.values()) for (const part of parts) this.#hidden.add(part, part);
    for (const number of this.#ends) this.#hidden.add(number, number);
    for (const [last, start] of this.#bars) this.#hidden.add(start, last - 1);
    for (const [start, end] of this.#folds) this.#hidden.add(start + 1, end);
  }
}
