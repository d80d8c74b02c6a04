// The groups of a log, as CI systems mark them: where they end, how long they took, and which of them had no error. And
// the steps of a job, which are made of them.

import { MARKERS, markup } from "./markup.js";
import { findOne, query } from "./scan.js";
import { get, persist } from "./session.js";
import { plain } from "./text.js";

//: Lines of one request.
const PAGE = 1000;
//: Groups that are kept. Groups after them can be folded one by one.
const MAX_GROUPS = 20_000;
//: Styles whose groups have names, by which they end.
const NAMED = ["gitlab", "travis"];

export class Groups {
  /** The groups by their first lines: `{start, end, ms, at, of, title, badLine, isOpen}`. `end` is the last line, Infinity while it is open; its markup is in the group. */
  known = new Map();
  /** The number of the line up to which groups are known, and whether that is the end of the log. */
  position = 0;
  done = false;
  #path;
  #open = [];
  #finding = null;

  constructor(path) {
    this.#path = path;
  }

  /** Asks the service for groups with at most that many requests, each of which looks at up to 200,000 lines. */
  find(requests) {
    this.#finding ??= this.#find(requests).finally(() => (this.#finding = null));
    return this.#finding;
  }

  async #find(requests) {
    const criteria = { q: MARKERS, regex: true };
    for (let request = 0; request < requests && !this.done && this.known.size < MAX_GROUPS; request += 1) {
      const url = `${this.#path}/logs/search?${query(criteria, { offset: this.position, limit: PAGE })}`;
      const answer = await persist(() => get(url)).catch(() => null);
      if (!answer) return;
      const { body, position } = answer;
      for (const line of body.logs) this.#see(line);
      this.position = Math.max(this.position, position);
      this.done = body.cursor === null;
    }
  }

  /** To be called for each line that is added to a log. Lines after one that was left out are ignored. */
  added(line) {
    if (this.#finding || line.sequence_num !== this.position + 1) return;
    this.position += 1;
    this.#see(line);
  }

  #see(line) {
    const found = markup(line.message);
    if (!found) return;
    const { kind, of, name, ends, skip } = found;
    const number = line.sequence_num;
    if (kind === "error") for (const group of this.#open) group.badLine = number;
    if (kind === "end") this.#close(of, name, number, line, found.at);
    if (kind !== "group") return;
    if (ends) this.#close(of, ends, number - 1, line, found.at);
    const at = found.at ?? Date.parse(line.timestamp);
    // A group without a name ends where the next one begins, unless an end of its own comes later: then that one is in it.
    if (!NAMED.includes(of)) this.#end(this.#open.findLast((group) => group.of === of), number - 1, at);
    if (of === "buildkite") this.#open = this.#open.filter((group) => group.of !== of);
    const title = plain(line.message.slice(skip)).replace(/^(?:---|\+\+\+|~~~) /, "").trim() || name || "group";
    const group = { start: number, end: Infinity, of, name, title, at, badLine: 0, isOpen: line.message.startsWith("+++ ") };
    this.#open.push(group);
    this.known.set(number, group);
  }

  #end(group, end, at) {
    if (group) Object.assign(group, { end, ms: at - group.at });
  }

  /** Ends the innermost open group of that style and name, and those in it. */
  #close(of, name, end, line, at = Date.parse(line.timestamp)) {
    const index = this.#open.findLastIndex((group) => group.of === of && group.name === name);
    if (index < 0) return;
    const [group, ...inner] = this.#open.splice(index);
    this.#end(group, end, at);
    for (const each of inner) if (each.end === Infinity) this.#end(each, end, at);
  }

  /** The groups that have ended, had no error, and are not to be open (Buildkite's `+++`), as pairs of their first and last lines. */
  get good() {
    return this.ended.filter(([start]) => !this.known.get(start).badLine && !this.known.get(start).isOpen);
  }

  /** All groups that have ended, as such pairs. */
  get ended() {
    return [...this.known.values()].filter(({ end }) => end < Infinity).map(({ start, end }) => [start, end]);
  }

  /**
   * The steps of a log, in their order: `{start, end, title, at, ms, depth}`. A step ends with its group, except that what
   * GitHub runs in a step comes after the group of its head. The last one lasts until `last`, the end in ms.
   */
  steps(last) {
    const around = [];
    const steps = [...this.known.values()].map((group) => {
      while (around.length && around.at(-1).end < group.start) around.pop();
      around.push(group);
      return { ...group, depth: around.length - 1, isHead: group.of === "github" && /^Run /.test(group.title) };
    });
    steps.forEach((step, index) => {
      if (!step.isHead && step.end < Infinity) return;
      const next = steps.slice(index + 1).find(({ depth }) => depth <= step.depth);
      step.end = next ? next.start - 1 : Infinity;
      step.ms = (next ? next.at : last) - step.at;
    });
    return steps;
  }

  /** The last line of the group that begins with `line`. It is asked for if it is not known. */
  async endOf(line) {
    const start = line.sequence_num;
    const known = this.known.get(start);
    if (known && known.end < Infinity) return known.end;
    const { of, name } = markup(line.message) ?? {};
    const accepts = ({ message }) => {
      const found = markup(message);
      if (found?.of !== of) return false;
      return NAMED.includes(of) ? found.ends === name || (found.kind === "end" && found.name === name) : true;
    };
    const next = await findOne(this.#path, { q: MARKERS, regex: true, accepts }, start, "asc").catch(() => null);
    if (!next) return Infinity;
    return next.sequence_num - (markup(next.message).kind === "group" ? 1 : 0);
  }
}
