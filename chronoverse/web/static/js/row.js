// Makes the elements of a row.

import { paint } from "./colour.js";
import { make } from "./dom.js";
import { clock, count, elapsed, many, span } from "./format.js";
import { markup } from "./markup.js";
import { segments } from "./text.js";

const GAP_REASONS = {
  trimmed: "no longer kept",
  missing: "missing from the log",
  lost: "lost",
  quota: "beyond the quota",
  malformed: "unreadable",
};

/** Makes rows. The page sets the fields, and calls `renew` after a change that affects all rows. */
export class RowMaker {
  times = "none";
  startedAt = null;
  picked = null;
  current = 0;
  /** The highlighted spans of a line, in UTF-16 units. */
  marks = () => [];
  isNew = () => false;
  /** Whether a line is marked as an error. Must not change over time. */
  isError = () => false;
  cause = 0;
  /** The duration in milliseconds of the group that starts with a line, or undefined. */
  took = () => undefined;
  #version = 0;

  renew() {
    this.#version += 1;
  }

  /** A string of everything that an item's element depends on. */
  stamp(item) {
    const { number, line, gap, folded, updates } = item;
    const content = line ? [line.parts, folded, updates, this.took(number), this.isNew(number)] : gap ? [gap.from, gap.to, gap.reason] : ["coming"];
    return [this.#version, this.#states(item), ...content].join();
  }

  /** A row has several numbers if it is a gap or a line in parts. */
  #states({ number, gap, parts = [] }) {
    const has = (from, to = from) => (gap ? from <= gap.to && to >= gap.from : [number, ...parts].some((each) => each >= from && each <= to));
    const isPicked = this.picked && has(this.picked.from, this.picked.to);
    return `row${isPicked ? " picked" : ""}${has(this.current) ? " current" : ""}${has(this.cause) ? " cause-row" : ""}`;
  }

  /** An item's row. Only the current row's links and buttons can be reached with Tab. */
  element(item) {
    const row = this.#row(item);
    if (row.classList.contains("current")) for (const each of row.querySelectorAll("a, button")) each.tabIndex = 0;
    return row;
  }

  #row(item) {
    const { number, line, gap } = item;
    const place = make("a", { className: "n", href: `#L${number}`, tabIndex: -1 }, String(number));
    const row = make("div", { className: this.#states(item), role: "listitem", data: { number } }, place);
    if (gap) return this.#gap(row, gap);
    if (this.times !== "none") row.append(this.#time(line));
    if (!line) row.classList.add("coming");
    else this.#line(row, line, item.folded);
    const updates = { type: "button", className: "updates", tabIndex: -1 };
    if (item.updates) row.append(make("button", updates, `▸ ${many(item.updates, "earlier update")}`));
    return row;
  }

  #gap(row, gap) {
    row.classList.add("gap");
    const which = gap.from === gap.to ? `Line ${count(gap.from)} is` : `Lines ${count(gap.from)} to ${count(gap.to)} are`;
    row.append(make("span", "m", `${which} ${GAP_REASONS[gap.reason] ?? gap.reason}`));
    return row;
  }

  #time(line) {
    if (!line) return make("time", "t");
    const text = this.times === "clock" ? clock(line.timestamp) : elapsed(line.timestamp, this.startedAt);
    return make("time", { className: "t", dateTime: line.timestamp, title: line.timestamp }, text);
  }

  #line(row, line, folded) {
    const kinds = [
      ["new", "new", this.isNew(Number(row.dataset.number))],
      ["err", "stderr", line.stream === "stderr"],
      ["error", "error", this.isError(line)],
    ];
    for (const [name, word, has] of kinds) {
      if (!has) continue;
      row.classList.add(name);
      row.append(make("span", "sr", `${word} `));
    }
    let message = line.message;
    let marks = this.marks(line);
    const found = markup(message);
    if (found) {
      const { kind, skip, where } = found;
      message = message.slice(skip) || (kind === "group" ? found.name || "group" : "");
      marks = marks.map(([from, to]) => [from - skip, to - skip]).filter(([, to]) => to > 0);
      if (kind !== "group") row.classList.add(`ci-${kind}`);
      if (["error", "warning", "notice"].includes(kind)) row.append(make("span", "kind", kind));
      if (where) row.append(make("span", "where-at", where));
    }
    if (found?.kind === "group") {
      const state = { ariaExpanded: String(!folded), ariaLabel: `${folded ? "Unfold" : "Fold"} the group` };
      row.append(make("button", { type: "button", className: "fold", tabIndex: -1, ...state }, folded ? "▸" : "▾"));
      row.classList.add("group");
    }
    const text = make("span", "m");
    for (const segment of segments(message, marks)) text.append(segmentElement(segment));
    if (line.more) text.append(make("span", "more", " … truncated: download the log to read all of it"));
    row.append(text);
    const ms = this.took(line.sequence_num);
    if (found?.kind === "group" && ms >= 0) row.append(make("span", "took", span(ms)));
  }
}

const NO_COLOURS = { ink: null, ground: null, inverse: false };

/** A segment of a message as an element, or as a text node if it has no style. */
export function segmentElement({ text, style, code, link, host, mark }) {
  const classes = [];
  // A match has the colours of a mark instead of its own.
  const { ink, ground, inverse } = mark ? NO_COLOURS : style;
  const isPainted = ink !== null || ground !== null || inverse;
  for (const name of ["bold", "italic", "underline", "strike"]) if (style[name]) classes.push(name);
  if (style.dim && !mark) classes.push("dim");
  if (code === undefined && !link && !mark && !isPainted && !classes.length) return document.createTextNode(text);
  const element = make(mark ? "mark" : link ? "a" : "span", "", text);
  if (isPainted) {
    const colours = paint(style);
    element.style.color = colours.ink;
    if (colours.ground) element.style.background = colours.ground;
  }
  if (code !== undefined) {
    classes.push("control");
    element.title = `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  }
  if (classes.length) element.className = classes.join(" ");
  const anchor = link && mark ? make("a", "", element) : link ? element : null;
  if (anchor) Object.assign(anchor, { href: link, target: "_blank", rel: "noopener noreferrer nofollow", tabIndex: -1 });
  if (host) anchor.dataset.host = host;
  return anchor ?? element;
}
