// The search in all jobs of one workflow or of all workflows: page by page, newest job first, until it has enough or is stopped.

import { jobPage, workflowPage } from "./addresses.js";
import { $, announce, link, make, notice, timeElement } from "./dom.js";
import { STATUS, ago, count, many } from "./format.js";
import { matchElement } from "./match.js";
import { query } from "./scan.js";
import { get } from "./session.js";
import { badgeElement } from "./state.js";

/** `workflow` is null to search all workflows that the token can read. */
export function makeSearch(workflow) {
  let [asked, cursor, position, running] = [null, null, null, null];
  const groups = new Map();
  const progress = $("progress");

  $("stop").addEventListener("click", stop);
  $("further").addEventListener("click", () => (progress.focus({ preventScroll: true }), run()));

  /** Searches for `criteria`: `{q, regex, status, labels}`. Earlier results are removed. */
  function start(criteria) {
    clear();
    asked = criteria;
    $("results").hidden = false;
    run();
  }

  function clear() {
    running?.abort();
    cursor = position = null;
    groups.clear();
    $("found").replaceChildren();
    $("results").hidden = true;
  }

  /** The results stay, and the search can be continued. */
  function stop() {
    running?.abort();
    pause("Stopped", { canGoOn: true });
  }

  async function run() {
    running = new AbortController();
    const { signal } = running;
    $("further").hidden = true;
    $("stop").hidden = false;
    show("Searching…");
    announce("Searching…");
    const enough = groups.size + 20;
    const before = $("found").querySelectorAll("a.match").length;
    try {
      do {
        await readPage(enough - groups.size, signal);
        show("Searching…");
        // After "Search further", the focus moves to the first new match, unless the reader has moved it.
        if (before && document.activeElement === progress) $("found").querySelectorAll("a.match")[before]?.focus();
      } while (cursor && groups.size < enough);
    } catch (error) {
      // A search that was stopped or replaced has already shown that.
      if (!signal.aborted) pause(`The search failed: ${error.message}`, { canGoOn: ![400, 403, 404].includes(error.status), isBad: true });
      return;
    }
    pause("", { canGoOn: cursor !== null });
  }

  async function readPage(limit, signal) {
    const { status, labels, ...criteria } = asked;
    const parameters = query(criteria, { limit, ...(status ? { status } : {}), ...(cursor ? { cursor } : {}) });
    for (const label of labels) parameters.append("label", label);
    const path = workflow === null ? "" : `/workflows/${workflow}`;
    const { body, headers } = await get(`${path}/logs/search?${parameters}`, signal);
    if (signal.aborted) throw signal.reason;
    for (const job of body.jobs) add(job);
    const reached = parse(headers.get("Searched-To"));
    // The previous page ended within a job. If this page finishes the job without a match, the job has no more.
    const unfinished = position?.line ? position.job : null;
    const isFinished = !(reached?.line && reached.job === unfinished);
    if (isFinished && !body.jobs.some((job) => keyOf(job) === unfinished)) setMore(groups.get(unfinished), false);
    cursor = body.cursor;
    position = reached;
  }

  /** As in `Searched-To`. */
  const keyOf = (job) => (workflow === null ? `${job.workflow_id}/${job.id}` : job.id);

  function setMore(group, more) {
    if (!group) return;
    group.more = more;
    group.rest.hidden = !more;
  }

  /** Shows a job's matches, or adds them to those of an earlier page that ended within the job. */
  function add(job) {
    const of = workflow ?? job.workflow_id;
    const search = query(asked, {});
    let group = groups.get(keyOf(job));
    if (!group) {
      const href = jobPage(of, job.id);
      const rest = make("a", { href: `${href}?${search}`, className: "rest" }, "More in this job", make("span", "sr", `: ${job.id}`));
      group = { matches: 0, more: false, list: make("ol", { role: "list" }), rest, problem: make("p", "problem") };
      const title = make("h2", "", ...(workflow === null ? [link(workflowPage(of), of), " / "] : []), link(href, job.id));
      const when = make("span", "quiet", timeElement(job.created_at ?? ""));
      $("found").append(make("section", "", title, badgeElement(job), when, group.list, group.problem, group.rest));
      groups.set(keyOf(job), group);
    }
    group.matches += job.logs.length;
    setMore(group, job.more);
    group.list.append(...job.logs.map((line) => matchElement(of, job.id, line, search)));
    group.list.hidden = !group.matches;
    group.problem.textContent = job.error ? `Search stopped: ${job.error}` : "";
    group.problem.hidden = !job.error;
  }

  function pause(why, { canGoOn, isBad = false }) {
    if (document.activeElement === $("stop")) progress.focus({ preventScroll: true });
    $("stop").hidden = true;
    $("further").hidden = !canGoOn;
    show(why, isBad);
    announce(progress.textContent);
  }

  function show(prefix, isBad = false) {
    notice(null);
    const found = [...groups.values()].filter((group) => group.matches);
    const total = found.reduce((sum, group) => sum + group.matches, 0);
    const matches = `${count(total)}${found.some((group) => group.more) ? "+" : ""} ${total === 1 ? "match" : "matches"}`;
    const text = total ? `${matches} in ${many(found.length, "job")}` : "No match";
    const isOver = !prefix && cursor === null;
    const status = STATUS[asked.status]?.toLowerCase();
    const far = isOver ? `all ${status ? `${status} ` : ""}jobs were searched` : describe(position);
    progress.classList.toggle("bad", isBad);
    progress.textContent = [prefix, isOver ? text : `${text} so far`, far].filter(Boolean).join(" · ");
  }

  return { start, clear };
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
