// The new lines of a job: which they are, with which runs it is compared, and the steps from one to the next.

import { againstLabels } from "./addresses.js";
import { $, make, toggle } from "./dom.js";
import { count, many } from "./format.js";
import { Matches } from "./matches.js";
import { toQuery } from "./share.js";
import { showRuns } from "./summary.js";

export class NewLines extends Matches {
  #workflow;
  #known = "";

  /** `on` is as for `Matches`. */
  constructor(path, workflow, log, on) {
    super(path, log, on, { new: true, hunks: true }, "previousnew", "nextnew");
    this.#workflow = workflow;
    $("new").addEventListener("click", () => {
      toggle($("new"));
      this.begin();
    });
    $("against").addEventListener("change", () => {
      toQuery({ against_label: $("against").value });
      location.reload();
    });
  }

  /** Offers to compare with good runs of the job's `branch`, if it has one, or with others. `baseline` is that of a summary. */
  offer(branch, baseline) {
    const chosen = againstLabels().map(([, label]) => label).join(" ");
    const own = branch && `branch=${branch}`;
    const label = baseline?.label;
    const usual = label && label !== own ? label : "branch=main";
    const names = new Map([[own, "this branch"], [usual, usual.replace("branch=", "")], ["*", "all"]]);
    if (own === usual) names.set(own, "this branch");
    if (chosen && !names.has(chosen)) names.set(chosen, chosen);
    const options = [...names].filter(([value]) => value).map(([value, name]) => Object.assign(make("option", "", name), { value }));
    $("against").replaceChildren(...options);
    $("against").value = chosen || (baseline === undefined ? "" : label ?? "*");
    $("against").parentElement.hidden = !(own || chosen) || new URLSearchParams(location.search).has("against");
  }

  /** Whether the line is marked as a new one. */
  has(number) {
    const { scan } = this;
    if (!scan) return false;
    if (number <= scan.position) return scan.numbers[scan.rowOf(number)] === number;
    // Before the scan has come anywhere, the service is still reading the runs.
    if (scan.position > 0) this.fetchAround(number);
    return scan.highlights.has(number);
  }

  /** Takes from the page's address whether new lines are marked. `begin` begins it. */
  fromAddress() {
    return toggle($("new"), new URLSearchParams(location.search).get("new") === "true");
  }

  /** Marks the new lines, and leaves the address as it is. */
  mark() {
    toggle($("new"), true);
    this.look(false);
  }

  /** Shows how many lines are new, of a summary. Null if that is not known. */
  showCount(all) {
    if (all !== null) this.#known = count(all);
    if (!this.active) $("newcount").textContent = this.#known;
  }

  /** Marks the new lines, or none, and puts that into the address. It jumps to the next one from the top if `jumps`. */
  begin({ jumps = true } = {}) {
    const isOn = $("new").ariaPressed === "true";
    toQuery({ new: isOn ? "true" : "" });
    if (isOn) this.look(jumps);
    else this.drop();
  }

  /** Jumps to the next new line, or to the previous one. It marks them first if they are not marked. */
  step(direction) {
    return this.active ? super.step(direction) : $("new").click();
  }

  show() {
    const { scan } = this;
    if (!scan) return this.showCount(null);
    if (scan.done && !scan.error) this.#known = count(scan.count);
    $("newcount").textContent = this.#text(scan);
    $("new").title = scan.error ? this.#why(scan.error) : "Mark lines that no good run has (D)";
    if (scan.comparedWith.length) showRuns(this.#workflow, scan.comparedWith);
    if (scan.error) this.say(this.#why(scan.error));
    else if (scan.done) this.say(`${many(scan.count, "new line")}, compared with ${many(scan.comparedWith.length, "run")}`);
  }

  #why(error) {
    return error.reason === "nothing-to-compare" ? "No earlier run to compare with" : `Not compared: ${error.message}`;
  }

  #text(scan) {
    if (scan.error) return "not compared";
    const { found, far } = this.progress;
    return scan.count || scan.done ? found + far : `…${far}`;
  }
}
