// The lines of a job that look like errors: which they are, and the steps from one to the next.

import { $, announce } from "./dom.js";
import { toggle } from "./find.js";
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

export class Errors {
  #matches;
  #on;
  #criteria = {
    q: words,
    regex: true,
    stream: "",
    accepts: ({ message }) => message.length > LOOKED_AT || looksLikeError(message),
  };
  #said = "";

  /** `on` is as for `Matches`. */
  constructor(path, log, on) {
    this.#on = on;
    this.#matches = new Matches(path, log, {
      ...on,
      changed: () => this.#changed(),
      jump: (number) => {
        this.#show();
        on.jump(number);
      },
    });
    $("errors").addEventListener("click", () => {
      toggle($("errors"));
      this.begin();
    });
    $("nexterror").addEventListener("click", () => this.step(1));
    $("previouserror").addEventListener("click", () => this.step(-1));
  }

  get active() {
    return this.#matches.scan !== null;
  }

  /** The numbers of the errors that are known. */
  get numbers() {
    return this.#matches.scan?.numbers ?? [];
  }

  /** Looks only at the lines of one stream from now on, or of both. */
  set stream(stream) {
    this.#criteria = { ...this.#criteria, stream };
    if (this.active) this.begin({ jumps: false });
  }

  /** To be called when the log has grown. */
  logGrew() {
    this.#matches.scan?.resume();
  }

  /** Looks again, because lines were redacted. */
  restart() {
    if (this.active) this.#matches.restart();
  }

  /** Looks for errors, or stops. It jumps to the next one from the top if `jumps`. */
  begin({ jumps = true } = {}) {
    this.#said = "";
    if ($("errors").ariaPressed === "true") this.#matches.begin(this.#criteria, jumps);
    else this.#matches.end();
    this.#changed();
  }

  /** Jumps to the next error, or to the previous one. The first step begins to look for them. */
  step(direction) {
    if (!this.active) {
      toggle($("errors"), true);
      this.begin({ jumps: false });
    }
    return this.#matches.step(direction);
  }

  #changed() {
    this.#show();
    this.#on.changed();
  }

  #show() {
    const { scan } = this.#matches;
    $("walk").hidden = !scan;
    if (!scan) return;
    for (const id of ["previouserror", "nexterror"]) $(id).hidden = !scan.count;
    const { found, far } = this.#matches.progress;
    const none = scan.done ? "No line looks like an error" : `Looking for errors…${far}`;
    const text = scan.error ? `Not looked at: ${scan.error.message}` : scan.count ? `${found} ${scan.count === 1 ? "error" : "errors"}${far}` : none;
    $("errorcount").textContent = text;
    const said = scan.done ? `${count(scan.count)} errors` : "";
    if (said && said !== this.#said) announce(said);
    this.#said = said;
  }
}
