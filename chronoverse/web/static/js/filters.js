// The lines that the toolbar counts, filters and navigates: errors and new lines.

import { againstLabels } from "./addresses.js";
import { $, make, toggle } from "./dom.js";
import { count, many } from "./format.js";
import { Matches } from "./matches.js";
import { toQuery } from "./share.js";
import { showRuns } from "./summary.js";
import { plain } from "./text.js";

//: Leading characters of a message that the page checks itself. The service checks the whole message.
const LOOKED_AT = 2000;

const { errors: words, harmless } = document.documentElement.dataset;
const WORDS = new RegExp(words, "i");
const HARMLESS = new RegExp(harmless, "gi");

/** Whether a message looks like an error, by the same words as in the service's summary. */
export const looksLikeError = (message) => WORDS.test(plain(message.slice(0, LOOKED_AT)).replace(HARMLESS, ""));

class Filter extends Matches {
  /** Whether the reader filters by these lines. Otherwise they are only counted or marked. */
  isAsked = false;
  #name;
  #known = "";
  #stays = false;

  /** `name` is "error" or "new": a part of the ids of the previous and next buttons and of the count. */
  constructor(path, log, on, criteria, name) {
    super(path, log, on, criteria, `previous${name}`, `next${name}`);
    this.#name = name;
  }

  ask() {
    this.isAsked = true;
    if (this.scan) this.changed();
    else this.look(false);
  }

  leave() {
    this.isAsked = false;
    if (this.#stays) this.changed();
    else this.drop();
  }

  keep() {
    this.#stays = true;
    if (!this.scan) this.look(false);
  }

  /** Jumps to the next or previous line. The first step starts the scan. */
  step(direction) {
    if (!this.isAsked) this.ask();
    return super.step(direction);
  }

  showCount(all) {
    if (all !== null) this.#known = count(all);
    if (!this.scan) this.#shown = this.#known;
  }

  set #shown(text) {
    $(`${this.#name}count`).textContent = text;
    $(`${this.#name}count`).classList.toggle("quiet", text === "0");
  }

  show() {
    const { scan } = this;
    if (!scan) return this.showCount(null);
    if (scan.done && !scan.error) this.#known = count(scan.count);
    const { all, found, far } = this.progress;
    this.#shown = scan.error ? this.unknown : scan.count || scan.done ? (this.isAsked ? found + far : all) : "…";
  }
}

export class Errors extends Filter {
  unknown = "not scanned";

  constructor(path, log, on) {
    const accepts = ({ message }) => message.length > LOOKED_AT || looksLikeError(message);
    super(path, log, on, { q: words, regex: true, accepts }, "error");
  }

  /** Call this for each line of the live stream, before it is added to the log. */
  added(line) {
    if (this.scan?.added(line, ({ message }) => looksLikeError(message))) this.changed();
  }

  show() {
    super.show();
    const { scan } = this;
    if (!scan) return;
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

export class NewLines extends Filter {
  unknown = "not compared";
  #workflow;

  constructor(path, workflow, log, on) {
    super(path, log, on, { new: true, hunks: true }, "new");
    this.#workflow = workflow;
    $("against").addEventListener("change", () => {
      toQuery({ against_label: $("against").value });
      location.reload();
    });
  }

  /** Offers to compare with good runs of the job's `branch`, if it has one, or with others. `baseline` is from the summary. */
  offer(branch, baseline) {
    const chosen = againstLabels().map(([, label]) => label).join(" ");
    const own = branch && `branch=${branch}`;
    const label = baseline?.label;
    const usual = label && label !== own ? label : "branch=main";
    const names = new Map([[own, "this branch"], [usual, usual.replace("branch=", "")], ["*", "all"]]);
    if (own === usual) names.set(own, "this branch");
    if (chosen && !names.has(chosen)) names.set(chosen, chosen);
    const options = [...names].filter(([value]) => value).map(([value, name]) => make("option", { value }, name));
    $("against").replaceChildren(...options);
    $("against").value = chosen || (baseline === undefined ? "" : label ?? "*");
    $("against").parentElement.hidden = !(own || chosen) || new URLSearchParams(location.search).has("against");
  }

  has(number) {
    const { scan } = this;
    if (!scan) return false;
    if (number <= scan.position) return scan.numbers[scan.rowOf(number)] === number;
    // At position 0, the service is still reading the runs.
    if (scan.position > 0) this.fetchAround(number);
    return scan.highlights.has(number);
  }

  show() {
    super.show();
    const { scan } = this;
    if (!scan) return;
    const why = scan.error && (scan.error.reason === "nothing-to-compare" ? "No earlier run to compare with" : `Not compared: ${scan.error.message}`);
    $("new").title = why ?? "Show only the lines that no good run has (D)";
    if (scan.comparedWith.length) showRuns(this.#workflow, scan.comparedWith);
    if (scan.isRefused) toggle($("new"), false);
    if (why) this.say(why);
    else if (scan.done) this.say(`${many(scan.count, "new line")}, compared with ${many(scan.comparedWith.length, "run")}`);
  }
}
