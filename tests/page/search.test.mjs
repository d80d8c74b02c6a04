// The search in all jobs: its results, and its progress in words.

import { deepEqual, equal, ok } from "node:assert/strict";
import { test } from "node:test";

import { $, renew, until } from "./document.mjs";

const { makeSearch } = await import("../../chronoverse/web/static/js/search.js");
const { Matches } = await import("../../chronoverse/web/static/js/matches.js");

const line = (number) => ({ sequence_num: number, message: `match ${number}`, timestamp: "2026-03-03T10:00:05.123Z", stream: "stdout", highlights: [[0, 5]] });
const found = (id, logs, more = {}) => ({ id, workflow_id: "w", status: "FAILED", exit_code: 1, created_at: "2026-03-03T10:00:00Z", logs: logs.map(line), more: false, ...more });

/** Responds with these pages: `[jobs, Searched-To]`, a status, or nothing for now. Returns the requests. */
function serve(...pages) {
  const asked = [];
  globalThis.fetch = async (request, { signal }) => {
    asked.push(new URL(request.url).search);
    const page = pages.shift();
    if (page === undefined) await new Promise((_, failed) => signal.addEventListener("abort", () => failed(signal.reason)));
    if (typeof page === "number") return Response.json({ status: page, detail: "too expensive" }, { status: page, headers: { "Content-Type": "application/problem+json" } });
    const [jobs, position] = page;
    return Response.json({ jobs, cursor: pages.length ? `c${asked.length}` : null }, { headers: position ? { "Searched-To": position } : {} });
  };
  return asked;
}
const said = () => $("progress").textContent;

test("a search requests page by page, and counts each job's matches once", async () => {
  const asked = serve([[found("b", [1, 2], { more: true })], "b;line=1240"], [[found("b", [3]), found("a", [7])], "a"], [[], null]);
  const search = makeSearch("w");
  search.start({ q: "match", regex: true, status: "FAILED", labels: ["branch=main", "x=y"] });
  await until(() => said().startsWith("4 matches"));
  equal(said(), "4 matches in 2 jobs · all failed jobs were searched");
  deepEqual(asked.map((each) => each.replace(/limit=\d+/, "limit=N")), ["", "c1", "c2"].map((cursor) => `?limit=N&status=FAILED${cursor && `&cursor=${cursor}`}&q=match&regex=true&label=branch%3Dmain&label=x%3Dy`));
  deepEqual([$("stop").hidden, $("further").hidden], [true, true]);
  // No page after the first has another match of b.
  serve([[found("b", [1], { more: true })], "b;line=1240"], [[], "b;line=2480"], [[found("a", [7], { more: true })], "a;line=5"], [[], "c;line=9"], [[], null]);
  search.start({ q: "match", labels: [] });
  await until(() => said() === "2 matches in 2 jobs · all jobs were searched");
  search.clear();
  equal($("results").hidden, true);
});

test("a stopped or failed search shows its progress, and can be continued", async () => {
  serve([[found("b", [1], { more: true })], "b;created=2026-03-03T10:00:00Z;line=1240"], undefined);
  const search = makeSearch(null);
  search.start({ q: "match", labels: [] });
  await until(() => said().startsWith("Searching… · 1+ match in 1 job so far · searched back to line 1,240 of b"));
  $("stop").click();
  await new Promise((done) => setTimeout(done, 5));
  ok(said().startsWith("Stopped · 1+ match in 1 job so far · searched back to line 1,240 of b, "), said());
  equal($("further").hidden, false);
  serve([[], "w/a"], 400);
  search.start({ q: "(", regex: true, labels: [] });
  await until(() => said().startsWith("The search failed"));
  deepEqual([said(), $("further").hidden], ["The search failed: too expensive · No match so far · searched back to w/a", true]);
  serve(503);
  search.start({ q: "x", labels: [] });
  await until(() => said() === "The search failed: too expensive · No match so far");
  equal($("further").hidden, false);
});

test("jobs of all workflows are named with their workflow, and counted apart", async () => {
  serve([["v", "w"].map((workflow_id) => ({ ...found("b", [1]), workflow_id })), null]);
  const search = makeSearch(null);
  search.start({ q: "match", labels: [] });
  await until(() => said() === "2 matches in 2 jobs · all jobs were searched");
  deepEqual($("found").children.map(({ links }) => links.slice(0, 2).map(({ href }) => href.split("?")[0])), ["v", "w"].map((id) => [`/ui/workflows/${id}`, `/ui/workflows/${id}/jobs/b`]));
});

test("a late answer to an earlier search changes nothing", async () => {
  const answers = [];
  globalThis.fetch = () => new Promise((done) => answers.push((id) => done(Response.json({ jobs: [found(id, [1])], cursor: null }))));
  const search = makeSearch("w");
  for (const q of ["before", "now"]) search.start({ q, labels: [] });
  await until(() => answers.length === 2);
  answers[1]("now");
  await until(() => said() === "1 match in 1 job · all jobs were searched");
  answers[0]("before");
  await new Promise((done) => setTimeout(done, 20));
  deepEqual([said(), $("found").children.map(({ links }) => links[0].textContent)], ["1 match in 1 job · all jobs were searched", ["now"]]);
});

test("a search pauses after twenty jobs", async () => {
  const jobs = Array.from({ length: 20 }, (_, index) => found(`j${index}`, [1]));
  const asked = serve([jobs.slice(0, 12), "j11"], [jobs.slice(12), "j19"], [[found("k", [1])], "k"], [[], null]);
  for (const id of ["further", "stop"]) renew(id);
  makeSearch("w").start({ q: "match", labels: [] });
  await until(() => said() === "20 matches in 20 jobs so far · searched back to j19");
  deepEqual([asked.map((each) => new URLSearchParams(each).get("limit")), $("further").hidden], [["20", "8"], false]);
  $("further").click();
  await until(() => said() === "21 matches in 21 jobs · all jobs were searched");
  equal(asked.length, 4);
});

test("the matches around a line are those of its window, requested once, and again after a refusal", async () => {
  const wait = globalThis.setTimeout;
  // Skips the delay before the retry.
  globalThis.setTimeout = (call, ms, ...values) => wait(call, ms === 2000 ? 0 : ms, ...values);
  const none = { logs: [], cursor: null };
  const answers = [503, { logs: [line(5)], cursor: null }, none, none];
  const asked = [];
  globalThis.fetch = async (request) => {
    asked.push(new URL(request.url).searchParams.get("offset"));
    const answer = answers.shift();
    return typeof answer === "number" ? new Response(null, { status: answer }) : Response.json(answer);
  };
  const matches = new Matches("/workflows/w/jobs/j", { last: 9 }, { changed() {} }, { q: "match" }, "previous", "next");
  matches.show = () => {};
  matches.scan = { highlights: new Map() };
  for (const number of [5, 5, 200, 201, 600]) await matches.fetchAround(number);
  deepEqual([[...matches.scan.highlights], asked], [[[5, [[0, 5]]]], ["0", "0", "200", "400"]]);
  globalThis.setTimeout = wait;
});
