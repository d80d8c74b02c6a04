// The home page: the jobs of a workflow, newest first, refreshed while the page is open.

import { $, make, notice, announce } from "./dom.js";
import { ago, count, ended, outcome, span } from "./format.js";
import { IDENTIFIER, begin, claims, get } from "./session.js";

//: Jobs on a page.
const PAGE = 50;
//: Milliseconds between two requests while a job runs, and otherwise.
const BUSY_MS = 1000;
const IDLE_MS = 5000;
//: Workflows that are stored for the next visit.
const MAX_RECENT = 12;
const KEY = "chronoverse.workflows";

let workflow = "";
let pages = 1;
let timer = 0;
let newestRequest = 0;
const rows = new Map();

function recentWorkflows() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "[]").filter((each) => IDENTIFIER.test(each));
  } catch {
    return [];
  }
}

function offerWorkflows() {
  const named = (claims().workflows ?? []).filter((each) => IDENTIFIER.test(each));
  const all = new Set([...recentWorkflows(), ...named]);
  $("workflows").replaceChildren(...[...all].map((value) => Object.assign(make("option"), { value })));
  return [...all];
}

function row(job) {
  const key = JSON.stringify(job);
  const cached = rows.get(job.id);
  const element = cached?.key === key ? cached.element : make("tr");
  if (cached?.key !== key) {
    const link = make("a", "", job.id);
    link.href = `/ui/workflows/${workflow}/jobs/${job.id}`;
    const badge = make("span", "badge", outcome(job));
    badge.dataset.status = job.status;
    const cells = [make("td", "", link), make("td", "", badge), make("td"), make("td"), make("td", "num", count(job.lines))];
    element.replaceChildren(...cells);
    rows.set(job.id, { key, element });
  }
  const start = Date.parse(job.started_at ?? "");
  const stop = ended(job.status) ? Date.parse(job.finished_at ?? "") : Date.now();
  element.children[2].textContent = ago(job.started_at ?? job.created_at ?? "");
  element.children[2].title = job.started_at ?? job.created_at ?? "";
  element.children[3].textContent = start > 0 && stop >= start ? span(stop - start) : "";
  return element;
}

async function load() {
  const request = (newestRequest += 1);
  const found = [];
  let cursor = null;
  for (let page = 0; page < pages; page += 1) {
    const parameters = new URLSearchParams({ limit: PAGE });
    if ($("status").value) parameters.set("status", $("status").value);
    if (cursor) parameters.set("cursor", cursor);
    const { body } = await get(`/workflows/${workflow}/jobs?${parameters}`);
    found.push(...body.jobs);
    cursor = body.cursor;
    if (!cursor) break;
  }
  if (request !== newestRequest) return;
  document.querySelector("table").hidden = !found.length;
  notice(found.length ? null : "No jobs yet. They appear here as they begin.");
  const elements = found.map(row);
  if (elements.some((each, i) => each !== $("jobs").children[i]) || elements.length !== $("jobs").children.length) {
    $("jobs").replaceChildren(...elements);
    announce(`${count(found.length)} jobs`);
  }
  for (const id of rows.keys()) if (!found.some((job) => job.id === id)) rows.delete(id);
  $("more").hidden = !cursor;
  schedule(found.some((job) => !ended(job.status)) ? BUSY_MS : IDLE_MS);
}

function schedule(ms) {
  clearTimeout(timer);
  timer = setTimeout(() => (document.hidden ? schedule(BUSY_MS) : refresh()), ms);
}

function refresh() {
  clearTimeout(timer);
  load().catch((error) => {
    if (!rows.size) notice(error.message);
    schedule(IDLE_MS);
  });
}

function show(name) {
  workflow = name;
  pages = 1;
  rows.clear();
  $("jobs").replaceChildren();
  $("workflow").value = name;
  document.title = `${name} · Chronoverse`;
  localStorage.setItem(KEY, JSON.stringify([name, ...recentWorkflows().filter((each) => each !== name)].slice(0, MAX_RECENT)));
  offerWorkflows();
  refresh();
}

$("choose").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("workflow").value.trim();
  if (!IDENTIFIER.test(name)) return notice("A workflow's name has letters, digits and . _ - in it.");
  history.pushState(null, "", `/?workflow=${name}`);
  return show(name);
});
$("status").addEventListener("change", () => workflow && refresh());
$("more").addEventListener("click", () => {
  pages += 1;
  refresh();
});
document.addEventListener("visibilitychange", () => document.hidden || (workflow && refresh()));

function fromAddress() {
  const named = new URLSearchParams(location.search).get("workflow") ?? "";
  return IDENTIFIER.test(named) ? named : "";
}
addEventListener("popstate", () => fromAddress() && show(fromAddress()));

await begin();
const known = offerWorkflows();
const first = fromAddress() || (known.length === 1 ? known[0] : "");
if (first) show(first);
else $("workflow").focus();
