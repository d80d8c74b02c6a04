// The search box: the search criteria and the number of matches.

import { $, toggle } from "./dom.js";
import { count } from "./format.js";
import { Matches } from "./matches.js";
import { isTransient } from "./session.js";
import { toQuery } from "./share.js";
import { findVisible, toUtf16Spans } from "./text.js";
import { sentence } from "./trouble.js";

const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

export class Find extends Matches {
  #local = null;
  #timer = 0;

  constructor(path, log, on) {
    super(path, log, on, { q: "", regex: false }, "previous", "next");
    $("q").addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.begin(), 200);
    });
    $("find").addEventListener("submit", (event) => event.preventDefault());
    $("q").addEventListener("keydown", (event) => this.#key(event));
    $("regex").addEventListener("click", () => (toggle($("regex")), this.begin()));
  }

  focus() {
    $("q").focus();
    $("q").select();
  }

  close() {
    $("q").value = "";
    this.begin();
  }

  marks(line) {
    if (!this.scan || (this.criteria.stream && line.stream !== this.criteria.stream)) return [];
    if (this.#local) return findVisible(line.message, this.#local);
    const spans = this.scan.highlights.get(line.sequence_num);
    if (!spans && line.sequence_num > this.scan.position) this.fetchAround(line.sequence_num);
    return spans ? toUtf16Spans(line.message, spans) : [];
  }

  /** Reads the search from the page's address. True if there is one. `begin` starts it. */
  fromAddress() {
    const parameters = new URLSearchParams(location.search);
    $("q").value = parameters.get("q") ?? "";
    toggle($("regex"), parameters.get("regex") === "true");
    return $("q").value !== "";
  }

  #key(event) {
    if (event.key === "Enter") {
      event.preventDefault();
      if (this.#timer || $("q").value !== this.criteria.q || this.scan?.error) this.begin();
      else this.step(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape") {
      event.preventDefault();
      this.close();
      $("log").focus();
    }
  }

  /** Searches for the text in the box, and puts it into the address. Jumps to the next match from the top, unless `jumps` is false. */
  begin({ jumps = true } = {}) {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const [q, regex] = [$("q").value, $("regex").ariaPressed === "true"];
    this.criteria = { ...this.criteria, q, regex };
    this.#local = q && !regex ? new RegExp(escaped(q), "giu") : null;
    toQuery({ q, regex: q && regex ? "true" : "" });
    if (q) this.look(jumps);
    else this.drop();
  }

  /** Shows "3 of 1,240", with a "+" while there may be more, or that the expression is invalid. */
  show() {
    const { scan } = this;
    const output = $("count");
    $("find").classList.toggle("active", Boolean(this.scan));
    output.classList.toggle("bad", Boolean(scan?.error));
    output.textContent = output.title = "";
    if (!scan) return undefined;
    if (scan.error?.status === 400) {
      Object.assign(output, { textContent: "invalid expression", title: scan.error.message });
      return this.say(scan.error.message);
    }
    if (scan.error && !isTransient(scan.error)) {
      const { status } = scan.error;
      const why = `${sentence(scan.error)} Press Enter to search again.`;
      Object.assign(output, { textContent: `failed${status ? ` (${status})` : ""}: retry with Enter`, title: why });
      return this.say(why);
    }
    const { found, far } = this.progress;
    output.textContent = scan.count ? found + far : scan.done ? "no match" : `…${far}`;
    return scan.done && this.say(scan.count === 1 ? "1 match" : `${count(scan.count)} matches`);
  }
}
