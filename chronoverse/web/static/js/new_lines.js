// The new lines of a job: which they are, with which runs it is compared, and the steps from one to the next.

import { againstLabels, jobPage } from "./addresses.js";
import { $, link, make, toggle } from "./dom.js";
import { count } from "./format.js";
import { Matches } from "./matches.js";
import { toQuery } from "./share.js";

export class NewLines extends Matches {
  #workflow;

  /** `on` is as for `Matches`. */
  constructor(path, workflow, log, on) {
    super(path, log, on, { new: true, hunks: true }, "previousnew", "nextnew");
    this.#workflow = workflow;
    $("new").addEventListener("click", () => {
      toggle($("new"));
      this.begin();
    });
    $("among").addEventListener("change", () => {
      toQuery({ against_label: $("among").value });
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
    $("among").replaceChildren(...options);
    $("among").value = chosen || (baseline === undefined ? "" : label ?? "*");
    $("among").hidden = !(own || chosen) || new URLSearchParams(location.search).has("against");
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

  /** Shows on the button how many lines are new. Null if that is not known. */
  showCount(all) {
    $("new").textContent = `New lines${all === null ? "" : ` (${count(all)})`}`;
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
    $("comparison").hidden = !scan;
    $("log").classList.toggle("comparing", scan !== null);
    if (!scan) return;
    if (scan.done && !scan.error) this.showCount(scan.count);
    for (const id of ["previousnew", "nextnew"]) $(id).hidden = !scan.count;
    $("newcount").textContent = this.#text(scan);
    $("newcount").title = scan.error?.message ?? "";
    this.#showRuns(scan.comparedWith);
    if (!scan.done && !scan.error) return;
    this.say(scan.error ? this.#text(scan) : `${count(scan.count)} new, ${$("runs").textContent}`);
  }

  #text(scan) {
    if (scan.error?.reason === "nothing-to-compare") return "No earlier run to compare with.";
    if (scan.error) return `Not compared: ${scan.error.message}`;
    const { found, far } = this.progress;
    if (scan.count) return `${found} ${scan.count === 1 ? "new line" : "new lines"}${far}`;
    return scan.done ? "No new lines" : `Comparing…${far}`;
  }

  /** Shows the runs as links, once they are known. */
  #showRuns(runs) {
    if ($("runs").dataset.runs === runs.join(" ")) return;
    $("runs").dataset.runs = runs.join(" ");
    const text = `compared with ${runs.length === 1 ? "1 run" : `${count(runs.length)} runs`}:`;
    $("runs").replaceChildren(...(runs.length ? [text, ...runs.flatMap((run) => [" ", link(jobPage(this.#workflow, run), run)])] : []));
  }
}
