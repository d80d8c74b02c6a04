// The page of a workflow: its jobs, newest first, or what a search in all of them has found.

import { scopeText, showAccount, tokenButtons } from "./account.js";
import { jobPage } from "./addresses.js";
import { $, link, make, notice } from "./dom.js";
import { STATUS, ago, count, ended, span } from "./format.js";
import { chip, labelChips } from "./labels.js";
import { List } from "./list.js";
import { storeRecent } from "./recent.js";
import { WorkflowSearch } from "./search.js";
import { begin, claims } from "./session.js";
import { badgeElement, isRed } from "./state.js";

const workflow = decodeURIComponent(location.pathname.split("/")[3]);
const search = new WorkflowSearch(workflow);
let shown = null;
//: The labels that all listed jobs have, each as KEY=VALUE.
let labels = [];

function cells(job) {
  const labels = labelChips(workflow, job.labels);
  const cells = [make("td", "", link(jobPage(workflow, job.id), job.id), ...(labels.length ? [make("div", "chips", ...labels)] : [])), make("td", "", badgeElement(job)), make("td", "quiet"), make("td", "quiet wide")];
  return [...cells, make("td", "num", count(job.lines)), make("td", "wide", ...(isRed(job.status) ? [comparing(job)] : []))];
}

/** A choice of the good runs with which a red job is compared. */
function comparing(job) {
  const choice = make("select", "", make("option", "", "compare with…"));
  choice.setAttribute("aria-label", `Compare ${job.id} with`);
  const fill = () => {
    const good = list.items.filter((each) => each.status === "COMPLETED" && each.id !== job.id).slice(0, 20);
    choice.replaceChildren(choice.options[0], ...good.map(({ id }) => make("option", "", id)));
  };
  choice.addEventListener("pointerdown", fill);
  choice.addEventListener("focus", fill);
  choice.addEventListener("change", () => {
    if (choice.selectedIndex > 0) location.assign(`${jobPage(workflow, job.id)}?new=true&against=${choice.value}`);
  });
  return choice;
}

/** The link to a job, in words. */
function linkTo(words, job) {
  const element = link(jobPage(workflow, job.id), words);
  element.title = job.id;
  return element;
}

/** Above the jobs: how many of those listed stand how, the newest red one, and the good one before it. */
function showOverview() {
  const { items } = list;
  const counts = new Map();
  for (const { status } of items) counts.set(status, (counts.get(status) ?? 0) + 1);
  const parts = [...counts].map(([status, many]) => badgeElement({ status }, `${count(many)} ${STATUS[status] ?? status}`));
  const red = items.find(({ status }) => isRed(status));
  const good = items.find(({ status }) => status === "COMPLETED");
  if (red) parts.push(linkTo("Last failure", red));
  if (good) parts.push(linkTo("Last good run", good));
  // The first red job after the last good one is where it broke.
  const after = good ? items.slice(0, items.indexOf(good)).filter(({ status }) => isRed(status)) : [];
  if (after.length > 1) parts.push(linkTo("Failing since", after.at(-1)));
  $("overview").replaceChildren(make("span", "sr", "Of the listed jobs: "), ...parts);
  $("overview").hidden = !items.length;
}

/** When there are no jobs: whose token it is, and the ways out. */
function showEmpty() {
  const isEmpty = !list.items.length && !filters().length;
  $("empty").hidden = !isEmpty;
  if (!isEmpty || $("empty").childElementCount) return;
  const named = [claims().workflows ?? []].flat().map(String);
  const sees = named.some((each) => each === "*" || each === workflow || (each.endsWith("*") && workflow.startsWith(each.slice(0, -1))));
  const hint = sees ? "" : ` Ask for access to ${workflow}.`;
  $("empty").append(make("p", "", `This token is for ${scopeText()}.${hint}`), tokenButtons());
}

function update(row, job) {
  const start = Date.parse(job.started_at ?? "");
  const stop = ended(job.status) ? Date.parse(job.finished_at ?? "") : Date.now();
  row[2].textContent = ago(job.started_at ?? job.created_at ?? "");
  row[2].title = job.started_at ?? job.created_at ?? "";
  row[3].textContent = start > 0 && stop >= start ? span(stop - start) : "";
}

const list = new List({
  address: () => [`/workflows/${workflow}/jobs`, filters()],
  name: "jobs",
  cells,
  update,
  // Those that run are on top.
  arrange: (items) => [...items].sort((a, b) => Number(b.status === "RUNNING") - Number(a.status === "RUNNING")),
  loaded: () => (showOverview(), showEmpty()),
  isBusy: (job) => !ended(job.status),
  empty: "No jobs yet. They appear here when they start.",
  refused: (error) => error.message,
});

/** What the jobs are chosen by, as parameters of a request and of the page's address. */
const filters = () => [...($("status").value ? [["status", $("status").value]] : []), ...labels.map((label) => ["label", label])];

const isRegex = () => $("regex").ariaPressed === "true";

/** The search and the status that the reader has chosen, as the query of the page's address. */
function chosen() {
  const parameters = new URLSearchParams();
  if ($("q").value) parameters.set("q", $("q").value);
  if ($("q").value && isRegex()) parameters.set("regex", "true");
  for (const [name, value] of filters()) parameters.append(name, value);
  return parameters.size ? `?${parameters}` : "";
}

/** Shows what the reader has chosen: matches, or the list of jobs. */
function show() {
  shown = chosen();
  const criteria = { q: $("q").value, regex: isRegex(), status: $("status").value, labels };
  showLabels();
  $("jobs").hidden = criteria.q !== "";
  document.title = `${criteria.q ? `${criteria.q} · ` : ""}${workflow} · Chronoverse`;
  if (criteria.q) {
    list.stop();
    return search.start(criteria);
  }
  search.clear();
  return list.restart();
}

/** Shows by which labels the jobs are chosen. Each chip leads to the page without it. */
function showLabels() {
  const chips = labels.map((label) => {
    const parameters = new URLSearchParams(shown);
    parameters.delete("label", label);
    const [key, ...value] = label.split("=");
    const without = make("span", "sr", ": show jobs without it, too");
    return chip([key, value.join("=")], `?${parameters}`, " ×", without);
  });
  $("labels").replaceChildren(make("span", "quiet", "Only jobs with"), ...chips);
  $("labels").hidden = !chips.length;
}

/** Shows it, and makes an entry in the history unless it is shown already. */
function choose() {
  if (chosen() !== shown) history.pushState(null, "", location.pathname + chosen());
  show();
}

function fromAddress() {
  const parameters = new URLSearchParams(location.search);
  $("q").value = parameters.get("q") ?? "";
  $("regex").ariaPressed = String(parameters.get("regex") === "true");
  labels = parameters.getAll("label");
  $("status").value = parameters.get("status") ?? "";
  // An invalid status leaves the select empty.
  if ($("status").selectedIndex < 0) $("status").value = "";
}

$("find").addEventListener("submit", (event) => {
  event.preventDefault();
  choose();
});
$("q").addEventListener("input", () => !$("q").value && shown !== chosen() && choose());
$("regex").addEventListener("click", () => {
  $("regex").ariaPressed = String(!isRegex());
  if ($("q").value) choose();
});
$("status").addEventListener("change", choose);
addEventListener("popstate", () => {
  fromAddress();
  if (chosen() !== shown) show();
});
addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  event.preventDefault();
  $("q").focus();
  $("q").select();
});

$("name").textContent = workflow;
document.title = `${workflow} · Chronoverse`;
fromAddress();
await begin();
showAccount();
storeRecent(workflow);
notice("Loading…");
show();
