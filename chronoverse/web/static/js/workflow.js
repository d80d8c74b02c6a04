// The page of a workflow: its jobs, newest first, or what a search in all of them has found.

import { jobPage } from "./addresses.js";
import { $, make, notice } from "./dom.js";
import { ago, count, ended, outcome, span } from "./format.js";
import { List } from "./list.js";
import { storeRecent } from "./recent.js";
import { WorkflowSearch } from "./search.js";
import { begin } from "./session.js";

const workflow = decodeURIComponent(location.pathname.split("/")[3]);
const search = new WorkflowSearch(workflow);
let shown = null;

function cells(job) {
  const link = make("a", "", job.id);
  link.href = jobPage(workflow, job.id);
  const badge = make("span", "badge", outcome(job));
  badge.dataset.status = job.status;
  const cells = [make("td", "", link), make("td", "", badge), make("td", "quiet"), make("td", "quiet wide")];
  return [...cells, make("td", "num", count(job.lines))];
}

function update(row, job) {
  const start = Date.parse(job.started_at ?? "");
  const stop = ended(job.status) ? Date.parse(job.finished_at ?? "") : Date.now();
  row[2].textContent = ago(job.started_at ?? job.created_at ?? "");
  row[2].title = job.started_at ?? job.created_at ?? "";
  row[3].textContent = start > 0 && stop >= start ? span(stop - start) : "";
}

const list = new List({
  address: () => [`/workflows/${workflow}/jobs`, $("status").value ? { status: $("status").value } : {}],
  name: "jobs",
  cells,
  update,
  isBusy: (job) => !ended(job.status),
  empty: "No jobs yet. They appear here as they begin.",
  refused: (error) => error.message,
});

const isRegex = () => $("regex").ariaPressed === "true";

/** The search and the status that the reader has chosen, as the query of the page's address. */
function chosen() {
  const parameters = new URLSearchParams();
  if ($("q").value) parameters.set("q", $("q").value);
  if ($("q").value && isRegex()) parameters.set("regex", "true");
  if ($("status").value) parameters.set("status", $("status").value);
  return parameters.size ? `?${parameters}` : "";
}

/** Shows what the reader has chosen: matches, or the list of jobs. */
function show() {
  shown = chosen();
  const criteria = { q: $("q").value, regex: isRegex(), status: $("status").value };
  $("jobs").hidden = criteria.q !== "";
  document.title = `${criteria.q ? `${criteria.q} · ` : ""}${workflow} · Chronoverse`;
  if (criteria.q) {
    list.stop();
    return search.start(criteria);
  }
  search.clear();
  return list.restart();
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
  $("status").value = parameters.get("status") ?? "";
  // A status that is none leaves the select empty.
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
storeRecent(workflow);
notice("Loading…");
show();
