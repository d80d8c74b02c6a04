// The page of a workflow: its jobs, their counts by status, and since when they fail.

import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";

import { $, events, until } from "./document.mjs";

const jobs = [["j5", "FAILED"], ["j4", "RUNNING"], ["j3", "LOST"], ["j2", "CANCELED"], ["j1", "COMPLETED"], ["j0", "FAILED"]].map(([id, status], index) => ({ id, status, created_at: `2026-03-03T10:0${9 - index}:00Z`, labels: {}, lines: 7 }));
const asked = [];
globalThis.history = { pushState: (_, __, address) => (location.href = new URL(address, location).href) };
globalThis.location = new URL("http://127.0.0.1/ui/workflows/team-a.b");
globalThis.fetch = async (request, { signal } = {}) => {
  const { pathname, searchParams: of } = new URL(request.url);
  if (pathname.endsWith("/events")) await new Promise((_, failed) => signal?.addEventListener("abort", () => failed(signal.reason)));
  if (!pathname.endsWith("/jobs")) return Response.json({ status: 404 }, { status: 404 });
  asked.push(`${pathname} ${of}`);
  return Response.json({ jobs: jobs.filter(({ status }) => [null, status].includes(of.get("status"))), cursor: null });
};
sessionStorage.setItem("chronoverse.token", "token");
await import("../../chronoverse/web/static/js/workflow.js");

const shown = () => $("tbody").children.map((row) => row.links[0].textContent);

test("running jobs come first, and the header shows where the workflow broke", async () => {
  await until(() => shown().length === 6);
  deepEqual([shown(), asked], [["j4", "j5", "j3", "j2", "j1", "j0"], ["/workflows/team-a.b/jobs limit=50"]]);
  equal($("overview").textContent, "6 jobs · failing since j3 · last good run j1");
  deepEqual($("overview").links.map(({ href }) => href), ["j3", "j1"].map((id) => `/ui/workflows/team-a.b/jobs/${id}`));
  deepEqual($("kinds").children.map(({ textContent }) => textContent), ["All 6", "Failed 2", "Running 1", "Lost 1", "Completed 1", "Canceled 1"]);
});

test("a status filter requests only its jobs, and the counts remain those of all jobs", async () => {
  const click = new Event("click", { cancelable: true });
  Object.defineProperty(click, "target", { value: { closest: () => ({ search: "?status=FAILED&label=branch%3Dmain" }) } });
  $("kinds").dispatchEvent(click);
  await until(() => shown().length === 2);
  deepEqual([shown(), asked.at(-1)], [["j5", "j0"], "/workflows/team-a.b/jobs status=FAILED&label=branch%3Dmain&limit=50"]);
  equal($("kinds").children[0].textContent, "All 6");
  equal(location.search, "?status=FAILED&label=branch%3Dmain");
});

test("going back shows the earlier filters; a job that waits for a runner has not started", async () => {
  location.search = "";
  jobs.push({ id: "j6", status: "PENDING", created_at: new Date(Date.now() - 150_000).toISOString(), labels: {}, lines: 0 });
  events.dispatchEvent(new Event("popstate"));
  await until(() => shown().length === 7);
  equal(asked.at(-1), "/workflows/team-a.b/jobs limit=50");
  const row = $("tbody").children.find(({ links }) => links[0].textContent === "j6");
  deepEqual([".when", ".why"].map((each) => row.querySelector(each).textContent), ["", "Waiting for a runner, created 2 min ago"]);
});
