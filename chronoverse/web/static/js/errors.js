// The lines of a job that look like errors: which they are, and the steps from one to the next.

import { $, toggle } from "./dom.js";
import { count } from "./format.js";
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
  /** `on` is as for `Matches`. */
  constructor(path, log, on) {
    super(path, log, on, { q: words, regex: true, accepts }, "previouserror", "nexterror");
    $("errors").addEventListener("click", () => (toggle($("errors")) ? this.look(true) : this.drop()));
  }

  /** Jumps to the next error, or to the previous one. The first step begins to look for them. */
  step(direction) {
    if (!this.active) {
      toggle($("errors"), true);
      this.look(false);
    }
    return super.step(direction);
  }

  show() {
    const { scan } = this;
    $("walk").hidden = !scan;
    if (!scan) return;
    for (const id of ["previouserror", "nexterror"]) $(id).hidden = !scan.count;
    const { found, far } = this.progress;
    const none = scan.done ? "No line looks like an error" : `Looking for errors…${far}`;
    const text = scan.count ? `${found} ${scan.count === 1 ? "error" : "errors"}${far}` : none;
    $("errorcount").textContent = scan.error ? `Not scanned: ${scan.error.message}` : text;
    if (scan.done) this.say(`${count(scan.count)} errors`);
  }
}
