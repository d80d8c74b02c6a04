// The first page: a workflow's jobs, newest first, as they come and go.

import { $, make, notice, say } from "./dom.js";
import { ago, count, ended, outcome, span } from "./format.js";
import { begin, claims, get } from "./session.js";

//: Jobs on a page.
const PAGE = 50;
//: Milliseconds between two looks while something runs, and otherwise.
const BUSY_MS = 1000;
const IDLE_MS = 5000;
//: Workflows remembered for the next visit.
const REMEMBERED = 12;
const KEY = "chronoverse.workflows";
const IDENTIFIER = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

let workflow = "";
let pages = 1;
let timer = 0;
let round = 0;
const rows = new Map();

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "[]").filter((each) => IDENTIFIER.test(each));
  } catch {
    return [];
  }
}

function offer() {
  const named = (claims().workflows ?? []).filter((each) => IDENTIFIER.test(each));
  const all = new Set([...remembered(), ...named]);
  $("workflows").replaceChildren(...[...all].map((value) => Object.assign(make("option"), { value })));
  return [...all];
}

function row(job) {
  const key = JSON.stringify(job);
  const held = rows.get(job.id);
  const element = held?.key === key ? held.element : make("tr");
  if (held?.key !== key) {
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
  const asked = (round += 1);
  const found = [];
  let cursor = null;
  for (let page = 0; page < pages; page += 1) {
    const said = new URLSearchParams({ limit: PAGE });
    if ($("status").value) said.set("status", $("status").value);
    if (cursor) said.set("cursor", cursor);
    const { body } = await get(`/workflows/${workflow}/jobs?${said}`);
    found.push(...body.jobs);
    cursor = body.cursor;
    if (!cursor) break;
  }
  if (asked !== round) return;
  document.querySelector("table").hidden = !found.length;
  notice(found.length ? null : "No jobs yet. They appear here as they begin.");
  const elements = found.map(row);
  if (elements.some((each, i) => each !== $("jobs").children[i]) || elements.length !== $("jobs").children.length) {
    $("jobs").replaceChildren(...elements);
    say(`${count(found.length)} jobs`);
  }
  for (const id of rows.keys()) if (!found.some((job) => job.id === id)) rows.delete(id);
  $("more").hidden = !cursor;
  again(found.some((job) => !ended(job.status)) ? BUSY_MS : IDLE_MS);
}

function again(ms) {
  clearTimeout(timer);
  timer = setTimeout(() => (document.hidden ? again(BUSY_MS) : refresh()), ms);
}

function refresh() {
  clearTimeout(timer);
  load().catch((error) => {
    if (!rows.size) notice(error.message);
    again(IDLE_MS);
  });
}

function show(name) {
  workflow = name;
  pages = 1;
  rows.clear();
  $("jobs").replaceChildren();
  $("workflow").value = name;
  document.title = `${name} · Chronoverse`;
  localStorage.setItem(KEY, JSON.stringify([name, ...remembered().filter((each) => each !== name)].slice(0, REMEMBERED)));
  offer();
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
const known = offer();
const first = fromAddress() || (known.length === 1 ? known[0] : "");
if (first) show(first);
else $("workflow").focus();
