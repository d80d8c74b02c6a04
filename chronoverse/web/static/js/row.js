// One row of the log as elements.

import { paint } from "./colour.js";
import { make } from "./dom.js";
import { clock, count, elapsed } from "./format.js";
import { pieces } from "./text.js";

const GROUP = /^(?:::group::|##\[group\])(.*)$/s;
const GROUP_END = /^(?:::endgroup::|##\[endgroup\])/;
const GONE = {
  trimmed: "no longer kept",
  missing: "missing from the log",
  lost: "lost by the store",
  malformed: "in no readable form",
};

export const isGroup = (message) => GROUP.test(message);

/** What elements are made of. The fields are the page's to set; any change of them asks for all rows anew. */
export class RowMaker {
  times = "none";
  startedAt = null;
  picked = null;
  current = 0;
  /** The marks of a line, in UTF-16 units. */
  marks = () => [];
  #round = 0;

  /** After a change that concerns every row. */
  renew() {
    this.#round += 1;
  }

  /** What an item's element depends on. */
  stamp(item) {
    const { number, line, gap, folded } = item;
    const chosen = this.picked && number >= this.picked.from && number <= this.picked.to ? "p" : "";
    const shape = line ? `l${line.pieces ?? 1}${folded ? "f" : ""}` : gap ? `g${gap.from}-${gap.to}` : "u";
    return `${this.#round} ${shape}${chosen}${number === this.current ? "c" : ""}`;
  }

  element(item) {
    const { number, line, gap } = item;
    const row = make("div", "row");
    row.setAttribute("role", "listitem");
    row.dataset.number = number;
    row.classList.toggle("picked", Boolean(this.picked && number >= this.picked.from && number <= this.picked.to));
    row.classList.toggle("current", number === this.current);
    const link = make("a", "n", String(number));
    link.href = `#L${number}`;
    link.tabIndex = -1;
    row.append(link);
    if (gap) return this.#gap(row, gap);
    if (this.times !== "none") row.append(this.#time(line));
    if (!line) row.classList.add("coming");
    else this.#line(row, line, item.folded);
    return row;
  }

  #gap(row, gap) {
    row.classList.add("gap");
    const which = gap.from === gap.to ? `Line ${count(gap.from)} is` : `Lines ${count(gap.from)} to ${count(gap.to)} are`;
    row.append(make("span", "m", `${which} ${GONE[gap.reason] ?? gap.reason}`));
    return row;
  }

  #time(line) {
    if (!line) return make("time", "t");
    const text = this.times === "clock" ? clock(line.timestamp) : elapsed(line.timestamp, this.startedAt);
    const time = make("time", "t", text);
    time.dateTime = line.timestamp;
    time.title = line.timestamp;
    return time;
  }

  #line(row, line, folded) {
    if (line.stream === "stderr") {
      row.classList.add("err");
      row.append(make("span", "sr", "stderr "));
    }
    let message = line.message;
    let marks = this.marks(line);
    const group = GROUP.exec(message);
    if (group) {
      const skipped = message.length - group[1].length;
      message = group[1] || "group";
      marks = marks.map(([from, to]) => [from - skipped, to - skipped]).filter(([, to]) => to > 0);
      const fold = make("button", "fold", folded ? "▸" : "▾");
      fold.type = "button";
      fold.tabIndex = -1;
      fold.setAttribute("aria-expanded", String(!folded));
      fold.setAttribute("aria-label", folded ? "Unfold the group" : "Fold the group");
      row.append(fold);
      row.classList.add("group");
    } else if (GROUP_END.test(message)) {
      row.classList.add("endgroup");
    }
    const text = make("span", "m");
    for (const piece of pieces(message, marks)) text.append(segment(piece));
    if (line.more) text.append(make("span", "more", " … goes on: save the log to have all of it"));
    row.append(text);
  }
}

const UNCOLOURED = { ink: null, ground: null, inverse: false };

/** One piece of a message: a text node where it is plain text. */
function segment({ text, style, code, link, mark }) {
  const classes = [];
  // What is marked has the mark's own colours.
  const { ink, ground, inverse } = mark ? UNCOLOURED : style;
  const plainInk = typeof ink === "number" && ground === null && !inverse;
  if (plainInk) classes.push(`ink${ink}`);
  for (const name of ["bold", "italic", "underline", "strike"]) if (style[name]) classes.push(name);
  if (style.dim && !mark) classes.push("dim");
  const painted = !plainInk && (ink !== null || ground !== null || inverse);
  if (code === undefined && !link && !mark && !painted && !classes.length) return document.createTextNode(text);
  const element = make(mark ? "mark" : link ? "a" : "span", "", text);
  if (painted) {
    classes.push("paint");
    for (const [name, value] of Object.entries(paint(style))) element.style.setProperty(name, value);
    if (ground !== null || inverse) classes.push("ground");
  }
  if (code !== undefined) {
    classes.push("control");
    element.title = `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  }
  if (classes.length) element.className = classes.join(" ");
  const anchor = link && mark ? make("a", "", element) : link ? element : null;
  if (anchor) Object.assign(anchor, { href: link, target: "_blank", rel: "noopener noreferrer nofollow", tabIndex: -1 });
  return anchor ?? element;
}
