// The home page: the order of workflows, the filters, and the texts about failing ones.

import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";

import { $, events, until } from "./document.mjs";

const ago = (minutes) => new Date(Date.now() - 60_000 * minutes).toISOString();
const workflow = (id, recent, more = {}) => ({ id, recent, running: recent.filter((each) => each === "RUNNING").length, jobs: recent.length, last_job: `${id}-9`, last_job_at: ago(3), last_status: recent[0], ...more });
const jobs = [["j3", "RUNNING", 1], ["j2", "FAILED", 60], ["j1", "LOST", 125], ["j0", "COMPLETED", 400]].map(([id, status, minutes]) => ({ id, status, started_at: ago(minutes), finished_at: status === "RUNNING" ? null : ago(minutes) }));
const bad = ["n2", "n1"].map((id) => ({ id, status: "FAILED", started_at: null, created_at: null, finished_at: null }));
const answers = { "/workflows": { workflows: [workflow("Good", ["COMPLETED", "FAILED"]), workflow("run", ["CANCELED"]), workflow("running", ["RUNNING"]), workflow("red", ["RUNNING", "FAILED"]), workflow("never", ["FAILED", "FAILED"]), workflow("away", [], { jobs: null, last_job: null, running: null })], cursor: null }, "/workflows/red/jobs": { jobs, cursor: null }, "/workflows/never/jobs": { jobs: bad, cursor: null } };
const assigned = [];
globalThis.location = Object.assign(new URL("http://127.0.0.1/"), { assign: (address) => assigned.push(address) });
globalThis.fetch = async (request) => {
  const found = answers[new URL(request.url).pathname];
  return Response.json(found ?? { status: 404 }, { status: found ? 200 : 404 });
};
sessionStorage.setItem("chronoverse.token", "token");
$("workflow").value = "";
await import("../../chronoverse/web/static/js/home.js");

const { lastTen } = await import("../../chronoverse/web/static/js/causes.js");
const rows = () => $("tbody").children;
const shown = () => rows().map((row) => row.links[0].textContent);

test("failing workflows come first, even while the next job runs; then running ones", async () => {
  await until(() => shown().length === 6);
  deepEqual(shown(), ["red", "never", "running", "Good", "run", "away"]);
  equal($("overview").textContent, "6 workflows · 2 failing");
  deepEqual($("kinds").children.map(({ textContent }) => textContent), ["All 6", "Failing 2", "Running 2"]);
  await until(() => rows()[1].querySelector(".since").textContent);
  deepEqual(rows().slice(0, 3).map((row) => row.querySelector(".since").textContent), ["failing for 2 h", "failing", ""]);
  deepEqual(rows()[1].querySelector(".ten").links.map(({ href }) => href), ["n1", "n2"].map((id) => `/ui/workflows/never/jobs/${id}`));
  answers["/workflows/never/jobs"] = { jobs, cursor: null };
  const ten = () => lastTen("never", "newer", () => {})?.length;
  equal(ten(), 2, "the last known jobs stay until the new ones are there");
  await until(() => ten() === 4);
  for (const [query, ids] of [["?show=red", ["red", "never"]], ["?show=running", ["red", "running"]], ["", ["red", "never", "running", "Good", "run", "away"]]]) {
    location.search = query;
    events.dispatchEvent(new Event("popstate"));
    deepEqual(shown(), ids);
  }
});

test("a name filters the list case-insensitively, and opens the exact match or the first one", () => {
  const type = (text) => Object.assign($("workflow"), { value: text }).dispatchEvent(new Event("input"));
  const open = () => $("choose").dispatchEvent(new Event("submit"));
  document.querySelector = ((find) => (selector) => (selector.endsWith("tbody a") ? rows()[0]?.links[0] : find(selector)))(document.querySelector);
  type("GOO");
  deepEqual(shown(), ["Good"]);
  open();
  type("run");
  deepEqual(shown(), ["running", "run"]);
  open();
  type("nowhere");
  deepEqual(shown(), []);
  open();
  type("not an id");
  open();
  deepEqual(assigned, ["Good", "run", "nowhere"].map((id) => `/ui/workflows/${id}`));
});
