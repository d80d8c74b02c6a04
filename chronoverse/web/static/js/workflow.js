// The page of a workflow: its jobs, newest first, or the results of a search in all of them.

import { followWorkflow } from "../client/index.js";
import { firstCommand, namedWorkflows, showAccount, showEmpty } from "./account.js";
import { jobPage } from "./addresses.js";
import { causeOf } from "./causes.js";
import { $, link, make, notice, timeElement } from "./dom.js";
import { STATUS, ago, count, ended, many, span, tookMs } from "./format.js";
import { chip, commitElement, filterChip } from "./labels.js";
import { makeList } from "./list.js";
import { makeSearch } from "./search.js";
import { makeSearchBox } from "./search_box.js";
import { begin, following, get } from "./session.js";
import { badgeElement, isRed } from "./state.js";
import { showRetry } from "./trouble.js";
import { showWatches } from "./watches.js";

const workflow = decodeURIComponent(location.pathname.split("/")[3]);
let status = "";
let labels = [];
//: How many jobs have each status ("" for all), from the last list without a filter; and a suffix for counts that are incomplete.
let counts = null;
let plus = "";
//: The same as text for a page that opened with a filter, requested once.
let all = null;

const filters = () => [...(status ? [["status", status]] : []), ...labels.map((label) => ["label", label])];

function cells(job) {
  const { branch, commit } = job.labels ?? {};
  const name = make("a", { href: jobPage(workflow, job.id), className: "cut", title: job.id }, job.id);
  const who = make("div", { className: "who", data: { status: job.status } }, name, make("span", "why cut"));
  const row = {
    state: [badgeElement(job)],
    name: [who],
    ref: branch ? [filterChip(workflow, ["branch", branch])] : [],
    "sha wide": commit ? [commitElement(commit)] : [],
    when: [],
    "took num": [],
    // For a running job, its own page shows them.
    "lines num": [ended(job.status) ? count(job.lines) : ""],
  };
  return Object.entries(row).map(([name, children]) => make("td", name, ...children));
}

function update(row, job) {
  const took = tookMs(job);
  row.querySelector(".when").replaceChildren(timeElement(job.started_at ?? ""));
  row.querySelector(".took").textContent = took === null ? "" : span(took);
  const waits = job.status === "PENDING" && `Waiting for a runner, created ${ago(job.created_at)}`;
  const why = waits || (isRed(job.status) && causeOf(workflow, job.id, () => list.show(), job.lines)) || "";
  Object.assign(row.querySelector(".why"), { textContent: why, title: why });
}

const linkTo = (job) => link(jobPage(workflow, job.id), job.id);

function showOverview() {
  const { items } = list;
  if (!filters().length) {
    counts = { "": items.length };
    for (const each of items) counts[each.status] = (counts[each.status] ?? 0) + 1;
    plus = list.hasMore ? "+" : "";
    const good = items.find((each) => each.status === "COMPLETED");
    const red = (good ? items.slice(0, items.indexOf(good)) : []).filter((each) => isRed(each.status));
    const jobs = plus ? `${count(items.length)}+ jobs` : many(items.length, "job");
    const parts = red.length ? [jobs, " · failing since ", linkTo(red.at(-1)), " · last good run ", linkTo(good)] : [jobs];
    $("overview").replaceChildren(...parts);
    $("overview").hidden = !items.length;
  }
  showKinds();
}

function showKinds() {
  const kinds = ["", "FAILED", "RUNNING", "LOST", "COMPLETED", "CANCELED", ...(counts?.PENDING || status === "PENDING" ? ["PENDING"] : [])];
  const texts = kinds.map((kind) => [kind, kind, STATUS[kind] ?? "All", counts?.[kind] || (counts && !plus) ? count(counts[kind] ?? 0) + plus : undefined]);
  box.showKinds("status", status, texts);
}

function showOthers() {
  const isSeen = (each) => each === "*" || each === workflow || (each.endsWith("*") && workflow.startsWith(each.slice(0, -1)));
  showEmpty(!list.items.length && !filters().length, () => (namedWorkflows().some(isSeen) ? "" : `Ask for access to ${workflow}.`));
}

function emptyNotice() {
  if (!filters().length) return make("span", "", "No jobs yet. They appear here when they start, for example with: ", firstCommand(workflow));
  if (!counts && all === null) countAll();
  const what = [STATUS[status]?.toLowerCase(), "jobs", labels.length ? `with ${labels.join(", ")}` : ""].filter(Boolean).join(" ");
  const total = counts ? count(counts[""]) + plus : all;
  return make("span", "", `No ${what}. `, link(location.pathname, `Show all ${total}`.trimEnd()));
}

function countAll() {
  all = "";
  const told = ({ body }) => ((all = count(body.jobs.length) + (body.cursor ? "+" : "")), list.show());
  get(`/workflows/${workflow}/jobs?limit=200`).then(told, () => {});
}

const list = makeList({
  address: () => [`/workflows/${workflow}/jobs`, filters()],
  name: "jobs",
  size: 200,
  cells,
  update,
  arrange: (items) => [...items].sort((a, b) => Number(b.status === "RUNNING") - Number(a.status === "RUNNING")),
  loaded: () => (showOverview(), showOthers()),
  changes: (signal) =>
    followWorkflow({
      ...following,
      workflow,
      jobs: 50,
      labels: Object.fromEntries(labels.map((label) => label.split(/=(.*)/s))),
      signal,
      onReconnect: (error, ms) => showRetry(ms, error, () => list.refresh()),
    }),
  // Of several labels with one key, the stream filters by the last.
  wants: (job) => job.status !== "DELETED" && (!status || job.status === status) && labels.every((label) => Object.entries(job.labels ?? {}).some((pair) => pair.join("=") === label)),
  empty: emptyNotice,
  refused: (error) => error.message,
});

function fromAddress(parameters) {
  labels = parameters.getAll("label");
  status = parameters.get("status") ?? "";
  if (!(status in STATUS)) status = "";
}

const search = makeSearch(workflow);
const changed = () => (showLabels(), showKinds());
const page = { title: [workflow], list, search, criteria: () => ({ status, labels }), changed, again: () => list.restart() };
const box = makeSearchBox(filters, fromAddress, page);

/** Shows the label filters. Each chip links to the page without it. */
function showLabels() {
  const chips = labels.map((label) => {
    const parameters = box.parameters();
    parameters.delete("label", label);
    const [key, ...value] = label.split("=");
    const without = make("span", "sr", ": remove this filter");
    return chip([key, value.join("=")], `?${parameters}`, " ×", without);
  });
  $("labels").replaceChildren(make("span", "quiet", "Only jobs with"), ...chips);
  $("labels").hidden = !chips.length;
}

Object.assign($("name"), { textContent: workflow, title: workflow });
document.title = `${workflow} · Chronoverse`;
showKinds();
await begin();
showAccount();
notice("Loading…");
box.show();
setInterval(() => document.hidden || list.show(), 1000);
showWatches(workflow, $("watches")).catch(() => {});
