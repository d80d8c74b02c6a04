// The search in all jobs of a workflow, or of all workflows: page after page, the newest job first, until it has enough or is stopped.

import { jobPage, workflowPage } from "./addresses.js";
import { $, announce, link, make, notice, timeElement } from "./dom.js";
import { STATUS, ago, count } from "./format.js";
import { matchElement } from "./match.js";
import { query } from "./scan.js";
import { get } from "./session.js";
import { badgeElement } from "./state.js";

//: Jobs with a match after which the search pauses.
const ENOUGH_JOBS = 20;

//: Statuses of answers that another request would get, too.
const FINAL = new Set([400, 403, 404]);

export class WorkflowSearch {
  #workflow;
  #criteria = null;
  #cursor = null;
  #position = null;
  #running = null;
  #groups = new Map();

  /** `workflow` is null for a search in all that the token may read. */
  constructor(workflow) {
    this.#workflow = workflow;
    $("stop").addEventListener("click", () => this.stop());
    $("further").addEventListener("click", () => {
      $("progress").focus({ preventScroll: true });
      this.#run();
    });
  }

  /** Searches for `criteria`: `{q, regex, status, labels}`. What was found before goes away. */
  start(criteria) {
    this.clear();
    this.#criteria = criteria;
    $("results").hidden = false;
    this.#run();
  }

  /** Stops, and clears what it shows. */
  clear() {
    this.#running?.abort();
    this.#running = null;
    this.#cursor = null;
    this.#position = null;
    this.#groups.clear();
    $("found").replaceChildren();
    $("results").hidden = true;
  }

  /** Stops. What was found stays, and the search can go on from there. */
  stop() {
    this.#running?.abort();
    this.#running = null;
    this.#pause("Stopped", { canGoOn: true });
  }

  async #run() {
    const running = new AbortController();
    this.#running = running;
    $("further").hidden = true;
    $("stop").hidden = false;
    this.#show("Searching…");
    announce("Searching…");
    const enough = this.#groups.size + ENOUGH_JOBS;
    const before = $("found").querySelectorAll("a.match").length;
    try {
      do {
        await this.#page(enough - this.#groups.size, running.signal);
        this.#show("Searching…");
        this.#focusFirst(before);
      } while (this.#cursor && this.#groups.size < enough);
    } catch (error) {
      // A search that was stopped, or made room for another one, has shown that already.
      if (running.signal.aborted) return;
      this.#running = null;
      this.#pause(`The search failed: ${error.message}`, { canGoOn: !FINAL.has(error.status), isBad: true });
      return;
    }
    this.#running = null;
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
    // The page before ended within a job. When this one comes to the job's end without a match, the job has no more.
    const unfinished = this.#position?.line ? this.#position.job : null;
    const isFinished = !(position?.line && position.job === unfinished);
    if (isFinished && !body.jobs.some((job) => this.#key(job) === unfinished)) this.#setMore(this.#groups.get(unfinished), false);
    this.#cursor = body.cursor;
    this.#position = position;
  }

  /** A job as `Searched-To` has it. */
  #key({ id, workflow_id: workflow }) {
    return this.#workflow === null ? `${workflow}/${id}` : id;
  }

  #setMore(group, more) {
    if (!group) return;
    group.more = more;
    group.rest.hidden = !more;
  }

  /** Shows the matches of a job. A page that ended within the job has shown its first ones. */
  #add(job) {
    const workflow = this.#workflow ?? job.workflow_id;
    let group = this.#groups.get(this.#key(job));
    if (!group) {
      group = { matches: 0, more: false, list: make("ol"), rest: make("a", "rest", "More in this job"), problem: make("p", "problem") };
      const href = jobPage(workflow, job.id);
      const when = make("span", "quiet", timeElement(job.created_at ?? ""));
      group.list.setAttribute("role", "list");
      group.rest.href = `${href}?${query(this.#criteria, {})}`;
      group.rest.append(make("span", "sr", `: ${job.id}`));
      const section = make("section", "", make("h2", "", ...(this.#workflow === null ? [link(workflowPage(workflow), workflow), " / "] : []), link(href, job.id)), badgeElement(job), when, group.list, group.problem, group.rest);
      $("found").append(section);
      this.#groups.set(this.#key(job), group);
    }
    group.matches += job.logs.length;
    this.#setMore(group, job.more);
    group.list.append(...job.logs.map((line) => matchElement(workflow, job.id, line, query(this.#criteria, {}))));
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

  /** Shows how much was found, and how far the search has looked. */
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

  /** After "Search further" the focus goes to what that has found, unless the reader has moved it. */
  #focusFirst(before) {
    if (!before || document.activeElement !== $("progress")) return;
    $("found").querySelectorAll("a.match")[before]?.focus();
  }
}

/** The header `Searched-To` as `{job, created, line}`. The last two may be missing. Null without a header. */
function parse(header) {
  if (!header) return null;
  const [job, ...more] = header.split(";");
  return { job, ...Object.fromEntries(more.map((each) => each.split("="))) };
}

/** How far a search has looked, in words. */
function describe(position) {
  if (!position) return "";
  const { job, created, line } = position;
  return `searched back to ${line ? `line ${count(Number(line))} of ` : ""}${job}${created ? `, ${ago(created)}` : ""}`;
}
