// The home page: the workflows that the token may see. The red ones come first, then those that run.

import { scopeText, showAccount, tokenButtons } from "./account.js";
import { IDENTIFIER, jobPage, workflowPage } from "./addresses.js";
import { $, link, make, notice } from "./dom.js";
import { ago, count, ended } from "./format.js";
import { List } from "./list.js";
import { recentWorkflows } from "./recent.js";
import { begin, claims } from "./session.js";
import { badgeElement, dotsElement, isRed } from "./state.js";

const namedWorkflows = () => [claims().workflows ?? []].flat().filter((each) => IDENTIFIER.test(each));
//: Red is a workflow whose last ended job has failed or is lost, also while the next one runs.
const isRedNow = ({ recent = [] }) => isRed(recent.find(ended));
const rank = (each) => (isRedNow(each) ? 0 : each.running ? 1 : 2);
const typed = () => $("workflow").value.trim();
let kind = new URLSearchParams(location.search).get("show") ?? "";

/** The cells of a workflow. While the server that has its jobs does not answer, they are not known. */
function cells({ id, jobs, running, last_job: job, last_status: status, recent = [] }) {
  const last = make("td");
  if (job) {
    const run = link(jobPage(id, job), badgeElement({ status }), make("span", "sr", `: ${job}`));
    run.className = "run";
    run.title = job;
    last.append(run);
  }
  return [
    make("td", "", link(workflowPage(id), id)),
    last,
    make("td", "wide", dotsElement(recent)),
    make("td", "quiet"),
    make("td", "num wide", running ? count(running) : ""),
    make("td", "num wide", jobs === null ? "unknown" : count(jobs)),
  ];
}

/** The workflows that the reader wants, the red ones first, then those that run. Others stay the newest first. */
function arrange(items) {
  const text = typed().toLowerCase();
  const isWanted = (each) => kind === "" || (kind === "red" ? isRedNow(each) : each.running > 0);
  return items.filter((each) => each.id.toLowerCase().includes(text) && isWanted(each)).sort((a, b) => rank(a) - rank(b));
}

/** When there is nothing to show: why that may be, and the ways out. */
function showEmpty() {
  const isEmpty = !list.items.length;
  $("empty").hidden = !isEmpty;
  if (!isEmpty || $("empty").childElementCount) return;
  const named = namedWorkflows();
  const known = [...new Set([...named, ...recentWorkflows()])];
  const links = known.flatMap((id, at) => [at ? " · " : "", link(workflowPage(id), id)]);
  const hint = [claims().workflows ?? []].flat().length ? "" : " Ask whoever operates the service for access.";
  $("empty").append(make("p", "", `This token is for ${scopeText()}.${hint}`), ...(links.length ? [make("p", "", ...links)] : []), tokenButtons());
}

const list = new List({
  address: () => ["/workflows", []],
  name: "workflows",
  size: 100,
  pages: 5,
  cells,
  arrange,
  update: (row, { last_job_at: at }) => {
    row[3].textContent = ago(at ?? "");
    row[3].title = at ?? "";
  },
  isBusy: ({ running }) => running > 0,
  empty: "No workflows yet. They appear here when their first job starts.",
  refused: (error) => `The workflows cannot be listed: ${error.message}. You can still open one by its name.`,
  loaded: showEmpty,
});

$("choose").addEventListener("submit", (event) => {
  event.preventDefault();
  const first = document.querySelector("table:not([hidden]) tbody a");
  const name = typed();
  const isExact = list.items.some(({ id }) => id === name);
  if (name && first && !isExact) return location.assign(first.href);
  if (IDENTIFIER.test(name)) return location.assign(workflowPage(name));
  return notice("A workflow's name consists of letters, digits and . _ -");
});
$("workflow").addEventListener("input", () => list.show());

function choose(wanted) {
  kind = wanted;
  for (const button of $("kinds").children) button.ariaPressed = String(button.dataset.kind === kind);
}
$("kinds").addEventListener("click", ({ target }) => {
  if (target.dataset.kind === undefined) return;
  choose(target.dataset.kind);
  history.replaceState(null, "", kind ? `?show=${kind}` : location.pathname);
  list.show();
});
if (!["red", "running"].includes(kind)) kind = "";
choose(kind);

await begin();
showAccount();
list.refresh();
