// The home page: the workflows that the token may see, the one with the newest job first.

import { workflowPage } from "./addresses.js";
import { $, make, notice } from "./dom.js";
import { ago, count } from "./format.js";
import { List } from "./list.js";
import { recentWorkflows } from "./recent.js";
import { IDENTIFIER, begin, claims } from "./session.js";

const namedWorkflows = () => [claims().workflows ?? []].flat().filter((each) => IDENTIFIER.test(each));

/** Offers names while the reader types one: those opened last, those that the token names, and those of the list. */
function offerNames() {
  const all = new Set([...recentWorkflows(), ...namedWorkflows(), ...list.items.map(({ id }) => id)]);
  $("workflows").replaceChildren(...[...all].map((value) => Object.assign(make("option"), { value })));
}

/** The cells of a workflow. While the server that has its jobs does not answer, they are not known. */
function cells({ id, jobs, running }) {
  const link = make("a", "", id);
  link.href = workflowPage(id);
  const badge = make("span", "badge", count(running ?? 0));
  badge.dataset.status = "RUNNING";
  return [
    make("td", "", link),
    make("td", "", ...(running ? [badge] : [])),
    make("td", "quiet"),
    make("td", "num", jobs === null ? "unknown" : count(jobs)),
  ];
}

const list = new List({
  address: () => ["/workflows", {}],
  name: "workflows",
  cells,
  update: (row, { last_job_at: at }) => {
    row[2].textContent = ago(at ?? "");
    row[2].title = at ?? "";
  },
  isBusy: () => false,
  empty: "No workflows yet. One appears here when its first job begins.",
  refused: (error) => `The workflows cannot be listed: ${error.message}. You can still open one by its name.`,
  loaded: offerNames,
});

$("choose").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("workflow").value.trim();
  if (IDENTIFIER.test(name)) return location.assign(workflowPage(name));
  return notice("A workflow's name has letters, digits and . _ - in it.");
});

await begin();
offerNames();
const named = namedWorkflows();
if (named.length === 1) [$("workflow").value] = named;
list.refresh();
