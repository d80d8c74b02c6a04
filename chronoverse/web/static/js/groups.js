// The groups of a log, as CI systems mark them: where they end, how long they took, and which of them had no error.

import { MARKERS, markup } from "./markup.js";
import { findOne, query } from "./scan.js";
import { get } from "./session.js";

//: Lines of one request.
const PAGE = 1000;
//: Groups that are kept. Groups after them can be folded one by one.
const MAX_GROUPS = 20_000;
//: How often a request that fails is repeated, and after how many milliseconds. The service may be busy.
const RETRIES = 5;
const RETRY_MS = 2000;

export class Groups {
  /** The first lines of groups: `{end, ms, isGood}`. `end` is the last line; its markup is in the group. */
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
    for (let request = 0, failures = 0; request < requests && !this.done && this.known.size < MAX_GROUPS; ) {
      const url = `${this.#path}/logs/search?${query(criteria, { offset: this.position, limit: PAGE })}`;
      const answer = await get(url).catch(() => null);
      if (!answer && (failures += 1) > RETRIES) return;
      if (!answer) {
        await new Promise((done) => setTimeout(done, RETRY_MS));
        continue;
      }
      request += 1;
      const { body, position } = answer;
      for (const line of body.logs) this.#see(line);
      this.position = Math.max(this.position, position);
      this.done = body.cursor === null;
    }
  }

  /** To be called for each line that is added to a log. Lines after one that was left out are ignored. */
  added(line) {
    if (!this.done || this.#finding || line.sequence_num !== this.position + 1) return;
    this.position += 1;
    this.#see(line);
  }

  #see(line) {
    const found = markup(line.message);
    if (!found) return;
    const { kind, of, name, ends } = found;
    const number = line.sequence_num;
    if (kind === "error") for (const group of this.#open) group.isGood = false;
    if (kind === "end") this.#close(of, name, number, line, found.at);
    if (kind !== "group") return;
    if (ends) this.#close(of, ends, number - 1, line, found.at);
    // A group of GitHub's or Buildkite's ends where the next one begins.
    if (of !== "gitlab") this.#close(of, name, number - 1, line);
    this.#open.push({ start: number, of, name, at: found.at ?? Date.parse(line.timestamp), isGood: true });
  }

  /** Ends the innermost open group of that style and name, and those in it. */
  #close(of, name, end, line, at = Date.parse(line.timestamp)) {
    const index = this.#open.findLastIndex((group) => group.of === of && group.name === name);
    if (index < 0) return;
    for (const group of this.#open.splice(index)) {
      this.known.set(group.start, { end, ms: at - group.at, isGood: group.isGood });
    }
  }

  /** The last line of the group that begins with `line`. It is asked for if it is not known. */
  async endOf(line) {
    const start = line.sequence_num;
    const known = this.known.get(start);
    if (known) return known.end;
    const { of, name } = markup(line.message) ?? {};
    const accepts = ({ message }) => {
      const found = markup(message);
      if (found?.of !== of) return false;
      return of === "gitlab" ? found.ends === name || (found.kind === "end" && found.name === name) : true;
    };
    const next = await findOne(this.#path, { q: MARKERS, regex: true, accepts }, start, "asc").catch(() => null);
    if (!next) return Infinity;
    return next.sequence_num - (markup(next.message).kind === "group" ? 1 : 0);
  }
}
