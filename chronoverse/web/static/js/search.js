// The search in all jobs of one workflow or of all workflows: page by page, newest job first, until it has enough or is stopped.

import { jobPage, workflowPage } from "./addresses.js";
import { $, announce, link, make, notice, timeElement } from "./dom.js";
import { STATUS, ago, count } from "./format.js";
import { matchElement } from "./match.js";
import { query } from "./scan.js";
import { get } from "./session.js";
import { badgeElement } from "./state.js";

export class WorkflowSearch {
  #workflow;
  #criteria = null;
  #cursor = null;
  #position = null;
  #running = null;
  #groups = new Map();

  /** `workflow` is null to search all workflows that the token can read. */
  constructor(workflow) {
    this.#workflow = workflow;
    $("stop").addEventListener("click", () => this.stop());
    $("further").addEventListener("click", () => ($("progress").focus({ preventScroll: true }), this.#run()));
  }

  /** Searches for `criteria`: `{q, regex, status, labels}`. Earlier results are removed. */
  start(criteria) {
    this.clear();
    this.#criteria = criteria;
    $("results").hidden = false;
    this.#run();
  }

  clear() {
    this.#running?.abort();
    this.#cursor = this.#position = null;
    this.#groups.clear();
    $("found").replaceChildren();
    $("results").hidden = true;
  }

  /** Stops the search. The results stay, and the search can be continued. */
  stop() {
    this.#running?.abort();
    this.#pause("Stopped", { canGoOn: true });
  }

  async #run() {
    const running = (this.#running = new AbortController());
    $("further").hidden = true;
    $("stop").hidden = false;
    this.#show("Searching…");
    announce("Searching…");
    const enough = this.#groups.size + 20;
    const before = $("found").querySelectorAll("a.match").length;
    try {
      do {
        await this.#page(enough - this.#groups.size, running.signal);
        this.#show("Searching…");
        this.#focusFirst(before);
      } while (this.#cursor && this.#groups.size < enough);
    } catch (error) {
      // A search that was stopped or replaced by another has shown that already.
      if (!running.signal.aborted) this.#pause(`The search failed: ${error.message}`, { canGoOn: ![400, 403, 404].includes(error.status), isBad: true });
      return;
    }
    this.#pause("", { canGoOn: this.#cursor !== null });
  }

  async #page(limit, signal) {
    const { status, labels, ...criteria } = this.#criteria;
    const parameters = query(criteria, { limit, ...(status ? { status } : {}), ...(this.#cursor ? { cursor: this.#cursor } : {}) });
    for (const label of labels) parameters.append("label", label);
    const path = this.#workflow === null ? "" : `/workflows/${this.#workflow}`;
    const { body, headers } = await get(`${path}/logs/search?${parameters}`, signal);
    if (signal.aborted) throw signal.reason;
    for (const job of body.jobs) this.#add(job);
    const position = parse(headers.get("Searched-To"));
    // The previous page ended within a job. If this page finishes the job without a match, the job has no more.
    const unfinished = this.#position?.line ? this.#position.job : null;
    const isFinished = !(position?.line && position.job === unfinished);
    if (isFinished && !body.jobs.some((job) => this.#key(job) === unfinished)) this.#setMore(this.#groups.get(unfinished), false);
    this.#cursor = body.cursor;
    this.#position = position;
  }

  #key({ id, workflow_id: workflow }) {
    return this.#workflow === null ? `${workflow}/${id}` : id;
  }

  #setMore(group, more) {
    if (!group) return;
    group.more = more;
    group.rest.hidden = !more;
  }

  /** Shows a job's matches, or adds them to those of an earlier page that ended within the job. */
  #add(job) {
    const workflow = this.#workflow ?? job.workflow_id;
    const search = query(this.#criteria, {});
    let group = this.#groups.get(this.#key(job));
    if (!group) {
      const href = jobPage(workflow, job.id);
      const rest = make("a", { href: `${href}?${search}`, className: "rest" }, "More in this job", make("span", "sr", `: ${job.id}`));
      group = { matches: 0, more: false, list: make("ol", { role: "list" }), rest, problem: make("p", "problem") };
      const when = make("span", "quiet", timeElement(job.created_at ?? ""));
      const section = make("section", "", make("h2", "", ...(this.#workflow === null ? [link(workflowPage(workflow), workflow), " / "] : []), link(href, job.id)), badgeElement(job), when, group.list, group.problem, group.rest);
      $("found").append(section);
      this.#groups.set(this.#key(job), group);
    }
    group.matches += job.logs.length;
    this.#setMore(group, job.more);
    group.list.append(...job.logs.map((line) => matchElement(workflow, job.id, line, search)));
    group.list.hidden = !group.matches;
    group.problem.textContent = job.error ? `Search stopped: ${job.error}` : "";
    group.problem.hidden = !job.error;
  }

  #pause(why, { canGoOn, isBad = false }) {
    if (document.activeElement === $("stop")) $("progress").focus({ preventScroll: true });
    $("stop").hidden = true;
    $("further").hidden = !canGoOn;
    this.#show(why, isBad);
    announce($("progress").textContent);
  }

  #show(prefix, isBad = false) {
    notice(null);
    const groups = [...this.#groups.values()].filter((group) => group.matches);
    const total = groups.reduce((sum, group) => sum + group.matches, 0);
    const matches = `${count(total)}${groups.some((group) => group.more) ? "+" : ""} ${total === 1 ? "match" : "matches"}`;
    const found = total ? `${matches} in ${count(groups.length)} ${groups.length === 1 ? "job" : "jobs"}` : "No match";
    const isOver = !prefix && this.#cursor === null;
    const status = STATUS[this.#criteria.status]?.toLowerCase();
    const far = isOver ? `all ${status ? `${status} ` : ""}jobs were searched` : describe(this.#position);
    const parts = [prefix, isOver ? found : `${found} so far`, far];
    $("progress").classList.toggle("bad", isBad);
    $("progress").textContent = parts.filter(Boolean).join(" · ");
  }

  /** After "Search further", moves the focus to the first new match, unless the reader has moved it. */
  #focusFirst(before) {
    if (!before || document.activeElement !== $("progress")) return;
    $("found").querySelectorAll("a.match")[before]?.focus();
  }
}

/** The header `Searched-To` as `{job, created, line}`. The last two are optional. Null without a header. */
function parse(header) {
  if (!header) return null;
  const [job, ...more] = header.split(";");
  return { job, ...Object.fromEntries(more.map((each) => each.split("="))) };
}

function describe(position) {
  if (!position) return "";
  const { job, created, line } = position;
  return `searched back to ${line ? `line ${count(Number(line))} of ` : ""}${job}${created ? `, ${ago(created)}` : ""}`;
}
