// The lines of a job that look like errors: which they are, and the steps from one to the next.

import { $ } from "./dom.js";
import { count, many } from "./format.js";
import { Matches } from "./matches.js";
import { plain } from "./text.js";

//: Characters at the beginning of a message that the page looks at itself. The service looks at the whole message.
const LOOKED_AT = 2000;

const { errors: words, harmless } = document.documentElement.dataset;
const WORDS = new RegExp(words, "i");
const HARMLESS = new RegExp(harmless, "gi");

/** Whether a message looks like an error, by the words of the service's summary. */
export const looksLikeError = (message) => WORDS.test(plain(message.slice(0, LOOKED_AT)).replace(HARMLESS, ""));

const accepts = ({ message }) => message.length > LOOKED_AT || looksLikeError(message);

export class Errors extends Matches {
  #known = "";
  #isLive = false;
  #isAsked = false;

  /** `on` is as for `Matches`. */
  constructor(path, log, on) {
    super(path, log, on, { q: words, regex: true, accepts }, "previouserror", "nexterror");
  }

  /** Whether the reader looks for them, and they are not only counted. */
  get isAsked() {
    return this.#isAsked;
  }

  /** Looks for them because the reader wants it, or for one stop. */
  ask() {
    this.#isAsked = true;
    if (this.active) this.show();
    else this.look(false);
  }

  /** The reader wants them no more. Those of a running job are still counted. */
  leave() {
    this.#isAsked = false;
    if (this.#isLive) this.show();
    else this.drop();
  }

  /** Counts the errors of a running job as they come. */
  countLive() {
    this.#isLive = true;
    if (!this.active) this.look(false);
  }

  /** To be called for each line of the live stream, before the log has grown. */
  added(line) {
    if (this.scan?.added(line, ({ message }) => looksLikeError(message))) this.changed();
  }

  /** Jumps to the next error, or to the previous one. The first step begins to look for them. */
  step(direction) {
    if (!this.isAsked) this.ask();
    return super.step(direction);
  }

  /** Shows how many there are, of a summary. Null if that is not known. */
  showCount(all) {
    if (all !== null) this.#known = count(all);
    if (!this.active) $("errorcount").textContent = this.#known;
  }

  show() {
    const { scan } = this;
    if (!scan) return this.showCount(null);
    if (scan.done) this.#known = count(scan.count);
    const { found, far } = this.progress;
    $("errorcount").textContent = scan.error ? "not scanned" : scan.count || scan.done ? found + far : `…${far}`;
    $("errorcount").title = scan.error?.message ?? "";
    const first = $("firsterror");
    first.hidden = !scan.count;
    first.href = `#L${scan.numbers[0]}`;
    first.dataset.number = scan.numbers[0];
    const text = `${many(scan.count, "error")} so far, first in line ${count(scan.numbers[0] ?? 0)}`;
    if (first.textContent !== text) first.textContent = text;
    if (scan.done && (this.isAsked || scan.count === 1)) this.say(many(scan.count, "error"));
  }
}
