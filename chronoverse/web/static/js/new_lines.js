// The new lines of a job: which they are, with which runs it is compared, and the steps from one to the next.

import { jobPage } from "./addresses.js";
import { $, announce, make } from "./dom.js";
import { toggle } from "./find.js";
import { count } from "./format.js";
import { Matches } from "./matches.js";
import { toQuery } from "./share.js";

export class NewLines {
  #workflow;
  #matches;
  #on;
  #criteria = { new: true, stream: "", hunks: true };
  #said = "";

  /** `on` is as for `Matches`. */
  constructor(path, workflow, log, on) {
    this.#workflow = workflow;
    this.#on = on;
    this.#matches = new Matches(path, log, {
      ...on,
      changed: () => this.#changed(),
      jump: (number) => {
        this.#show();
        on.jump(number);
      },
    });
    $("new").addEventListener("click", () => {
      toggle($("new"));
      this.begin();
    });
    $("nextnew").addEventListener("click", () => this.step(1));
    $("previousnew").addEventListener("click", () => this.step(-1));
  }

  get active() {
    return this.#matches.scan !== null;
  }

  /** The numbers of the new lines that are known. */
  get numbers() {
    return this.#matches.scan?.numbers ?? [];
  }

  /** Marks only the lines of one stream from now on, or of both. */
  set stream(stream) {
    this.#criteria = { ...this.#criteria, stream };
    if (this.active) this.begin({ jumps: false });
  }

  /** To be called when the log has grown. */
  logGrew() {
    this.#matches.scan?.resume();
  }

  /** Compares again, because lines were redacted. */
  restart() {
    if (this.active) this.#matches.restart();
  }

  /** Whether the line is marked as a new one. */
  has(number) {
    const { scan } = this.#matches;
    if (!scan) return false;
    if (number <= scan.position) return scan.numbers[scan.rowOf(number)] === number;
    // Before the scan has come anywhere, the service is still reading the runs.
    if (scan.position > 0) this.#matches.fetchAround(number);
    return scan.highlights.has(number);
  }

  /** Takes from the page's address whether new lines are marked. `begin` begins it. */
  fromAddress() {
    return toggle($("new"), new URLSearchParams(location.search).get("new") === "true");
  }

  /** Marks the new lines, and leaves the address as it is. */
  mark() {
    toggle($("new"), true);
    this.#said = "";
    this.#matches.begin(this.#criteria, false);
    this.#changed();
  }

  /** Shows on the button how many lines are new. Null if that is not known. */
  showCount(all) {
    $("new").textContent = `New vs. good runs${all === null ? "" : ` (${count(all)})`}`;
  }

  /** Marks the new lines, or none, and puts that into the address. It jumps to the next one from the top if `jumps`. */
  begin({ jumps = true } = {}) {
    const isOn = $("new").ariaPressed === "true";
    this.#said = "";
    if (isOn) this.#matches.begin(this.#criteria, jumps);
    else this.#matches.end();
    toQuery({ new: isOn ? "true" : "" });
    this.#changed();
  }

  /** Jumps to the next new line, or to the previous one. It marks them first if they are not marked. */
  step(direction) {
    if (this.active) return this.#matches.step(direction);
    return $("new").click();
  }

  #changed() {
    this.#show();
    this.#on.changed();
  }

  #show() {
    const { scan } = this.#matches;
    $("comparison").hidden = !scan;
    $("log").classList.toggle("comparing", scan !== null);
    if (!scan) return;
    if (scan.done && !scan.error) this.showCount(scan.count);
    for (const id of ["previousnew", "nextnew"]) $(id).hidden = !scan.count;
    $("newcount").textContent = this.#text(scan);
    $("newcount").title = scan.error?.message ?? "";
    this.#showRuns(scan.comparedWith);
    if (!scan.done && !scan.error) return;
    const said = scan.error ? this.#text(scan) : `${count(scan.count)} new, ${$("runs").textContent}`;
    if (said !== this.#said) announce(said);
    this.#said = said;
  }

  #text(scan) {
    if (scan.error?.reason === "nothing-to-compare") return "There is no earlier run that this one can be compared with.";
    if (scan.error) return `Not compared: ${scan.error.message}`;
    const { found, far } = this.#matches.progress;
    if (scan.count) return `${found} ${scan.count === 1 ? "new line" : "new lines"}${far}`;
    return scan.done ? "No new lines" : `Comparing…${far}`;
  }

  /** Shows the runs as links, once they are known. */
  #showRuns(runs) {
    if ($("runs").dataset.runs === runs.join(" ")) return;
    $("runs").dataset.runs = runs.join(" ");
    const links = runs.map((run) => {
      const link = make("a", "", run);
      link.href = jobPage(this.#workflow, run);
      return link;
    });
    const text = `compared with ${runs.length === 1 ? "1 run" : `${count(runs.length)} runs`}:`;
    $("runs").replaceChildren(...(runs.length ? [text, ...links.flatMap((link) => [" ", link])] : []));
  }
}
