// The home page: the workflows that the token can see. Failing ones come first, then running ones.

import { firstCommand, namedWorkflows, showAccount, showEmpty } from "./account.js";
import { IDENTIFIER, jobPage, workflowPage } from "./addresses.js";
import { causeOf, lastTen } from "./causes.js";
import { $, link, make, notice, timeElement } from "./dom.js";
import { age, ago, count, ended, many } from "./format.js";
import { makeList } from "./list.js";
import { makeSearch } from "./search.js";
import { makeSearchBox } from "./search_box.js";
import { begin } from "./session.js";
import { dotsElement, isRed, statusIcon } from "./state.js";

//: A workflow is failing if its last ended job has failed or is lost, even while the next one runs.
const lastEnd = ({ recent = [] }) => recent.find(ended);
const isRedNow = (each) => isRed(lastEnd(each));
const rank = (each) => (isRedNow(each) ? 0 : each.running ? 1 : 2);
const typed = () => $("workflow").value.trim();
const KINDS = {
  "": ["All", "", () => true],
  red: ["Failing", "FAILED", isRedNow],
  running: ["Running", "RUNNING", (each) => each.running > 0],
};
let kind = "";

/** The cells of a workflow. Its numbers are unknown while the server that stores its jobs does not respond. */
function cells(workflow) {
  const { id, running, jobs } = workflow;
  const name = make("a", { href: workflowPage(id), className: "cut", title: id }, id);
  const status = isRedNow(workflow) ? lastEnd(workflow) : running ? "RUNNING" : workflow.last_status;
  const shown = [...(status ? [statusIcon(status)] : []), name, make("span", "since"), make("span", "why cut")];
  const who = make("div", { className: "who", data: { status } }, ...shown);
  const runs = running ? [link(`${workflowPage(id)}?status=RUNNING`, `${count(running)} running`)] : jobs === null ? ["unknown"] : [];
  return [make("td", "name", who), make("td", "ten"), make("td", "runs", ...runs), make("td", "when")];
}

/** Refreshes time-dependent cells, and those requested later: the last ten jobs, and why and since when the workflow fails. */
function update(row, workflow) {
  const { id, recent = [], last_job: job, last_job_at: at } = workflow;
  const when = timeElement(at ?? "");
  row.querySelector(".when").replaceChildren(job ? link(jobPage(id, job), when) : when);
  const again = () => list.show();
  const ten = lastTen(id, `${job} ${recent.join()}`, again);
  const runs = ten ?? recent.map((status) => ({ status }));
  const key = JSON.stringify(runs.map(({ id: run, status }) => [run, status]));
  const dots = row.querySelector(".ten");
  if (dots.dataset.shown !== key) dots.replaceChildren(dotsElement(runs, (run) => jobPage(id, run)));
  dots.dataset.shown = key;
  let [since, why] = ["", ""];
  if (isRedNow(workflow) && ten) {
    const after = ten.slice(0, ten.findIndex(({ status }) => status === "COMPLETED") >>> 0).filter(({ status }) => isRed(status));
    const [newest, oldest] = [after[0], after.at(-1)];
    why = (newest && causeOf(id, newest.id, again)) || "";
    if (newest?.status === "LOST") since = `lost ${ago(newest.finished_at)}`;
    else if (oldest) since = ["failing", age(oldest.started_at ?? oldest.created_at)].filter(Boolean).join(" for ");
  }
  row.querySelector(".since").textContent = since;
  Object.assign(row.querySelector(".why"), { textContent: why, title: why });
}

function arrange(items) {
  const text = typed().toLowerCase();
  return items.filter((each) => each.id.toLowerCase().includes(text) && KINDS[kind][2](each)).sort((a, b) => rank(a) - rank(b));
}

function showKinds() {
  const { items } = list;
  const plus = list.hasMore ? "+" : "";
  const kinds = Object.entries(KINDS).map(([name, [text, status, has]]) => [name, status, text, items.length ? count(items.filter(has).length) + plus : undefined]);
  box.showKinds("show", kind, kinds, "");
  const failing = items.filter(isRedNow).length;
  $("overview").textContent = [many(items.length, "workflow") + plus, failing ? `${count(failing)} failing` : ""].filter(Boolean).join(" · ");
  $("overview").hidden = !items.length;
}

function showOthers() {
  const hint = () => (namedWorkflows().length ? "" : "Ask your administrator for access.");
  const named = () => namedWorkflows().filter((each) => IDENTIFIER.test(each));
  const links = (ids) => ids.flatMap((id, at) => [at ? " · " : "", link(workflowPage(id), id)]);
  showEmpty(!list.items.length, hint, () => [make("p", "", ...links(named()))]);
}

function emptyNotice(all) {
  if (!all) return make("span", "", "No workflows yet. They appear here when their first job starts, for example with: ", firstCommand("demo"));
  const what = [kind ? `${KINDS[kind][0].toLowerCase()} workflows` : "workflows", typed() ? `with “${typed()}”` : ""].filter(Boolean).join(" ");
  return make("span", "", `No ${what}. `, link("/", `Show all ${count(all)}`));
}

const list = makeList({
  address: () => ["/workflows", []],
  name: "workflows",
  size: 500,
  cells,
  arrange,
  update,
  empty: emptyNotice,
  refused: (error) => `The workflows cannot be listed: ${error.message}. You can still open one by its name.`,
  loaded: () => (showKinds(), showOthers()),
});

$("choose").addEventListener("submit", (event) => {
  event.preventDefault();
  const first = document.querySelector("table:not([hidden]) tbody a");
  const name = typed();
  const isExact = list.items.some(({ id }) => id === name);
  if (name && first && !isExact) return location.assign(first.href);
  if (IDENTIFIER.test(name)) return location.assign(workflowPage(name));
  return notice("Workflow names consist of letters, digits and . _ -");
});
$("workflow").addEventListener("input", () => list.show());

function fromAddress(parameters) {
  const chosen = parameters.get("show") ?? "";
  kind = Object.hasOwn(KINDS, chosen) ? chosen : "";
}

const criteria = () => ({ status: "", labels: [] });
const again = () => (list.show(), list.refresh());
const page = { title: [], list, search: makeSearch(null), criteria, changed: showKinds, again };
const box = makeSearchBox(() => (kind ? [["show", kind]] : []), fromAddress, page);

showKinds();
await begin();
showAccount();
box.show();
