// The groups of a log, as CI systems mark them: their ends, durations and errors. A job's steps are made of them.

import { MARKERS, markup } from "./markup.js";
import { findOne, query } from "./scan.js";
import { get, persist } from "./session.js";
import { plain } from "./text.js";

//: Maximum number of groups kept. Later groups can be folded individually.
const MAX_GROUPS = 20_000;
//: Styles whose groups have names, which also mark their ends.
const NAMED = ["gitlab", "travis"];
//: Maximum number of lines kept that arrive during a search.
const MOST_LATER = 100_000;

export class Groups {
  /** The groups by their first lines. `end` is the last line, including the end marker; Infinity while the group is open. */
  known = new Map();
  /** The line number up to which groups are known, and whether that is the end of the log. */
  position = 0;
  done = false;
  #path;
  #open = [];
  #finding = null;
  #isCut = false;
  #later = [];

  constructor(path) {
    this.#path = path;
  }

  /** Searches for groups with at most this many requests, each of which scans up to 200,000 lines. */
  find(requests) {
    return (this.#finding ??= this.#find(requests).finally(() => {
      this.#finding = null;
      for (const [line, from] of this.#later.splice(0)) this.added(line, from);
    }));
  }

  async #find(requests) {
    const criteria = { q: MARKERS, regex: true };
    for (let request = 0; request < requests && !this.done && this.known.size < MAX_GROUPS; request += 1) {
      const url = `${this.#path}/logs/search?${query(criteria, { offset: this.position, limit: 1000 })}`;
      const answer = await persist(() => get(url)).catch(() => null);
      if (!answer) return;
      const { body, position } = answer;
      for (const line of body.logs) this.#see(line);
      this.position = Math.max(this.position, position);
      this.done = body.cursor === null;
      this.#isCut = !this.done;
    }
  }

  /** Call this for each line added to a log, and for a gap with its last and first number. Lines after a skipped one are ignored. */
  added(line, from = line.sequence_num) {
    const { sequence_num: number, message = "" } = line;
    if (this.#finding) {
      if (this.#later.length < MOST_LATER) this.#later.push([markup(message) ? line : { sequence_num: number }, from]);
      return;
    }
    if (from > this.position + 1 || number <= this.position) return;
    this.position = number;
    this.#see(line);
  }

  #see(line) {
    const found = markup(line.message ?? "");
    if (!found) return;
    const { kind, of, name, ends, skip } = found;
    const number = line.sequence_num;
    if (kind === "error") for (const group of this.#open) group.badLine = number;
    if (kind === "end") this.#close(of, name, number, line, found.at);
    if (kind !== "group") return;
    if (ends) this.#close(of, ends, number - 1, line, found.at);
    const at = found.at ?? Date.parse(line.timestamp);
    // A group without a name ends where the next one starts, unless its own end marker follows later: then the next one is nested.
    if (!NAMED.includes(of)) this.#end(this.#open.findLast((group) => group.of === of), number - 1, at);
    if (of === "buildkite") this.#open = this.#open.filter((group) => group.of !== of);
    const title = plain(line.message.slice(skip)).replace(/^(?:---|\+\+\+|~~~) /, "").trim() || name || "group";
    const came = Date.parse(line.timestamp);
    const group = { start: number, end: Infinity, of, name, title, at, came, badLine: 0, isOpen: line.message.startsWith("+++ ") };
    this.#open.push(group);
    this.known.set(number, group);
  }

  #end(group, end, at) {
    if (group) Object.assign(group, { end, ms: at - group.at });
  }

  /** Ends the innermost open group of that style and name, and the groups in it. */
  #close(of, name, end, line, at = Date.parse(line.timestamp)) {
    const index = this.#open.findLastIndex((group) => group.of === of && group.name === name);
    if (index < 0) return;
    const [group, ...inner] = this.#open.splice(index);
    this.#end(group, end, at);
    for (const each of inner) if (each.end === Infinity) this.#end(each, end, at);
  }

  /** The first and last lines of groups that have ended without an error and should not stay open (Buildkite's `+++`). */
  get good() {
    return this.ended.filter(([start]) => !this.known.get(start).badLine && !this.known.get(start).isOpen);
  }

  get ended() {
    return [...this.known.values()].filter(({ end }) => end < Infinity).map(({ start, end }) => [start, end]);
  }

  /**
   * The steps in order. Each ends with its group, except that the output of a GitHub step follows its header. The last
   * one lasts until `last` (ms). Steps whose ends have not been looked for yet are omitted.
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
      // Times in a log can be older than those of its lines.
      step.ms = next ? next.at - step.at : last - step.came;
    });
    return this.#isCut ? steps.filter(({ end }) => end < Infinity) : steps;
  }

  /** The last line of the group that starts with `line`. Requested if unknown. */
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
