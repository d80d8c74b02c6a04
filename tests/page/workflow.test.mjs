// The page of a workflow: its jobs, their counts by status, and since when they fail.

import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";

import { $, events, until } from "./document.mjs";

const jobs = [["j5", "FAILED"], ["j4", "RUNNING"], ["j3", "LOST"], ["j2", "CANCELED"], ["j1", "COMPLETED"], ["j0", "FAILED"]].map(([id, status], index) => ({ id, status, created_at: `2026-03-03T10:0${9 - index}:00Z`, labels: {}, lines: 7 }));
const asked = [];
let say;
globalThis.history = { pushState: (_, __, address) => (location.href = new URL(address, location).href) };
globalThis.location = new URL("http://127.0.0.1/ui/workflows/team-a.b?status=PENDING");
globalThis.fetch = async (request, { signal } = {}) => {
  const { pathname, searchParams: of } = new URL(request.url);
  if (pathname.endsWith("/events")) {
    const start = (stream) => ((say = (job) => stream.enqueue(new TextEncoder().encode(`event: job\ndata: ${JSON.stringify(job)}\nid: 1\n\n`))), signal?.addEventListener("abort", () => stream.error(signal.reason)));
    return new Response(new ReadableStream({ start }), { headers: { "Content-Type": "text/event-stream" } });
  }
  if (!pathname.endsWith("/jobs")) return Response.json({ status: 404 }, { status: 404 });
  asked.push(`${pathname} ${of}`);
  const found = jobs.filter(({ status }) => [null, status].includes(of.get("status")));
  return Response.json({ jobs: found.slice(0, of.get("limit")), cursor: found.length > of.get("limit") ? "next" : null });
};
sessionStorage.setItem("chronoverse.token", "token");
await import("../../chronoverse/web/static/js/workflow.js");

const shown = () => $("tbody").children.map((row) => row.links[0].textContent);

test("an empty list and the number of all jobs are requested once, and a search hides that there is no job", async () => {
  const notice = () => $("notice").textContent;
  await until(() => notice() === "No pending jobs. Show all 6");
  const [shownNotice] = $("notice").children;
  await new Promise((done) => setTimeout(done, 1100));
  deepEqual([asked.length, $("notice").children[0] === shownNotice], [2, true]);
  location.search = "?status=PENDING&q=x";
  events.dispatchEvent(new Event("popstate"));
  equal($("notice").hidden, true);
  await new Promise((done) => setTimeout(done, 1100));
  equal($("notice").hidden, true);
  asked.length = 0;
  location.search = "";
  events.dispatchEvent(new Event("popstate"));
});

test("running jobs come first, and the header shows where the workflow broke", async () => {
  await until(() => shown().length === 6);
  deepEqual([shown(), asked], [["j4", "j5", "j3", "j2", "j1", "j0"], ["/workflows/team-a.b/jobs limit=200"]]);
  equal($("overview").textContent, "6 jobs · failing since j3 · last good run j1");
  deepEqual($("overview").links.map(({ href }) => href), ["j3", "j1"].map((id) => `/ui/workflows/team-a.b/jobs/${id}`));
  deepEqual($("kinds").children.map(({ textContent }) => textContent), ["All 6", "Failed 2", "Running 1", "Lost 1", "Completed 1", "Canceled 1"]);
});

test("a status filter requests only its jobs, and the counts remain those of all jobs", async () => {
  const click = (more) => {
    const event = Object.assign(new Event("click", { cancelable: true }), more);
    Object.defineProperty(event, "target", { value: { closest: () => ({ search: "?status=FAILED&label=branch%3Dmain" }) } });
    return $("kinds").dispatchEvent(event);
  };
  // The browser opens another tab or window.
  deepEqual(["metaKey", "ctrlKey", "shiftKey"].map((key) => click({ [key]: true })), [true, true, true]);
  equal(location.search, "");
  equal(click(), false);
  await until(() => shown().length === 2);
  deepEqual([shown(), asked.at(-1)], [["j5", "j0"], "/workflows/team-a.b/jobs status=FAILED&label=branch%3Dmain&limit=200"]);
  deepEqual([$("kinds").children[0].textContent, $("kinds").children[0].href], ["All 6", "?label=branch%3Dmain"]);
  equal(location.search, "?status=FAILED&label=branch%3Dmain");
});

test("going back shows the earlier filters; a job that waits for a runner has not started", async () => {
  location.search = "";
  jobs.push({ id: "j6", status: "PENDING", created_at: new Date(Date.now() - 150_000).toISOString(), labels: {}, lines: 0 });
  events.dispatchEvent(new Event("popstate"));
  await until(() => shown().length === 7);
  equal(asked.at(-1), "/workflows/team-a.b/jobs limit=200");
  const row = $("tbody").children.find(({ links }) => links[0].textContent === "j6");
  deepEqual([".when", ".why"].map((each) => row.querySelector(each).textContent), ["", "Waiting for a runner, created 2 min ago"]);
});

test("a status that no listed job has is not counted while there are further pages", async () => {
  const of = (status) => Array.from({ length: 200 }, (_, index) => ({ ...jobs[0], id: `more-${index}`, status }));
  const kinds = () => $("kinds").children.map(({ textContent }) => textContent);
  const reopen = () => ["?status=LOST", ""].forEach((search) => ((location.search = search), events.dispatchEvent(new Event("popstate"))));
  jobs.push(...of("COMPLETED"));
  reopen();
  await until(() => shown().length === 200);
  deepEqual(kinds(), ["All 200+", "Failed 2+", "Running 1+", "Lost 1+", "Completed 194+", "Canceled 1+", "Pending 1+"]);
  jobs.unshift(...of("RUNNING"));
  reopen();
  await until(() => kinds()[2] === "Running 200+");
  deepEqual(kinds(), ["All 200+", "Failed", "Running 200+", "Lost", "Completed", "Canceled"]);
});

test("of two labels with one key, both filter the changes, too", async () => {
  jobs.length = 0;
  location.search = "?label=branch%3Da&label=branch%3Db";
  say = null;
  events.dispatchEvent(new Event("popstate"));
  await until(() => shown().length === 0 && say);
  const job = { id: "j7", status: "RUNNING", created_at: "2026-03-03T10:00:00Z", labels: { branch: "b" }, lines: 0 };
  say(job);
  await new Promise((done) => setTimeout(done, 200));
  deepEqual(shown(), []);
  location.search = "?label=branch%3Db";
  say = null;
  events.dispatchEvent(new Event("popstate"));
  await until(() => say);
  say(job);
  await until(() => shown().length === 1);
});
